"""What guesses about canaries prove: the bound, against other ways to compute it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tacit_common.errors import UsageError
from tacit_simulations.attacks import epsilon_lower_bound, p_value, right_guesses


def bound(right: int, guesses: int, *, canaries: int = 1000, delta: float = 1e-5) -> float:
    return epsilon_lower_bound(
        delta=delta, canaries=canaries, guesses=guesses, right=right, confidence=0.95
    )


def test_the_golden_figures_of_the_specification() -> None:
    assert bound(200, 200) == pytest.approx(4.17, abs=0.005)
    assert bound(150, 200) == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize(("right", "guesses"), [(20, 20), (90, 100), (150, 200), (700, 1000)])
def test_without_delta_it_is_the_exact_interval_of_a_binomial_share(
    right: int, guesses: int
) -> None:
    """Clopper and Pearson 1934, from the beta distribution."""
    share = float(stats.beta.ppf(0.05, right, guesses - right + 1))
    assert bound(right, guesses, delta=0.0) == pytest.approx(math.log(share / (1 - share)))


def test_the_p_value_is_the_sum_that_the_paper_writes() -> None:
    epsilon, delta, m, r, v = 0.7, 1e-3, 30, 12, 9
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))

    def exactly(k: int) -> float:
        return math.comb(r, k) * chance**k * (1 - chance) ** (r - k)

    at_least = sum(exactly(k) for k in range(v, r + 1))
    steepest = max(sum(exactly(v - j) for j in range(1, i + 1)) / i for i in range(1, v + 1))
    expected = at_least + 2 * m * delta * steepest
    assert p_value(epsilon, delta=delta, canaries=m, guesses=r, right=v) == pytest.approx(expected)


@settings(max_examples=60)
@given(
    guesses=st.integers(1, 400),
    share=st.floats(0, 1),
    delta=st.sampled_from([0.0, 1e-6, 1e-4]),
)
def test_more_right_guesses_never_prove_less_and_a_larger_delta_never_more(
    guesses: int, share: float, delta: float
) -> None:
    right = int(share * (guesses - 1))
    assert bound(right, guesses, delta=delta) <= bound(right + 1, guesses, delta=delta)
    assert bound(right, guesses, delta=delta) <= bound(right, guesses, delta=0.0)


def test_guesses_that_are_no_better_than_coins_prove_nothing() -> None:
    assert bound(100, 200) == 0.0
    assert bound(0, 200) == 0.0


def test_a_mechanism_that_keeps_its_claim_is_refuted_no_more_often_than_stated() -> None:
    """Randomised response tells each canary's coin with exactly ε: the worst that is allowed."""
    claim, trials, guesses = 1.0, 2000, 200
    rng = np.random.default_rng(0)
    right = rng.binomial(guesses, 1 / (1 + math.exp(-claim)), size=trials)
    bounds = {v: bound(v, guesses, canaries=200, delta=0.0) for v in set(right.tolist())}
    refuted = sum(bounds[v] > claim for v in right.tolist())
    assert 0.02 * trials < refuted <= 0.05 * trials + 5 * math.sqrt(0.05 * trials)


def test_guesses_are_the_extremes_and_nothing_in_between() -> None:
    scores = np.array([5.0, -9.0, 0.0, 8.0, -7.0, 0.1])
    joined = np.array([True, False, True, False, True, False])
    assert right_guesses(scores, joined, guesses=2) == 1  # in: 3, wrong; out: 1
    assert right_guesses(scores, joined, guesses=4) == 2  # and in: 0; out: 4, wrong
    assert right_guesses(scores, joined, guesses=3) == 2  # the odd guess is an "in"


@pytest.mark.parametrize(
    "counts",
    [
        {"right": 3, "guesses": 2},
        {"right": 1, "guesses": 2, "canaries": 1},
        {"right": -1, "guesses": 2},
        {"right": 1, "guesses": 2, "delta": 1.0},
    ],
)
def test_counts_that_contradict_each_other_are_refused(counts: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="not those of an audit"):
        bound(**counts)  # type: ignore[arg-type]
