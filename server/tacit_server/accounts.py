"""After the last round: each site's account of what the run cost its data, for the report.

In a simulation the ledgers lie on the same disk. In a deployment they stay at the sites, so
the sites are asked, once; what they say goes into the checkpoint and is not asked again.
"""

import math

from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import AccountRequest, Refusal, SiteAccountReply
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.report.account import SiteAccount
from tacit_common.report.participation import SiteReport
from tacit_common.report.recompute import figures_of_site
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_server.exchange import Answer, Failure
from tacit_server.rounds import Federation
from tacit_server.run_log import AccountsCollected

# What no honest account exceeds. Beyond it accountants overflow, or compute for hours: each kind
# of sampled step (a rate and a noise) costs about a second.
_MOST_EVENTS, _MOST_KINDS_OF_STEPS, _MOST_ATOMS = 10_000, 16, 4_096
_NOISE, _SMALLEST_RATE = (1e-6, 1e6), 1e-9
_LARGEST_COUNT = 2**53
_RENYI_ORDER = (1.001, 1e6)


def collect_accounts(federation: Federation) -> AccountsCollected:
    """Ask every participant for its account. None of them has to give one.

    An account that contradicts itself, is not of this study or of the ledger that the site's
    head names, or whose figures cannot be computed, counts as none: a site can withhold its own
    figures from a report, and can keep nobody from writing it.
    """
    study, participants = federation.study, federation.participants
    request = AccountRequest(run=federation.run, study=study)
    nodes = [participant.node_id for participant in participants]
    heads = federation.exchange.heads
    seen = {site: head.seq for site, head in heads.heads.items()}
    accounts: dict[str, SiteAccount] = {}
    missing: dict[str, str] = {}
    answers = federation.exchange.ask(nodes, request, study.federation.deadline_s)
    for participant, answer in zip(participants, answers, strict=True):
        site = participant.site
        account = _account_of(answer)
        if not isinstance(account, SiteAccount):
            missing[site] = account
        elif _is_usable(account, study, heads.newest(site), seen.get(site, 0)):
            accounts[site] = account
        else:
            missing[site] = Failure.UNUSABLE_REPLY.value
    return AccountsCollected(
        sites={one.site: one.declared_units for one in participants},
        accounts=accounts,
        missing=missing,
    )


def _account_of(answer: Answer) -> SiteAccount | str:
    """The account, or the code that says why there is none."""
    match answer.reply:
        case SiteAccountReply(account=account):
            return account
        case Refusal(code=code):
            return code.value
        case Failure() as failure:
            return failure.value
        case _:
            return Failure.UNUSABLE_REPLY.value


def _is_usable(account: SiteAccount, study: Study, newest: SignedHead | None, seen: int) -> bool:
    """Whether it can stand in a report of `study`.

    Its ledger stands between row `seen`, which was known before the question, and `newest`.
    """
    head = account.ledger
    if newest is None or not head.is_genuine():
        return False
    if (head.site, head.public_key) != (newest.site, newest.public_key):
        return False
    if not seen <= head.seq <= newest.seq or (head.seq == newest.seq and head.hash != newest.hash):
        return False
    if not _is_within_bounds(account):
        return False
    try:
        return _has_its_figures(account, study)
    except Exception:  # whatever an accountant may raise at numbers that a site made up
        return False


def _is_within_bounds(account: SiteAccount) -> bool:
    steps = [event for event in account.spent if isinstance(event, PoissonGaussianSteps)]
    noises = [
        event.noise_multiplier
        for event in account.spent
        if isinstance(event, PoissonGaussianSteps | GaussianRelease)
    ]
    counts = (account.reserves, account.never_committed, account.releases)
    order = account.renyi_order
    return (
        len(account.spent) <= _MOST_EVENTS
        and len(steps) <= _MOST_KINDS_OF_STEPS
        and len(account.atoms) <= _MOST_ATOMS
        and all(_NOISE[0] <= noise <= _NOISE[1] for noise in noises)
        and all(step.sampling_rate >= _SMALLEST_RATE for step in steps)
        and all(count <= _LARGEST_COUNT for count in (*counts, *(step.steps for step in steps)))
        and (order is None or _RENYI_ORDER[0] <= order <= _RENYI_ORDER[1])
    )


def _has_its_figures(account: SiteAccount, study: Study) -> bool:
    """Whether the report's own figures follow from it. Raises whatever an accountant raises."""
    report = SiteReport.of_account(
        account, name=account.ledger.site, declared_units=1, rounds_answered=0
    )
    figures = (account.epsilon_run, account.epsilon_total, account.epsilon_after_round)
    if not isinstance(study.privacy, LocalPrivacyPlan):
        return figures == (None, None, None)
    if None in figures or len(account.epsilon_after_round or ()) != study.federation.rounds:
        return False
    return math.isfinite(figures_of_site(report, study.privacy.delta).epsilon)
