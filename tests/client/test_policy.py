"""The policy: what a site allows depends on the plan and the ledger, on nothing else."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tacit_client.policy import SitePolicy
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.privacy.accounting import PLANNING_INTERVAL, REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.plan import calibrate
from tacit_common.study import Study

DELTA = 1e-5
ROUND = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.2, steps=10)


def policy(cap: float, *, allow_non_private: bool = False) -> SitePolicy:
    return SitePolicy(epsilon_cap=cap, delta=DELTA, allow_non_private=allow_non_private)


def refusal(cap: float, spent: list[PrivacyEvent], proposed: PrivacyEvent) -> RefusalCode | None:
    try:
        policy(cap).check(spent, proposed)
    except SiteRefusal as refused:
        return refused.code
    return None


def test_the_cap_holds_for_everything_ever_spent_and_not_for_the_proposal_alone() -> None:
    one, two = (epsilon([ROUND] * n, DELTA, interval=REPORT_INTERVAL) for n in (1, 2))
    between = (one + two) / 2
    assert refusal(between, [], ROUND) is None
    assert refusal(between, [ROUND], ROUND) is RefusalCode.BUDGET
    assert refusal(two * 1.01, [ROUND], ROUND) is None


def test_a_cap_is_decided_on_the_report_grid_where_the_planning_grid_is_too_coarse() -> None:
    fine = epsilon([ROUND] * 3, DELTA, interval=REPORT_INTERVAL)
    coarse = epsilon([ROUND] * 3, DELTA, interval=PLANNING_INTERVAL)
    assert fine < coarse  # else this test shows nothing
    assert refusal((fine + coarse) / 2, [ROUND] * 2, ROUND) is None
    assert refusal(fine, [ROUND] * 2, ROUND) is None
    assert refusal(math.nextafter(fine, 0), [ROUND] * 2, ROUND) is RefusalCode.BUDGET


def test_the_last_release_of_a_plan_that_exactly_fits_is_allowed(
    make_study: Callable[..., Study],
) -> None:
    probe = '[{ kind = "ridge", classes = 10, epsilon = 1.0 }]'
    study = make_study(f"probes={probe}")
    schedule = calibrate(study)
    site = policy(schedule.planned_epsilon)
    events = schedule.events_after(schedule.rounds, len(schedule.probe_releases))
    assert len(events) == 4
    for number, event in enumerate(events):
        site.check(events[:number], event)
    with pytest.raises(SiteRefusal) as refused:
        site.check(events, schedule.round_event)
    assert refused.value.code is RefusalCode.BUDGET


@settings(max_examples=25)  # each has noise of its own, so nothing is cached
@given(
    sigma=st.floats(0.5, 50.0),
    cap=st.floats(0.05, 20.0),
    spent=st.integers(0, 3),
)
def test_a_plan_is_allowed_exactly_when_the_total_stays_within_the_cap(
    sigma: float, cap: float, spent: int
) -> None:
    event = GaussianRelease(noise_multiplier=sigma)
    total = epsilon([event] * (spent + 1), DELTA, interval=REPORT_INTERVAL)
    allowed = refusal(cap, [event] * spent, event) is None
    assert allowed == (total <= cap)


def test_without_privacy_a_policy_has_to_allow_it_by_name() -> None:
    nothing = NonPrivateRelease()
    with pytest.raises(SiteRefusal) as refused:
        policy(1e6).check([], nothing)
    assert refused.value.code is RefusalCode.POLICY
    policy(1e-6, allow_non_private=True).check([ROUND] * 3, nothing)


def test_after_a_release_without_privacy_no_cap_can_be_kept() -> None:
    generous = policy(1e6, allow_non_private=True)
    with pytest.raises(SiteRefusal) as refused:
        generous.check([NonPrivateRelease()], GaussianRelease(noise_multiplier=100.0))
    assert refused.value.code is RefusalCode.BUDGET


@pytest.mark.parametrize(
    "wrong",
    [
        {"epsilon_cap": 0.0},
        {"epsilon_cap": -1.0},
        {"epsilon_cap": math.inf},
        {"epsilon_cap": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"allow_everything": True},
    ],
    ids=str,
)
def test_a_policy_that_bounds_nothing_is_refused(wrong: dict[str, float]) -> None:
    sound = {"epsilon_cap": 1.0, "delta": DELTA, "allow_non_private": False}
    SitePolicy.model_validate(sound)
    with pytest.raises(ValidationError):
        SitePolicy.model_validate({**sound, **wrong})


@pytest.mark.parametrize("field", ["epsilon_cap", "delta", "allow_non_private"])
def test_no_field_of_a_policy_has_a_default(field: str) -> None:
    sound = {"epsilon_cap": 1.0, "delta": DELTA, "allow_non_private": False}
    del sound[field]
    with pytest.raises(ValidationError, match="Field required"):
        SitePolicy.model_validate(sound)
