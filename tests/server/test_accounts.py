"""Collecting the accounts of sites: what counts as one, and that nobody can hold a report up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tacit_common.errors import RefusalCode
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import (
    AccountRequest,
    Refusal,
    Reply,
    Request,
    SiteAccountReply,
    SiteDescription,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
)
from tacit_common.privacy.plan import calibrate
from tacit_common.report.account import SiteAccount
from tacit_common.study import Study
from tacit_common.witness import HeadBook
from tacit_server import accounts as module
from tacit_server.accounts import collect_accounts
from tacit_server.cohort import Participant
from tacit_server.exchange import Answer, Failure
from tacit_server.rounds import Federation
from tacit_server.run_log import LOGGED_EVENT, AccountsCollected
from tacit_server.strategies import build_strategy

MakeStudy = Callable[..., Study]
HeadsOf = Callable[..., list[SignedHead]]


@dataclass
class Site:
    """An exchange with one site, node 1, which answers as told; its answer shows `shown`."""

    reply: Reply | Failure
    shown: SignedHead | None = None
    heads: HeadBook = field(default_factory=HeadBook)
    asked: list[Request] = field(default_factory=list)

    def node_ids(self) -> list[int]:
        return [1]

    def site_of(self, node: int) -> str | None:
        return "site-0"

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        self.asked.append(request)
        for node in nodes:
            if self.shown is not None:
                self.heads.observe(self.shown)
            yield Answer(node, self.reply)


def collected(study: Study, site: Site) -> AccountsCollected:
    participants = [Participant(1, "site-0", 300)]
    strategy = build_strategy(study.federation.strategy, PluginTable())
    return collect_accounts(
        Federation("run", study, calibrate(study), participants, site, strategy)
    )


def account(head: SignedHead, **changes: object) -> SiteAccount:
    release = GaussianRelease(noise_multiplier=5.0)
    fields = {
        "atoms": ("a0",),
        "spent": (release,),
        "composition": "plan",
        "renyi_order": None,
        "epsilon_after_round": (0.5, 0.8),
        "epsilon_run": 0.8,
        "epsilon_total": 0.8,
        "epsilon_cap": 4.0,
        "reserves": 2,
        "never_committed": 0,
        "releases": 2,
        "ledger": head,
        **changes,
    }
    return SiteAccount.model_construct(**fields)  # as a hostile site may send it


@pytest.fixture
def heads(heads_of: HeadsOf) -> list[SignedHead]:
    return heads_of("site-0", 5)


def test_an_account_is_kept_with_who_gave_it(
    make_study: MakeStudy, heads: list[SignedHead]
) -> None:
    study, given = make_study(), account(heads[4])
    site = Site(SiteAccountReply(account=given), shown=heads[4])
    event = collected(study, site)
    assert event.accounts == {"site-0": given}
    assert event.sites == {"site-0": 300}
    assert event.missing == {}
    assert site.asked == [AccountRequest(run="run", study=study)]
    # It comes back from a checkpoint as it was, to the last bit of every ε.
    assert LOGGED_EVENT.validate_json(event.model_dump_json()) == event


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Refusal(code=RefusalCode.POLICY), "policy"),
        (Failure.NO_ANSWER, "no_answer"),
        (Failure.UNTRUSTED_LEDGER, "untrusted_ledger"),
        (SiteDescription(site="site-0", declared_units=3, tacit_version="1"), "unusable_reply"),
    ],
)
def test_a_site_that_gives_none_is_noted_with_its_reason(
    reply: Reply | Failure, code: str, make_study: MakeStudy
) -> None:
    event = collected(make_study(), Site(reply))
    assert (event.accounts, event.missing) == ({}, {"site-0": code})


LIES: dict[str, dict[str, object]] = {
    "a part above the whole": {"epsilon_run": 0.9},
    "no total": {"epsilon_total": None},
    "no curve": {"epsilon_after_round": None},
    "a curve of another study": {"epsilon_after_round": (0.8,)},
    "more failures than requests": {"never_committed": 3},
    "no finite ε": {"spent": (NonPrivateRelease(),)},
    "a filter without an order": {"composition": "filter"},
}


@pytest.mark.parametrize("lie", LIES)
def test_an_account_that_contradicts_itself_or_the_study_counts_as_none(
    lie: str, make_study: MakeStudy, heads: list[SignedHead]
) -> None:
    reply = SiteAccountReply.model_construct(account=account(heads[4], **LIES[lie]))
    event = collected(make_study(), Site(reply, shown=heads[4]))
    assert event.missing == {"site-0": "unusable_reply"}


STEPS = PoissonGaussianSteps(sampling_rate=0.5, noise_multiplier=1.0, steps=5)
HOSTILE: dict[str, dict[str, object]] = {
    "next to no noise": {"spent": (STEPS.model_copy(update={"noise_multiplier": 1e-300}),)},
    "next to no noise on a sum": {"spent": (GaussianRelease(noise_multiplier=1e-300),)},
    "endless noise": {"spent": (STEPS.model_copy(update={"noise_multiplier": 1e300}),)},
    "more steps than a float holds": {"spent": (STEPS.model_copy(update={"steps": 10**400}),)},
    "next to no sampling": {"spent": (STEPS.model_copy(update={"sampling_rate": 1e-310}),)},
    "a boundless order": {"spent": (STEPS,), "composition": "filter", "renyi_order": 1e308},
    "an order next to one": {"spent": (STEPS,), "composition": "filter", "renyi_order": 1 + 1e-15},
    "counts that no float holds": {"reserves": 10**400, "releases": 10**400},
    "hours of accounting": {
        "spent": tuple(
            PoissonGaussianSteps(sampling_rate=0.1 + i * 1e-4, noise_multiplier=0.5, steps=1)
            for i in range(300)
        )
    },
    "a flood of releases": {"spent": (GaussianRelease(noise_multiplier=1e5),) * 20_000},
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_an_account_made_to_break_the_accountants_costs_nobody_the_run(
    attack: str, make_study: MakeStudy, heads: list[SignedHead]
) -> None:
    given = account(heads[4], **HOSTILE[attack])
    reply = SiteAccountReply.model_construct(account=given)
    event = collected(make_study(), Site(reply, shown=heads[4]))
    assert (event.accounts, event.missing) == ({}, {"site-0": "unusable_reply"})


@pytest.mark.parametrize("error", [ZeroDivisionError, OverflowError, TypeError, MemoryError])
def test_whatever_an_accountant_raises_the_account_counts_as_none(
    error: type[Exception],
    make_study: MakeStudy,
    heads: list[SignedHead],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(module, "figures_of_site", broken)
    reply = SiteAccountReply(account=account(heads[4]))
    event = collected(make_study(), Site(reply, shown=heads[4]))
    assert event.missing == {"site-0": "unusable_reply"}


def test_an_account_with_an_epsilon_is_none_of_a_study_without_privacy(
    make_study: MakeStudy, no_privacy: str, heads: list[SignedHead]
) -> None:
    reply = SiteAccountReply(account=account(heads[4]))
    event = collected(make_study(no_privacy), Site(reply, shown=heads[4]))
    assert event.missing == {"site-0": "unusable_reply"}


@pytest.mark.parametrize(
    "attack", ["an older ledger", "a newer one", "another fork", "another key", "no signature"]
)
def test_an_account_of_another_ledger_than_the_one_that_was_seen_counts_as_none(
    attack: str, make_study: MakeStudy, heads_of: HeadsOf, heads: list[SignedHead]
) -> None:
    head = {
        "an older ledger": heads[1],
        "a newer one": heads[4],
        "another fork": heads_of("site-0", 4, fork="other")[3],
        "another key": heads_of("site-0", 4, signer="forger")[3],
        "no signature": heads[3].model_copy(update={"signature": "0" * 128}),
    }[attack]
    site = Site(SiteAccountReply(account=account(head)), shown=heads[3])
    site.heads.observe(heads[2])
    assert collected(make_study(), site).missing == {"site-0": "unusable_reply"}
