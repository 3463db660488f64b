"""The trade-off function and group privacy: bounds, and right where a closed form exists."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy.accounting import epsilon, gaussian_epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.filter import releases_of, renyi_cost, renyi_epsilon
from tacit_common.privacy.groups import group_epsilon, group_epsilon_by_renyi
from tacit_common.privacy.tradeoff import FALSE_POSITIVE_RATES, trade_off, trade_off_by_renyi

GOLDEN = PoissonGaussianSteps(sampling_rate=0.01, noise_multiplier=1.0, steps=1000)

releases = st.builds(
    PoissonGaussianSteps,
    sampling_rate=st.sampled_from([0.05, 0.5, 1.0]),
    noise_multiplier=st.sampled_from([1.5, 4.0]),
    steps=st.integers(1, 20),
)


def gaussian_rate(alpha: float, mu: float) -> float:
    """1 − G_μ(α) with G_μ(α) = Φ(Φ⁻¹(1 − α) − μ) (Dong, Roth and Su, equation 6)."""
    return float(norm.sf(norm.isf(alpha) - mu)) if 0 < alpha < 1 else alpha


# --- trade-off -------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_a_gaussian_release_has_the_trade_off_of_two_gaussians(noise: float) -> None:
    for alpha, rate in trade_off([GaussianRelease(noise_multiplier=noise)]):
        exact = gaussian_rate(alpha, 1 / noise)
        assert exact - 1e-12 <= rate <= exact + 5e-6


def test_many_gaussian_releases_are_one_with_their_joint_noise() -> None:
    for alpha, rate in trade_off([GaussianRelease(noise_multiplier=4.0)] * 9):
        exact = gaussian_rate(alpha, 3 / 4)
        assert exact - 1e-12 <= rate <= exact + 5e-6


def test_a_sampled_run_is_close_to_its_central_limit() -> None:
    # Bu et al. 2020 (arXiv 1911.11607): T steps at rate q look like one Gaussian release with
    # μ = q·√(T·(e^{1/σ²} − 1)).
    mu = 0.01 * math.sqrt(1000 * (math.e - 1))
    for alpha, rate in trade_off([GOLDEN]):
        assert rate == pytest.approx(gaussian_rate(alpha, mu), abs=0.03)


def test_the_rates_asked_for_include_those_that_attacks_are_judged_at() -> None:
    assert {0.0, 0.001, 0.01, 0.1, 1.0} <= set(FALSE_POSITIVE_RATES)
    assert list(FALSE_POSITIVE_RATES) == sorted(set(FALSE_POSITIVE_RATES))
    assert [alpha for alpha, _ in trade_off([GOLDEN])] == list(FALSE_POSITIVE_RATES)


def test_nothing_released_leaves_guessing() -> None:
    assert trade_off([]) == [(alpha, alpha) for alpha in FALSE_POSITIVE_RATES]
    assert trade_off_by_renyi(0.0, 8.0) == trade_off([])


def test_a_release_without_privacy_tells_everything() -> None:
    assert {rate for _, rate in trade_off([GOLDEN, NonPrivateRelease()])} == {1.0}


@settings(max_examples=8)
@given(first=releases, more=releases)
def test_an_attack_never_does_worse_with_more_and_never_better_than_epsilon_allows(
    first: PrivacyEvent, more: PrivacyEvent
) -> None:
    less, both = trade_off([first]), trade_off([first, more])
    for (alpha, weaker), (_, stronger) in zip(less, both, strict=True):
        assert alpha <= weaker <= stronger + 1e-6 <= 1 + 1e-6
    rates = [rate for _, rate in both]
    assert rates == sorted(rates)
    for delta in (1e-6, 1e-3):
        e = epsilon([first, more], delta)
        for alpha, rate in both:
            assert rate <= delta + math.exp(e) * alpha + 1e-6


@settings(max_examples=8)
@given(event=releases, order=st.sampled_from([2.0, 5.0, 20.0]))
def test_the_trade_off_of_one_renyi_order_is_a_weaker_bound(
    event: PoissonGaussianSteps, order: float
) -> None:
    cost = renyi_cost(releases_of([event]), order)
    by_renyi = trade_off_by_renyi(cost, order)
    for (alpha, rate), (_, exact) in zip(by_renyi, trade_off([event]), strict=True):
        assert exact - 1e-6 <= rate <= 1
        e = renyi_epsilon(cost, order, 1e-3)
        assert rate <= 1e-3 + math.exp(e) * alpha + 1e-3


# --- groups ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("units", "golden"), [(1, 2.13), (2, 4.55), (4, 10.02), (8, 23.08)])
def test_group_figures_are_the_golden_ones(units: int, golden: float) -> None:
    # docs/privacy.md 5. 2.13 was measured on a coarser grid: 2.1245.
    assert group_epsilon([GOLDEN], units, 1e-6) == pytest.approx(golden, abs=0.006)


@pytest.mark.parametrize("units", [1, 2, 5])
def test_a_group_under_unsampled_noise_moves_it_by_as_many_sensitivities(units: int) -> None:
    events = [GaussianRelease(noise_multiplier=8.0)] * 2
    exact = gaussian_epsilon(8 / units / math.sqrt(2), 1e-5)
    assert exact - 1e-9 <= group_epsilon(events, units, 1e-5) <= exact * 1.005


def test_a_mixture_at_rate_one_is_the_gaussian_itself() -> None:
    almost = PoissonGaussianSteps(sampling_rate=1 - 1e-9, noise_multiplier=6.0, steps=3)
    exact = gaussian_epsilon(6 / 3 / math.sqrt(3), 1e-5)
    assert group_epsilon([almost], 3, 1e-5) == pytest.approx(exact, rel=5e-3)


def test_k_times_epsilon_is_not_a_bound_for_k_units() -> None:
    event = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=2.0, steps=20)
    one = group_epsilon([event], 1, 1e-5)
    assert one == epsilon([event], 1e-5, interval=1e-4)
    assert group_epsilon([event], 4, 1e-5) > 4 * one


def test_more_units_never_cost_less() -> None:
    event = PoissonGaussianSteps(sampling_rate=0.2, noise_multiplier=3.0, steps=10)
    figures = [group_epsilon([event], units, 1e-6) for units in (1, 2, 3, 6)]
    assert figures == sorted(figures)
    assert figures[0] < figures[-1] < math.inf


def test_a_group_figure_that_says_nothing_is_infinite() -> None:
    loud = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=0.05, steps=50)
    assert group_epsilon([loud], 8, 1e-6) == math.inf
    assert group_epsilon([NonPrivateRelease()], 2, 1e-6) == math.inf
    assert group_epsilon([], 8, 1e-6) == 0.0


def test_a_group_without_a_unit_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="one unit or more"):
        group_epsilon([GOLDEN], 0, 1e-6)


@settings(max_examples=20)
@given(
    noise=st.floats(2.0, 50.0),
    order=st.sampled_from([3.0, 8.0, 16.0, 64.0]),
    units=st.sampled_from([1, 2, 3, 4, 8]),
)
def test_the_group_figure_of_one_renyi_order_bounds_the_gaussian(
    noise: float, order: float, units: int
) -> None:
    cost = renyi_cost(releases_of([GaussianRelease(noise_multiplier=noise)]), order)
    bound = group_epsilon_by_renyi(cost, order, units, 1e-5)
    assert bound >= gaussian_epsilon(noise / units, 1e-5)
    if units == 1:
        assert bound == renyi_epsilon(cost, order, 1e-5)
    assert (bound == math.inf) == (
        units > 1 and order < 2 ** (math.ceil(math.log2(units)) + 1) and order <= units
    )
