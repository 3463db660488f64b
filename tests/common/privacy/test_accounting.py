"""Accounting: golden values, closed forms, and what ε must do when a plan changes."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy import (
    REPORT_INTERVAL,
    Epsilons,
    GaussianRelease,
    NeighboringRelation,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
    cross_check,
    curve,
    delta,
    epsilon,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)

GRID_TOLERANCE = 2e-3  # relative, of the planning grid


def steps(q: float, sigma: float, count: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=q, noise_multiplier=sigma, steps=count)


def release(sigma: float) -> GaussianRelease:
    return GaussianRelease(noise_multiplier=sigma)


def phi(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def gaussian_delta(sigma: float, eps: float) -> float:
    """Balle and Wang 2018, equation 6, from the standard library alone."""
    half = 1 / (2 * sigma)
    return phi(half - eps * sigma) - math.exp(eps) * phi(-half - eps * sigma)


GOLDEN: list[PrivacyEvent] = [steps(0.01, 1.0, 1000)]


# --- golden values (PRIVACY.md 5; mistake 7: wrong adjacency) ---------------------------


def test_the_three_accountants_give_their_golden_figures() -> None:
    figures = cross_check(GOLDEN, 1e-5)
    assert (round(figures.pld, 3), round(figures.rdp, 3)) == (1.828, 2.101)
    assert figures.prv is not None
    assert round(figures.prv, 3) == 1.838


def test_mistake_7_adjacency_moves_the_golden_figure_from_zero_out_to_replace_one() -> None:
    figures = [
        epsilon(GOLDEN, 1e-5, interval=REPORT_INTERVAL, neighboring_relation=relation)
        for relation in (NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE)
    ]
    assert [round(figure, 3) for figure in figures] == [1.828, 2.843]


def test_mistake_7_replace_one_of_a_plain_gaussian_is_the_gaussian_at_twice_the_distance() -> None:
    figure = epsilon([release(1.0)], 1e-5, neighboring_relation=NeighboringRelation.REPLACE_ONE)
    assert figure == pytest.approx(9.997, abs=1e-3)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_replace_one_is_refused_to_accountants_that_ignore_it(accountant: str) -> None:
    with pytest.raises(PrivacyConfigError, match="replace_one"):
        epsilon(
            GOLDEN,
            1e-5,
            accountant=accountant,  # type: ignore[arg-type]
            neighboring_relation=NeighboringRelation.REPLACE_ONE,
        )


# --- independent methods ----------------------------------------------------------------


@pytest.mark.parametrize(("sigma", "count"), [(1.0, 1), (4.0, 9), (0.5, 2), (20.0, 100)])
def test_k_gaussian_releases_cost_one_release_at_sigma_over_root_k(
    sigma: float, count: int
) -> None:
    figure = epsilon([release(sigma)] * count, 1e-5, interval=REPORT_INTERVAL)
    assert gaussian_delta(sigma / math.sqrt(count), figure) == pytest.approx(1e-5, rel=1e-3)


def test_steps_without_sampling_are_gaussian_releases() -> None:
    assert epsilon([steps(1.0, 4.0, 9)], 1e-5) == epsilon([release(4.0)] * 9, 1e-5)


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.3, 0.7), (0.9, 2.0), (0.001, 0.5)])
def test_one_sampled_step_has_the_closed_form_of_amplification(q: float, sigma: float) -> None:
    # P − e^ε·Q of the mixture is q times that of the Gaussian at ε′ = log(1 + (e^ε − 1)/q).
    for eps in (0.05, 0.3, 1.0):
        exact = q * gaussian_delta(sigma, math.log1p(math.expm1(eps) / q))
        assert delta([steps(q, sigma, 1)], eps) == pytest.approx(exact, rel=2e-3, abs=1e-9)


def test_composed_sampled_steps_agree_with_monte_carlo() -> None:
    q, sigma, count, eps = 0.1, 1.0, 40, 2.0
    generator = np.random.default_rng(7)
    loss = np.zeros(200_000)
    for _ in range(count):  # x from the mixture, loss = log of mixture over N(0, σ²)
        x = sigma * generator.standard_normal(loss.size) + (generator.random(loss.size) < q)
        loss += np.log1p(q * np.expm1((2 * x - 1) / (2 * sigma**2)))
    excess = np.maximum(0.0, -np.expm1(eps - loss))
    standard_error = excess.std() / math.sqrt(loss.size)
    assert abs(delta([steps(q, sigma, count)], eps) - excess.mean()) < 4 * standard_error
    assert standard_error < 0.02 * excess.mean()


def test_noise_for_one_release_is_the_least_that_meets_its_epsilon() -> None:
    for eps, target in ((0.1, 1e-6), (1.0, 1e-5), (8.0, 1e-9)):
        sigma = gaussian_noise_multiplier(eps, target)
        assert gaussian_delta(sigma, eps) == pytest.approx(target, rel=1e-6)
        assert gaussian_epsilon(sigma, target) == pytest.approx(eps, rel=1e-9)


def test_the_curve_reaches_delta_1e_12_and_is_exact_for_a_gaussian() -> None:
    deltas = [10.0**-k for k in range(3, 13)]
    points = curve([release(1.0)], deltas, interval=REPORT_INTERVAL)
    assert [d for d, _ in points] == deltas
    for d, figure in points:
        assert figure == pytest.approx(gaussian_epsilon(1.0, d), rel=1e-6)


def test_delta_inverts_epsilon() -> None:
    assert delta(GOLDEN, epsilon(GOLDEN, 1e-5)) == pytest.approx(1e-5, rel=1e-6)


# --- properties -------------------------------------------------------------------------

rates = st.floats(0.002, 0.5)
multipliers = st.floats(0.6, 20.0)
counts = st.integers(1, 1500)
deltas = st.floats(1e-9, 1e-3)
few = settings(max_examples=12, deadline=None)


def assert_at_most(smaller: float, larger: float) -> None:
    assert smaller <= larger * (1 + GRID_TOLERANCE) + 1e-6


@few
@given(rates, multipliers, counts, st.integers(1, 500), deltas)
def test_more_steps_never_cost_less(q: float, sigma: float, n: int, more: int, d: float) -> None:
    assert_at_most(epsilon([steps(q, sigma, n)], d), epsilon([steps(q, sigma, n + more)], d))


@few
@given(rates, st.floats(1.0, 2.0), multipliers, counts, deltas)
def test_a_higher_sampling_rate_never_costs_less(
    q: float, factor: float, sigma: float, n: int, d: float
) -> None:
    higher = min(q * factor, 1.0)
    assert_at_most(epsilon([steps(q, sigma, n)], d), epsilon([steps(higher, sigma, n)], d))


@few
@given(rates, multipliers, st.floats(1.0, 2.0), counts, deltas)
def test_more_noise_never_costs_more(
    q: float, sigma: float, factor: float, n: int, d: float
) -> None:
    assert_at_most(epsilon([steps(q, sigma * factor, n)], d), epsilon([steps(q, sigma, n)], d))


@few
@given(rates, multipliers, counts, deltas, st.floats(1.0, 100.0))
def test_a_larger_delta_never_costs_more(
    q: float, sigma: float, n: int, d: float, factor: float
) -> None:
    assert_at_most(epsilon([steps(q, sigma, n)], d * factor), epsilon([steps(q, sigma, n)], d))


@few
@given(rates | st.just(1.0), multipliers, st.integers(2, 1500), deltas, st.data())
def test_splitting_steps_over_events_changes_nothing(
    q: float, sigma: float, n: int, d: float, data: st.DataObject
) -> None:
    first = data.draw(st.integers(1, n - 1))
    split = [steps(q, sigma, first), steps(q, sigma, n - first)]
    assert epsilon(split, d) == epsilon([steps(q, sigma, n)], d)


@few
@given(st.permutations([steps(0.01, 1.0, 200), steps(0.02, 2.0, 50), release(9.0), release(7.0)]))
def test_the_order_of_events_changes_nothing(events: list[PrivacyEvent]) -> None:
    assert epsilon(events, 1e-5) == epsilon(sorted(events, key=repr), 1e-5)


@few
@given(rates, multipliers, counts, deltas, st.floats(3.0, 50.0))
def test_pld_is_never_above_renyi(q: float, sigma: float, n: int, d: float, other: float) -> None:
    events: list[PrivacyEvent] = [steps(q, sigma, n), release(other)]
    assert_at_most(epsilon(events, d), epsilon(events, d, accountant="rdp"))


# --- what is not an ordinary figure ------------------------------------------------------


class ReleaseFromTheFuture(BaseModel):
    kind: str = "from_the_future"


def test_an_unknown_event_is_an_error_and_never_a_zero() -> None:
    unknown = ReleaseFromTheFuture()
    for ask in (
        lambda: epsilon([unknown], 1e-5),  # type: ignore[list-item]
        lambda: delta([NonPrivateRelease(), unknown], 1.0),  # type: ignore[list-item]
        lambda: cross_check([*GOLDEN, unknown], 1e-5),  # type: ignore[list-item]
    ):
        with pytest.raises(PrivacyConfigError, match="ReleaseFromTheFuture"):
            ask()


def test_one_release_without_privacy_makes_everything_infinite() -> None:
    events = [*GOLDEN, NonPrivateRelease()]
    assert cross_check(events, 1e-5) == Epsilons(math.inf, math.inf, math.inf)
    assert epsilon(events, 1e-5, neighboring_relation=NeighboringRelation.REPLACE_ONE) == math.inf
    assert delta(events, 100.0) == 1.0


def test_nothing_released_costs_nothing() -> None:
    assert cross_check([], 1e-5) == Epsilons(0.0, 0.0, 0.0)
    assert delta([], 0.0) == 0.0


@pytest.mark.parametrize("bad", [0.0, 1.0, -1e-5, math.nan, math.inf])
def test_a_delta_outside_the_open_unit_interval_is_refused(bad: float) -> None:
    with pytest.raises(PrivacyConfigError, match="delta"):
        epsilon(GOLDEN, bad)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_an_epsilon_that_is_no_budget_is_refused(bad: float) -> None:
    with pytest.raises(PrivacyConfigError, match="epsilon"):
        delta(GOLDEN, bad)


def test_a_hopeless_plan_is_an_upper_bound_and_does_not_fill_memory() -> None:
    hopeless: list[PrivacyEvent] = [release(0.01)]  # a PLD would take 2 GB
    assert epsilon(hopeless, 1e-5) >= gaussian_epsilon(0.01, 1e-5) > 5000
    assert epsilon(hopeless, 1e-5, neighboring_relation=NeighboringRelation.REPLACE_ONE) == math.inf
    assert cross_check(hopeless, 1e-5).prv is None
    assert delta(hopeless, 1.0) == 1.0
    with pytest.raises(PrivacyConfigError, match="prv"):
        epsilon(hopeless, 1e-5, accountant="prv")


@pytest.mark.parametrize("sigma", [0.25, 0.12, 0.05])
def test_a_widened_grid_still_bounds_from_above(sigma: float) -> None:
    exact = gaussian_epsilon(sigma, 1e-5)
    assert exact <= epsilon([release(sigma)], 1e-5) <= exact * 1.001


def test_renyi_orders_that_do_not_converge_are_left_out_without_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    figure = epsilon([steps(0.5, 0.5, 10)], 1e-5, accountant="rdp")
    assert epsilon([steps(0.5, 0.5, 10)], 1e-5) < figure < 50
    assert not caplog.records


# --- cost --------------------------------------------------------------------------------


def test_asking_after_every_round_builds_each_distribution_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dp_accounting.pld import privacy_loss_distribution

    built = []
    original = privacy_loss_distribution.from_gaussian_mechanism

    def count_builds(**arguments: object) -> object:
        built.append(arguments)
        return original(**arguments)

    monkeypatch.setattr(privacy_loss_distribution, "from_gaussian_mechanism", count_builds)
    one_round, probe = steps(0.0173, 1.37, 5), release(9.1)
    spent = [epsilon([probe] + [one_round] * done, 1e-5) for done in range(1, 11)]
    assert spent == sorted(spent)
    assert len(built) == 2


def test_importing_the_package_loads_no_accountant() -> None:
    code = (
        "import sys, tacit_common.privacy; "
        "sys.exit(any(m in sys.modules for m in ('opacus', 'dp_accounting')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
