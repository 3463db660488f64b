"""One approval is for one run of one study, and for the ε that a person was shown.

The attack: consent was bound to a study alone, so a server ran a study of ε = 1 that was
agreed to once until the whole cap of ε = 8 was gone: in new runs, or asking one round again.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tacit_client.policy import SitePolicy
from tacit_client.policy.approvals import Approvals
from tacit_client.policy.outline import outline
from tacit_client.policy.sections import Consent
from tacit_client.site import Site
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.messages import DescribeRequest, TrainReply, TrainRequest
from tacit_common.privacy.accounting import epsilon
from tacit_common.study import Study

MakeStudy = Callable[..., Study]
Ask = Callable[..., TrainRequest]
Open = Callable[..., Site]

DELTA = 1e-5


def policy(*, cap: float = 50.0, of_one: float = 50.0, consent: bool = True) -> SitePolicy:
    asked = SitePolicy.rehearsal(
        unit="record", epsilon_cap=cap, delta=DELTA, allow_non_private=False
    )
    return asked.model_copy(
        update={
            "study": asked.study.model_copy(update={"epsilon_cap": of_one}),
            "consent": Consent(approval="each study" if consent else "none"),
        }
    )


@pytest.fixture
def study(make_study: MakeStudy) -> Study:
    """ε = 1 in two rounds."""
    return make_study("privacy.epsilon=1.0")


@pytest.fixture
def site_under(make_site: Callable[..., Site], tmp_path: Path) -> Open:
    """`site_under(policy)`: a site that asks `approvals` of its folder."""

    def make(asked: SitePolicy) -> Site:
        return replace(make_site(policy=asked), approvals=approvals_in(tmp_path))

    return make


def approvals_in(folder: Path) -> Approvals:
    return Approvals(folder, coordinator="c" * 64)


def agree(site: Site, study: Study) -> None:
    """As `tacit site approve` does."""
    assert site.approvals is not None
    shown = outline(study, site.policy, None)
    site.approvals.approve(study, epsilon=shown.epsilon, delta=DELTA, shown=shown.text())


def code_of(site: Site, request: TrainRequest) -> RefusalCode:
    with pytest.raises(SiteRefusal) as refused:
        site.answer(request)
    return refused.value.code


def spent(site: Site) -> float:
    return epsilon(site.ledger.events, DELTA)


def again(request: TrainRequest, train_request: Ask, number: int) -> TrainRequest:
    """The same round with other parameters."""
    vector = request.parameters + np.float32(number * 1e-3)
    plan = request.plan
    return train_request(plan.study, vector, run=plan.run, round=plan.round)


def test_one_approval_is_not_spent_by_one_run_after_another(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    site = site_under(policy())
    agree(site, study)
    assert isinstance(site.answer(train_request(study, run="run-0")), TrainReply)
    for number in range(1, 4):
        request = train_request(study, run=f"run-{number}")
        assert code_of(site, request) is RefusalCode.APPROVAL
    site.answer(train_request(study, run="run-0", round=2))  # what was agreed to goes on
    assert spent(site) <= 1.01


def test_one_approval_is_not_spent_by_one_round_asked_again_and_again(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    site = site_under(policy())
    agree(site, study)
    first = train_request(study)
    site.answer(first)
    site.answer(again(first, train_request, 1))  # paid again, out of what was agreed to
    assert code_of(site, again(first, train_request, 2)) is RefusalCode.BUDGET
    assert code_of(site, train_request(study, round=2)) is RefusalCode.BUDGET
    assert spent(site) <= 1.01


def test_without_consent_the_studys_bound_holds_for_all_its_runs(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    site = site_under(policy(of_one=1.0, consent=False))
    site.answer(train_request(study, run="run-0"))
    assert code_of(site, train_request(study, run="run-1")) is RefusalCode.BUDGET
    first = train_request(study, run="run-0")
    assert code_of(site, again(first, train_request, 1)) is RefusalCode.BUDGET
    site.answer(train_request(study, run="run-0", round=2))
    assert spent(site) <= 1.01


def test_runs_share_the_studys_bound_until_it_is_reached(
    site_under: Open, study: Study, make_study: MakeStudy, train_request: Ask
) -> None:
    site = site_under(policy(of_one=1.6, consent=False))
    site.answer(train_request(study, run="run-0"))
    site.answer(train_request(study, run="run-1"))  # ε of two grows more slowly than their number
    assert code_of(site, train_request(study, run="run-2")) is RefusalCode.BUDGET
    site.ledger.close_run("run-0")  # gives back what that run has not paid
    site.ledger.close_run("run-1")
    site.answer(train_request(study, run="run-2"))
    site.answer(train_request(make_study("privacy.epsilon=1.0", "seed=9")))  # has its own bound


def test_a_second_run_waits_for_a_second_consent_and_does_not_take_the_firsts(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    site = site_under(policy())
    approvals = site.approvals
    assert approvals is not None
    agree(site, study)
    site.answer(train_request(study, run="one"))
    assert code_of(site, train_request(study, run="two")) is RefusalCode.APPROVAL
    assert approvals.pending() == (study,)
    agree(site, study)
    site.answer(train_request(study, run="one", round=2))  # goes on under its own
    site.answer(train_request(study, run="two"))
    assert [found.run for found in approvals.all()] == ["one", "two"]
    assert code_of(site, train_request(study, run="three")) is RefusalCode.APPROVAL


def test_a_run_is_not_taken_for_one_that_paid_nothing(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    """A question, or a round that the ledger refuses, does not use the consent up."""
    site = site_under(policy())
    agree(site, study)
    site.answer(DescribeRequest(study))
    assert code_of(replace_policy(site, cap=0.5), train_request(study, run="none")) is (
        RefusalCode.BUDGET
    )
    site.answer(train_request(study, run="one"))
    site.answer(DescribeRequest(study, run="one"))  # it goes on
    assert code_of(site, DescribeRequest(study)) is RefusalCode.APPROVAL  # another would not


def replace_policy(site: Site, **asked: Any) -> Site:
    return replace(site, policy=policy(**asked))


def test_a_run_that_is_resumed_keeps_its_consent(
    site_under: Open, study: Study, train_request: Ask
) -> None:
    first = site_under(policy())
    agree(first, study)
    request = train_request(study)
    given = first.answer(request)
    resumed = site_under(policy())  # a new process, on the same folder
    repeated = resumed.answer(request)
    assert isinstance(given, TrainReply)
    assert isinstance(repeated, TrainReply)
    assert np.array_equal(given.update, repeated.update)
    resumed.answer(train_request(study, round=2))
    assert resumed.ledger.charges[-1].label == "round 2"


def test_two_processes_that_begin_two_runs_at_once_share_one_consent(
    site_under: Open, study: Study, train_request: Ask, tmp_path: Path
) -> None:
    """Both have asked `require_approved` before either pays: the second is refused as it pays."""
    site, other = site_under(policy()), site_under(policy())
    agree(site, study)
    taken, late = train_request(study, run="one"), train_request(study, run="two")
    other.require_allowed(study, run="two")
    site.answer(taken)
    with pytest.raises(SiteRefusal) as refused:
        other._pay(late)
    assert refused.value.code is RefusalCode.APPROVAL
    assert {charge.run for charge in other.ledger.charges} == {"one"}
    assert [found.run for found in approvals_in(tmp_path).all()] == ["one"]


def test_a_study_that_nobody_agreed_to_costs_no_accounting(
    site_under: Open, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two million steps take a minute to account for, and a new study is made in no time."""

    def expensive(*_: object) -> None:
        raise AssertionError("a study was accounted for that nobody agreed to")

    site = site_under(policy())
    monkeypatch.setattr("tacit_client.policy.model.calibrate", expensive)
    with pytest.raises(SiteRefusal) as refused:
        site.answer(DescribeRequest(study))
    assert refused.value.code is RefusalCode.APPROVAL
    assert site.approvals is not None
    assert site.approvals.pending() == (study,)
