"""From what a run left on disk and in its ledgers to its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from tacit_client.ledger import Charge, Ledger, LedgerHead
from tacit_common.errors import RefusalCode
from tacit_common.privacy.accounting import REPORT_INTERVAL, cross_check, epsilon
from tacit_common.privacy.events import PrivacyEvent
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.report import (
    AccountantFigure,
    Assumption,
    Evaluation,
    Interval,
    LocalPrivacy,
    NoPrivacy,
    Pictures,
    ProbeReport,
    Refusal,
    Report,
    RoundReport,
    Run,
    SiteReport,
    Software,
    StudyRecord,
    statements,
)
from tacit_common.study import LocalPrivacyPlan, NoPrivacyPlan, PluginPlan, StudyFile
from tacit_server.checkpoint import RunState
from tacit_server.run_log import (
    ProbeFinished,
    RoundFinished,
    RunResumed,
    RunStarted,
    WarmStarted,
)
from tacit_simulations.sites import SimulatedSites

_SAMPLER = (
    "Poisson sampling: every record joins every step by its own coin flip, from an AES-256 "
    "generator keyed by the operating system; views are drawn from it too; an empty sample still "
    "adds noise and steps"
)
_NOISE = (
    "Gaussian noise from an AES-256 generator keyed by the operating system, added to a "
    "float64 sum on a lattice of spacing C/(64·√d); no seed controls it"
)


def build_report(
    study: StudyFile,
    schedule: PrivacySchedule,
    state: RunState,
    sites: SimulatedSites,
    *,
    engine: Literal["in-process", "ray"],
    evaluation: Evaluation | None,
    verdicts: Sequence[str],
    pictures: Pictures | None,
) -> Report:
    """The report of a finished run; ε comes from the ledgers, not from the plan."""
    rounds = [event for event in state.events if isinstance(event, RoundFinished)]
    accounts = [_account(sites, index) for index in range(sites.plan.sites)]
    site_reports = [
        _site_report(study, state, sites.plan.declared_records, account, rounds)
        for account in accounts
    ]
    return Report(
        run=_run(study, state, engine, rounds),
        study=StudyRecord.of(study.travelling()),
        software=Software.installed(),
        privacy=_privacy(study, schedule, accounts, site_reports),
        sites=tuple(site_reports),
        initial_validation_loss=next(
            (event.public_loss for event in state.events if isinstance(event, WarmStarted)), None
        ),
        rounds=tuple(_round_report(event) for event in rounds),
        verdicts=tuple(verdicts),
        probes=tuple(
            ProbeReport(
                name=event.kind,
                when=event.when,
                epsilon_per_site=event.epsilon,
                accuracy=Interval.of(event.accuracy),
            )
            for event in state.events
            if isinstance(event, ProbeFinished) and event.accuracy is not None
        ),
        evaluation=evaluation,
        pictures=pictures,
    )


@dataclass(frozen=True)
class _Account:
    """What the ledger of a site says: everything that was reserved, and where it stands."""

    site: str
    charges: list[Charge]
    head: LedgerHead


def _account(sites: SimulatedSites, index: int) -> _Account:
    """Read a site's ledger, verified, once."""
    name = sites.name(index)
    ledger = Ledger(sites.ledger_path(index), site=name)
    try:
        return _Account(name, ledger.charges, ledger.head)
    finally:
        ledger.close()


def _run(
    study: StudyFile,
    state: RunState,
    engine: Literal["in-process", "ray"],
    rounds: list[RoundFinished],
) -> Run:
    warm = sum(event.seconds for event in state.events if isinstance(event, WarmStarted))
    started = next(event.at for event in state.events if isinstance(event, RunStarted))
    return Run(
        name=study.name,
        id=state.run,
        engine=engine,
        status="complete",
        started=started,
        finished=max(event.at for event in state.events),
        rounds_planned=study.federation.rounds,
        rounds_done=len(rounds),
        wall_s=warm + sum(event.seconds for event in rounds),
        resumed=sum(isinstance(event, RunResumed) for event in state.events),
    )


def _site_report(
    study: StudyFile,
    state: RunState,
    declared_records: int,
    account: _Account,
    rounds: list[RoundFinished],
) -> SiteReport:
    name = account.site
    curve, total = _spent(study, state.run, account.charges, len(rounds))
    answered = sum(name in event.answered for event in rounds)
    probed = sum(
        name in event.answered for event in state.events if isinstance(event, ProbeFinished)
    )
    return SiteReport(
        name=name,
        declared_records=declared_records,
        rounds_answered=answered,
        epsilon_after_round=curve,
        epsilon_total=total,
        ledger_head=account.head.hash,
        releases=answered + probed,
    )


