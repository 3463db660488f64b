"""What guesses about canaries prove: the audit in one run.

Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), theorem 5.2 and its algorithm 1. Each
of m canaries joins the data with probability ½. Whoever sees what was released guesses for
r of them whether they joined. If the release is (ε, δ)-DP, many right guesses are unlikely;
so many right guesses refute every small ε.
"""

import math

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import UsageError

_STEPS = 40  # of the bisection: the bound is then known to 1e-12


def p_value(epsilon: float, *, delta: float, canaries: int, guesses: int, right: int) -> float:
    """How likely at least `right` of `guesses` are, at most, under (`epsilon`, `delta`)-DP.

    p(ε) = P[X ≥ v] + 2mδ · max over i of P[v > X ≥ v − i] / i, where X is binomial with r
    trials of probability e^ε / (1 + e^ε).
    """
    from scipy.stats import binom  # noqa: PLC0415 - half a second, which --help need not wait for

    chance = 1.0 / (1.0 + math.exp(-epsilon))
    at_least = float(binom.sf(right - 1, guesses, chance))
    if right == 0:
        return 1.0
    just_below = binom.pmf(np.arange(right - 1, -1, -1), guesses, chance)  # P[X = v − i], [v]
    density = np.cumsum(just_below) / np.arange(1, right + 1)
    return min(1.0, at_least + 2.0 * canaries * delta * float(density.max()))


def epsilon_lower_bound(
    *, delta: float, canaries: int, guesses: int, right: int, confidence: float
) -> float:
    """sup{ε : p(ε) < 1 − `confidence`}: no smaller ε explains so many right guesses.

    Guarantees: if the release is (ε, `delta`)-DP, the result exceeds ε with probability at
    most 1 − `confidence`, whatever the guesses were based on. 0 if the guesses show nothing.
    The number of guesses must not depend on which of them are right.

    Raises:
        UsageError: the counts contradict each other, or a probability is none.
    """
    if not (0 <= right <= guesses <= canaries and 0 <= delta < 1 and 0 < confidence < 1):
        raise UsageError(
            "these counts are not those of an audit",
            why="right guesses are guesses, guesses are about canaries, and δ and the "
            "confidence are probabilities",
            fix="give 0 ≤ right ≤ guesses ≤ canaries, δ in [0, 1) and a confidence in (0, 1)",
        )

    def is_refuted(epsilon: float) -> bool:
        p = p_value(epsilon, delta=delta, canaries=canaries, guesses=guesses, right=right)
        return p < 1.0 - confidence

    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while is_refuted(high):  # ends: p tends to 1
        low, high = high, 2.0 * high
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def right_guesses(scores: NDArray[np.float64], joined: NDArray[np.bool_], *, guesses: int) -> int:
    """How many of `guesses` are right, of `scores` [m] about who `joined` [m].

    Guesses "in" for the half with the largest scores, "out" for the half with the smallest,
    and abstains in between.
    """
    half = guesses // 2
    order = np.argsort(scores, kind="stable")
    highest = order[len(order) - (guesses - half) :]
    return int(joined[highest].sum()) + int((~joined[order[:half]]).sum())
