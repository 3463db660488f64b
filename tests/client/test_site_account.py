"""A site's account of a run: what its ledger says, nothing of its records, and only if allowed."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tacit_client.policy import SitePolicy
from tacit_client.policy.approvals import Approvals
from tacit_client.policy.hours import Hours
from tacit_client.policy.sections import Consent
from tacit_client.site import Site
from tacit_common.data import DataSource
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.ledger_chain import verify_rows
from tacit_common.messages import (
    ACCOUNT,
    AccountRequest,
    SiteAccountReply,
    TrainRequest,
    message_type,
)
from tacit_common.report.account import SiteAccount, site_account
from tacit_common.report.recompute import Composition
from tacit_common.study import Study
from tacit_common.wire import decode_reply, decode_request, encode

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Ask = Callable[..., TrainRequest]


def account_of(site: Site, study: Study, run: str = "run") -> SiteAccount:
    reply = site.answer(AccountRequest(run=run, study=study))
    assert isinstance(reply, SiteAccountReply)
    return reply.account


def test_the_account_is_what_anybody_reads_in_the_ledger_s_export(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    site, study = make_site(), make_study()
    for number in (1, 2):
        site.answer(train_request(study, round=number))
    ledger = verify_rows(site.ledger.export().rows)
    expected = site_account(ledger, run="run", rounds_done=2, delta=1e-5)
    given = account_of(site, study)
    assert given == expected
    assert given.releases == 2
    assert given.epsilon_total is not None
    assert given.epsilon_total > 0
    assert given.ledger == site.ledger.head
    assert given.ledger.is_genuine()


def test_giving_an_account_costs_nothing_writes_nothing_and_reads_no_record(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study, site = make_study(), make_site()
    site.answer(train_request(study))
    before = site.ledger.export()
    first = account_of(site, study)
    object.__setattr__(site, "source", Unreadable())
    assert account_of(site, study) == first
    assert site.ledger.export() == before


class Unreadable(DataSource):
    def __len__(self) -> int:
        raise AssertionError("the data was counted")

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a record was read")

    def unit_of(self, index: int) -> int:
        raise AssertionError("a unit was looked up")


def test_one_record_more_changes_nothing_in_the_account_but_the_signed_head(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study()
    accounts = []
    for records in (40, 41):
        site = make_site(records=records, folder=f"with {records}")
        site.answer(train_request(study))
        accounts.append(account_of(site, study))
    smaller, larger = (a.model_dump(exclude={"ledger"}) for a in accounts)
    assert smaller == larger
    assert accounts[0].ledger.seq == accounts[1].ledger.seq


def test_a_site_whose_policy_keeps_accounts_back_refuses_with_a_code_alone(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=100.0, delta=1e-5, allow_non_private=False
    )
    allow = policy.allow.model_copy(update={"releases": ("update", "probe")})
    site = make_site(policy=policy.model_copy(update={"allow": allow}))
    study = make_study()
    site.answer(train_request(study))
    with pytest.raises(SiteRefusal) as refused:
        site.answer(AccountRequest(run="run", study=study))
    assert refused.value.code is RefusalCode.POLICY


def test_what_was_also_released_without_privacy_has_no_account_under_privacy(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, no_privacy: str
) -> None:
    site, study, plain = make_site(), make_study(), make_study(no_privacy)
    site.answer(train_request(study))
    site.answer(train_request(plain, run="another"))
    with pytest.raises(SiteRefusal, match="without differential privacy") as refused:
        site.answer(AccountRequest(run="run", study=study))
    assert refused.value.code is RefusalCode.BUDGET
    assert account_of(site, plain, run="another").epsilon_total is None


def test_no_account_is_given_of_a_run_that_the_study_never_had_here(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    """Else any study, run or not, would open the ledger, and one of a million rounds for long."""
    site, study = make_site(), make_study()
    site.answer(train_request(study))
    for asked, run in ((study, "never"), (make_study("federation.rounds=1000000"), "run")):
        with pytest.raises(SiteRefusal, match="has not had here") as refused:
            site.answer(AccountRequest(run=run, study=asked))
        assert refused.value.code is RefusalCode.POLICY


def test_an_account_is_given_at_any_hour_and_never_without_consent(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, tmp_path: Path
) -> None:
    site, study = make_site(), make_study()
    site.answer(train_request(study))
    asking = site.policy.model_copy(
        update={
            "consent": Consent(approval="each study"),
            "hours": Hours.model_validate({"opens": "08:00", "closes": "09:00", "timezone": "UTC"}),
        }
    )
    approvals = Approvals(tmp_path, coordinator="c" * 64)
    late = datetime(2026, 1, 1, 12, tzinfo=UTC)
    site = replace(site, policy=asking, approvals=approvals, clock=lambda: late)
    with pytest.raises(SiteRefusal) as refused:
        account_of(site, study)
    assert refused.value.code is RefusalCode.APPROVAL
    approvals.approve(study, epsilon=8.0, delta=1e-5, shown="")
    assert account_of(site, study).releases == 1


def test_rounds_that_were_not_charged_are_not_computed(
    make_site: MakeSite,
    make_study: MakeStudy,
    train_request: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site, study = make_site(), make_study("federation.rounds=400", "federation.local_steps=1")
    site.answer(train_request(study))
    computed: list[int] = []
    real = Composition.epsilon

    def counted(self: Composition, *arguments: Any, **options: Any) -> float:
        computed.append(1)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Composition, "epsilon", counted)
    figures = account_of(site, study).epsilon_after_round
    assert figures is not None
    assert len(figures) == 400
    assert len(set(figures)) == 1
    assert len(computed) < 5


def test_request_and_account_cross_the_wire_unchanged(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    site, study = make_site(), make_study()
    site.answer(train_request(study))
    request = AccountRequest(run="run", study=study)
    assert message_type(request) == ACCOUNT
    assert decode_request(encode(request)) == request
    reply = site.answer(request)
    assert decode_reply(encode(reply)) == reply


def test_the_fields_of_an_account_are_these_and_no_others() -> None:
    """What may leave a site is a list: a new field has to be added here as well."""
    assert set(SiteAccount.model_fields) == {
        "atoms",
        "spent",
        "composition",
        "renyi_order",
        "epsilon_after_round",
        "epsilon_run",
        "epsilon_total",
        "epsilon_cap",
        "reserves",
        "never_committed",
        "releases",
        "ledger",
    }
