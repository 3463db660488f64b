"""The policy: what a site allows depends on the charge and the ledger, on nothing else."""

import math
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from tacit_client.policy import SitePolicy
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.ledger_chain import Atom, Cap, Charge
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.plan import calibrate
from tacit_common.privacy.spend import Spend
from tacit_common.study import Study

DELTA = 1e-5
ROUND = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.2, steps=10)
NOTHING = NonPrivateRelease()


def policy(cap: float, *, delta: float = DELTA, allow_non_private: bool = False) -> SitePolicy:
    return SitePolicy.rehearsal(
        unit="record", epsilon_cap=cap, delta=delta, allow_non_private=allow_non_private
    )


def charge(
    event: PrivacyEvent,
    cap: Cap | None,
    *,
    planned: tuple[PrivacyEvent, ...] | None = None,
    run: str = "run",
    number: int = 0,
) -> Charge:
    return Charge(
        key=f"{run} {number}",
        run=run,
        study="study",
        study_digest="d" * 64,
        action="train",
        label=f"round {number}",
        unit="record",
        event=event,
        planned=planned or (event,),
        atoms=("a0",),
        cap=cap,
    )


def spend_of(*charges: Charge) -> Spend:
    spend = Spend()
    spend.add_atom(Atom(atom="a0", lineage="scans", parents=(), tags_sha256="0" * 64))
    for one in charges:
        spend.add(one)
    return spend


def refusal(site: SitePolicy, spend: Spend, one: Charge) -> RefusalCode | None:
    try:
        site.check(spend, one)
    except SiteRefusal as refused:
        return refused.code
    return None


def test_the_cap_holds_for_everything_ever_spent_and_not_for_the_proposal_alone() -> None:
    alone = epsilon([ROUND], DELTA, interval=REPORT_INTERVAL)
    site = policy(alone * 1.4)
    first = charge(ROUND, site.cap, run="first")
    second = charge(ROUND, site.cap, run="second")
    assert refusal(site, spend_of(), first) is None
    assert refusal(site, spend_of(first), second) is RefusalCode.BUDGET
    roomy = policy(alone * 4)
    first, second = (charge(ROUND, roomy.cap, run=run) for run in ("first", "second"))
    assert refusal(roomy, spend_of(first), second) is None


def test_the_last_release_of_a_plan_that_exactly_fits_is_allowed(
    make_study: Callable[..., Study],
) -> None:
    probe = '[{ kind = "ridge", classes = 10, epsilon = 1.0 }]'
    schedule = calibrate(make_study(f"probes={probe}"))
    site = policy(schedule.planned_epsilon)
    spend = spend_of()
    events = schedule.events_after(schedule.rounds, len(schedule.probe_releases))
    assert len(events) == 4
    for number, event in enumerate(events):
        one = charge(event, site.cap, planned=schedule.planned, number=number)
        site.check(spend, one)
        spend.add(one)
    beyond = charge(schedule.round_event, site.cap, planned=schedule.planned, number=9)
    assert refusal(site, spend, beyond) is RefusalCode.BUDGET


@pytest.mark.parametrize("study_delta", [1e-9, 1e-3])
def test_the_cap_is_held_at_the_policys_delta_whatever_the_studys(
    make_study: Callable[..., Study], study_delta: float
) -> None:
    schedule = calibrate(make_study(f"privacy.delta={study_delta}"))
    at_the_policys = epsilon(schedule.planned, DELTA, interval=REPORT_INTERVAL)
    for cap, allowed in ((at_the_policys, True), (math.nextafter(at_the_policys, 0), False)):
        site = policy(cap)
        one = charge(schedule.round_event, site.cap, planned=schedule.planned)
        assert (refusal(site, spend_of(), one) is None) is allowed


def test_a_charge_for_another_cap_than_the_sites_is_refused() -> None:
    generous = Cap(epsilon=100.0, delta=DELTA)
    assert refusal(policy(8.0), spend_of(), charge(ROUND, generous)) is RefusalCode.POLICY
    assert refusal(policy(8.0), spend_of(), charge(ROUND, None)) is RefusalCode.POLICY


def test_a_refusal_says_which_atom_and_how_far() -> None:
    site = policy(0.5)
    with pytest.raises(SiteRefusal, match=r"cap of ε = 0\.5: atom a0 would come to ε = 1\.975"):
        site.check(spend_of(), charge(ROUND, site.cap))


def test_checking_changes_nothing() -> None:
    site, spend = policy(8.0), spend_of()
    before = spend.of_atom("a0", site.cap)
    for _ in range(3):
        site.check(spend, charge(ROUND, site.cap))
    assert spend.of_atom("a0", site.cap) == before


def test_without_privacy_a_policy_has_to_allow_it_by_name() -> None:
    nothing = charge(NOTHING, None)
    assert refusal(policy(1e6), spend_of(), nothing) is RefusalCode.POLICY
    spent = spend_of(charge(ROUND, Cap(epsilon=8.0, delta=DELTA)))
    assert refusal(policy(1e-6, allow_non_private=True), spent, nothing) is None


def test_after_a_release_without_privacy_no_cap_can_be_kept() -> None:
    generous = policy(1e6, allow_non_private=True)
    spend = spend_of(charge(NOTHING, None))
    quiet = charge(GaussianRelease(noise_multiplier=100.0), generous.cap, run="second")
    assert refusal(generous, spend, quiet) is RefusalCode.BUDGET


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
    sound = policy(1.0).model_dump()
    SitePolicy.model_validate(sound)
    with pytest.raises(ValidationError):
        SitePolicy.model_validate({**sound, **wrong})


@pytest.mark.parametrize("field", ["epsilon_cap", "delta", "allow_non_private"])
def test_no_field_of_a_policy_has_a_default(field: str) -> None:
    sound = policy(1.0).model_dump()
    del sound[field]
    with pytest.raises(ValidationError, match="Field required"):
        SitePolicy.model_validate(sound)