def _spent(
    study: StudyFile, run: str, charges: list[Charge], rounds: int
) -> tuple[tuple[float, ...] | None, float | None]:
    """ε after each round and in all, composed from all reserves in the ledger.

    That includes reserves of an earlier run in this folder, whose checkpoints were lost:
    the same records paid for both.
    """
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        return None, None
    total = epsilon([c.event for c in charges], privacy.delta, interval=REPORT_INTERVAL)
    curve = []
    for number in range(1, rounds + 1):
        events = _events_until(run, charges, number)
        # The quick grid overstates a little, and a part cannot cost more than the whole.
        curve.append(min(epsilon(events, privacy.delta), total))
    return tuple(curve), total


def _events_until(run: str, charges: list[Charge], round_number: int) -> list[PrivacyEvent]:
    """What was reserved before the round after this one."""
    events: list[PrivacyEvent] = []
    for charge in charges:
        if charge.run != run:
            events.append(charge.event)
            continue
        later = charge.action == "train" and int(charge.label.split()[1]) > round_number
        if later or (charge.action == "probe" and charge.label.endswith("after")):
            break
        events.append(charge.event)
    return events


def _privacy(
    study: StudyFile,
    schedule: PrivacySchedule,
    accounts: list[_Account],
    site_reports: list[SiteReport],
) -> LocalPrivacy | NoPrivacy:
    steps = study.federation.rounds * study.federation.local_steps
    if isinstance(study.privacy, NoPrivacyPlan) or schedule.noise_multiplier is None:
        return NoPrivacy(
            mode="none",
            plain_statement=statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
            formal_statement=statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
            sampling_rate=study.privacy.sampling_rate,
            steps=steps,
            assumptions=(),
            not_covered=statements.NONE_NOT_COVERED,
        )
    privacy = study.privacy
    totals = [site.epsilon_total or 0.0 for site in site_reports]
    largest = max(totals)
    charges = accounts[totals.index(largest)].charges
    figures = cross_check([charge.event for charge in charges], privacy.delta)
    dp_accounting, opacus = f"dp-accounting {version('dp-accounting')}", version("opacus")
    accountants = [
        AccountantFigure(method="PLD", epsilon=figures.pld, software=dp_accounting),
        AccountantFigure(method="RDP", epsilon=figures.rdp, software=dp_accounting),
    ]
    if figures.prv is not None and math.isfinite(figures.prv):
        accountants.append(
            AccountantFigure(method="PRV", epsilon=figures.prv, software=f"Opacus {opacus}")
        )
    return LocalPrivacy(
        mode="local",
        plain_statement=statements.local_plain_statement(epsilon=largest, delta=privacy.delta),
        formal_statement=statements.local_formal_statement(epsilon=largest, delta=privacy.delta),
        unit=privacy.unit,
        adjacency="zero-out",
        adversary=statements.LOCAL_ADVERSARY,
        transcript=statements.LOCAL_TRANSCRIPT,
        epsilon_target=privacy.epsilon,
        epsilon_spent=largest,
        delta=privacy.delta,
        l2_clip_norm=privacy.l2_clip_norm,
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=schedule.noise_multiplier,
        steps=steps,
        sampler=_SAMPLER,
        noise=_NOISE,
        accountants=tuple(accountants),
        assumptions=_assumptions(study),
        not_covered=(*statements.LOCAL_NOT_COVERED, *statements.SIMULATION_NOT_COVERED),
    )


def _assumptions(study: StudyFile) -> tuple[Assumption, ...]:
    own_objective = isinstance(study.objective, PluginPlan)
    return (
        Assumption(
            text="No record is held by two sites.",
            held=True,
            why="The simulation dealt every record to exactly one site.",
        ),
        Assumption(
            text="The order and the choice of hyper-parameters did not depend on these records.",
            held=None,
            why="Only who wrote the study knows; earlier trials on the same records add up.",
        ),
        Assumption(
            text="The objective's loss of a record depends on that record alone.",
            held=None if own_objective else True,
            why="The plug-in declares it; run tacit_common.testing.check_objective on it."
            if own_objective
            else "The conformance suite checks it for every built-in objective.",
        ),
    )


def _round_report(event: RoundFinished) -> RoundReport:
    codes = {code.value for code in RefusalCode}
    return RoundReport(
        number=event.round,
        asked=tuple(event.asked),
        answered=tuple(event.answered),
        refused=tuple(
            Refusal(site=site, code=RefusalCode(code))
            for site, code in event.failed.items()
            if code in codes
        ),
        seconds=event.seconds,
        mean_update_norm=event.update_norm,
        validation_loss=event.public_loss,
        training_loss=event.train_loss,
    )
