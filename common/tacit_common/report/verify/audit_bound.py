"""What an audit's counts prove, computed anew: a lower bound on ε.

The audit in one run (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846, theorem 5.2): each
of m canaries joins the data with probability ½; whoever saw what was released guesses for r
of them, and is right v times. Under (ε, δ)-DP that many right guesses have at most the
probability p(ε), so every ε with p(ε) below 1 − confidence is refuted.

The audit itself has its own code for this. The two share nothing but the theorem.
"""

import itertools
import math

_BISECTIONS = 60


def epsilon_lower_bound(
    *, delta: float, canaries: int, guesses: int, right: int, confidence: float
) -> float:
    """sup{ε : p(ε) < 1 − `confidence`}, or 0 if the counts refute nothing."""

    def is_refuted(epsilon: float) -> bool:
        return _p_value(epsilon, delta, canaries, guesses, right) < 1 - confidence

    if not is_refuted(0.0):
        return 0.0
    high = 1.0
    while is_refuted(high):
        high *= 2
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low


def _p_value(epsilon: float, delta: float, canaries: int, guesses: int, right: int) -> float:
    """p(ε) = P[X ≥ v] + 2mδ·max over i of P[v > X ≥ v − i] / i, X binomial(r, e^ε/(1 + e^ε))."""
    if right == 0:
        return 1.0
    log_right, log_wrong = -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(epsilon))
    probability = [
        math.exp(
            math.lgamma(guesses + 1)
            - math.lgamma(x + 1)
            - math.lgamma(guesses - x + 1)
            + x * log_right
            + (guesses - x) * log_wrong
        )
        for x in range(guesses + 1)
    ]
    just_below = itertools.accumulate(reversed(probability[:right]))
    worst = max(mass / i for i, mass in enumerate(just_below, start=1))
    return min(1.0, math.fsum(probability[right:]) + 2 * canaries * delta * worst)
