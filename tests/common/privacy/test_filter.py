"""The Rényi filter: golden values by other methods, and what its order and budget promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import epsilon, renyi_divergence, renyi_orders
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.filter import (
    events_of,
    order_for,
    passes_filter,
    releases_of,
    renyi_budget,
    renyi_cost,
    renyi_epsilon,
)

DELTA = 1e-5


def steps(q: float, sigma: float, count: int) -> PoissonGaussianSteps:
    return PoissonGaussianSteps(sampling_rate=q, noise_multiplier=sigma, steps=count)


def release(sigma: float) -> GaussianRelease:
    return GaussianRelease(noise_multiplier=sigma)


GOLDEN: list[PrivacyEvent] = [steps(0.01, 1.0, 1000)]


# --- cost --------------------------------------------------------------------------------


@pytest.mark.parametrize(("q", "sigma"), [(0.01, 1.0), (0.1, 0.8), (0.5, 3.0)])
@pytest.mark.parametrize("order", [2, 5, 16])
def test_a_sampled_step_costs_the_binomial_sum_of_mironov_talwar_and_zhang(
    q: float, sigma: float, order: int
) -> None:
    # arXiv 1908.10530, section 3.3, for whole orders: written out by hand.
    terms = (
        math.comb(order, k) * (1 - q) ** (order - k) * q**k * math.exp(k * (k - 1) / (2 * sigma**2))
        for k in range(order + 1)
    )
    expected = math.log(math.fsum(terms)) / (order - 1)
    assert renyi_divergence(q, sigma, float(order)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("q", "sigma", "order"), [(0.02, 1.0, 3.7), (0.3, 2.0, 6.5)])
def test_a_sampled_step_costs_at_most_little_more_than_an_integral_gives(
    q: float, sigma: float, order: float
) -> None:
    # D_α = log ∫ p^α r^(1−α) / (α − 1), p the mixture and r the noise alone.
    x = np.linspace(-60 * sigma, 60 * sigma, 2_000_001)
    log_r = -(x**2) / (2 * sigma**2) - math.log(sigma * math.sqrt(2 * math.pi))
    log_ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
    moment = np.trapezoid(np.exp(order * log_ratio + log_r), x)
    exact = math.log(moment) / (order - 1)
    assert exact <= renyi_divergence(q, sigma, order) <= exact * 1.001


@given(sigma=st.floats(0.3, 100), order=st.sampled_from([1.5, 2.0, 3.7, 32.0]))
def test_a_release_of_all_units_costs_the_closed_form_of_a_gaussian(
    sigma: float, order: float
) -> None:
    cost = renyi_cost(releases_of([release(sigma)]), order)
    assert cost == pytest.approx(order / (2 * sigma**2), rel=1e-9)


@given(
    counts=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    order=st.sampled_from([2.0, 3.7, 12.0]),
)
def test_cost_depends_on_counts_alone(counts: list[int], order: float) -> None:
    split = [steps(0.1, 1.5, count) for count in counts]
    whole = [steps(0.1, 1.5, sum(counts))]
    assert renyi_cost(releases_of(split), order) == renyi_cost(releases_of(whole), order)
    mixed = [*split, release(4.0)]
    assert renyi_cost(releases_of(mixed), order) == renyi_cost(releases_of(mixed[::-1]), order)


def test_a_divergence_that_cannot_be_computed_is_infinite_and_never_free() -> None:
    assert renyi_divergence(0.5, 0.001, 2.0) > 100
    assert renyi_cost(releases_of([release(1e-200)]), 2.0) == math.inf
    assert not passes_filter(releases_of([release(1e-200)]), 2.0, 1e9, DELTA)


@pytest.mark.parametrize("events", [[NonPrivateRelease()], [release(1.0), NonPrivateRelease()]])
def test_a_release_without_privacy_is_not_counted_as_anything(events: list[PrivacyEvent]) -> None:
    with pytest.raises(PrivacyConfigError, match="without privacy"):
        releases_of(events)


def test_an_unknown_event_is_an_error() -> None:
    with pytest.raises(PrivacyConfigError, match="cannot be accounted for"):
        releases_of(["laplace"])  # type: ignore[list-item]


def test_releases_become_the_fewest_events_that_cost_the_same() -> None:
    events = [steps(0.1, 1.5, 4), release(2.0), steps(0.1, 1.5, 6), steps(1.0, 2.0, 2)]
    merged = events_of(releases_of(events))
    assert merged == [steps(0.1, 1.5, 10), steps(1.0, 2.0, 3)]
    assert epsilon(merged, DELTA) == epsilon(events, DELTA)


# --- conversion --------------------------------------------------------------------------


def test_conversion_is_that_of_proposition_12() -> None:
    # By hand at α = 8, δ = 1e-5, R = 0.5: 0.5 + log(7/8) − (log 1e-5 + log 8)/7.
    expected = 0.5 + math.log(7 / 8) - (math.log(1e-5) + math.log(8)) / 7
    assert renyi_epsilon(0.5, 8.0, DELTA) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.5 - 0.1335314 + (11.5129255 - 2.0794415) / 7, abs=1e-6)


def test_the_best_order_gives_the_golden_rdp_figure() -> None:
    # PRIVACY.md 5: RDP 2.101, by dp-accounting's own conversion.
    releases = releases_of(GOLDEN)
    best = min(renyi_epsilon(renyi_cost(releases, order), order, DELTA) for order in renyi_orders())
    assert best == pytest.approx(2.101, abs=1e-3)
    assert best == pytest.approx(epsilon(GOLDEN, DELTA, accountant="rdp"), rel=1e-9)


@given(
    cap=st.floats(0.01, 50), order=st.sampled_from([1.5, 3.0, 17.0]), delta=st.floats(1e-12, 1e-2)
)
def test_a_spent_budget_is_the_cap(cap: float, order: float, delta: float) -> None:
    budget = renyi_budget(order, cap, delta)
    if budget > 0:
        assert renyi_epsilon(budget, order, delta) == pytest.approx(cap, rel=1e-9)


def test_nothing_released_costs_nothing() -> None:
    assert renyi_epsilon(0.0, 8.0, DELTA) == 0.0
    assert renyi_cost({}, 8.0) == 0.0


# --- order -------------------------------------------------------------------------------

plans = st.builds(
    lambda q, sigma, count: [steps(q, sigma, count)],
    st.sampled_from([0.01, 0.1, 1.0]),
    st.sampled_from([0.7, 1.0, 2.0, 8.0]),
    st.integers(1, 1000),
)


@given(plan=plans, cap=st.floats(0.05, 30))
def test_a_plan_that_passes_at_any_order_passes_at_the_one_that_is_chosen(
    plan: list[PrivacyEvent], cap: float
) -> None:
    releases = releases_of(plan)
    chosen = order_for(releases, cap, DELTA)
    assert chosen in renyi_orders()
    passes = [passes_filter(releases, order, cap, DELTA) for order in renyi_orders()]
    assert passes_filter(releases, chosen, cap, DELTA) == any(passes)


@given(plan=plans, cap=st.floats(0.05, 30))
def test_no_order_has_room_for_more_of_such_plans(plan: list[PrivacyEvent], cap: float) -> None:
    releases = releases_of(plan)

    def room(order: float) -> float:
        return renyi_budget(order, cap, DELTA) / renyi_cost(releases, order)

    chosen = room(order_for(releases, cap, DELTA))
    if chosen > 0:
        assert chosen >= max(map(room, renyi_orders())) * (1 - 1e-12)


def test_the_golden_order_and_how_often_the_golden_plan_fits() -> None:
    releases = releases_of(GOLDEN)
    order = order_for(releases, 8.0, DELTA)
    assert order == 3.7
    room = renyi_budget(order, 8.0, DELTA) / renyi_cost(releases, order)
    assert room == pytest.approx(13.62, abs=0.01)
    # What the filter admits is well within the cap by PLD: the price of adaptivity.
    assert epsilon([steps(0.01, 1.0, 13_000)], DELTA) < 8.0


def test_an_order_is_chosen_where_no_order_has_a_budget() -> None:
    order = order_for(releases_of(GOLDEN), 1e-6, DELTA)
    assert renyi_budget(order, 1e-6, DELTA) < 0
    assert not passes_filter(releases_of(GOLDEN), order, 1e-6, DELTA)
