"""From what a run left on disk and in its ledgers to its report."""

from collections.abc import Sequence
from typing import Literal

from tacit_client.ledger import read_ledger
from tacit_common.errors import RefusalCode
from tacit_common.ledger_chain import VerifiedLedger
from tacit_common.objectives import build_objective
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import NonPrivateRelease, PrivacyEvent
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.probes import build_probe
from tacit_common.report import (
    Assumption,
    Audit,
    Cohorts,
    Evaluation,
    Interval,
    LocalPrivacy,
    Models,
    NoPrivacy,
    Pictures,
    ProbeReport,
    Refusal,
    Release,
    Report,
    RoundReport,
    Run,
    SiteReport,
    Software,
    StudyRecord,
    statements,
)
from tacit_common.report.account import site_account
from tacit_common.report.recompute import figures_of_site
from tacit_common.report.wording import LocalWording
from tacit_common.study import BlockSubjects, LocalPrivacyPlan, NoPrivacyPlan, StudyFile
from tacit_common.wire import parameters_sha256
from tacit_server.checkpoint import RunState
from tacit_server.run_log import (
    ProbeFinished,
    RoundFinished,
    RunResumed,
    RunStarted,
    WarmStarted,
)
from tacit_simulations.sites import SimulatedSites


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
    audit: Audit | None,
) -> Report:
    """The report of a finished run; ε comes from the ledgers, not from the plan."""
    rounds = [event for event in state.events if isinstance(event, RoundFinished)]
    reports = [
        _site_report(study, state, sites, read_ledger(sites.ledger_path(index)), rounds)
        for index in range(sites.plan.sites)
    ]
    return Report(
        run=_run(study, state, engine, rounds),
        study=StudyRecord.of(study.travelling()),
        software=Software.installed(),
        privacy=_privacy(study, schedule, len(state.initial), reports, audit),
        sites=tuple(reports),
        cohorts=_cohorts(study, state, rounds),
        models=Models(
            parameters=len(state.initial),
            initial_sha256=parameters_sha256(state.initial),
            final_sha256=parameters_sha256(state.strategy.parameters),
        ),
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
    sites: SimulatedSites,
    ledger: VerifiedLedger,
    rounds: list[RoundFinished],
) -> SiteReport:
    privacy = study.privacy
    account = site_account(
        ledger,
        run=state.run,
        rounds_done=len(rounds),
        delta=privacy.delta if isinstance(privacy, LocalPrivacyPlan) else None,
    )
    name, composition = ledger.genesis.site, account.composition
    return SiteReport(
        name=name,
        declared_units=sites.plan.declared_units,
        rounds_answered=sum(name in event.answered for event in rounds),
        atoms=account.atoms,
        spent=account.spent,
        epsilon_after_round=account.epsilon_after_round,
        epsilon_run=account.epsilon_run,
        epsilon_total=account.epsilon_total,
        composition=None if composition is None else composition.rule,
        renyi_order=None if composition is None else composition.order,
        epsilon_cap=account.epsilon_cap,
        reserves=account.reserves,
        never_committed=account.never_committed,
        releases=account.releases,
        ledger=ledger.head,
    )


def _cohorts(study: StudyFile, state: RunState, rounds: list[RoundFinished]) -> Cohorts:
    started = next(event for event in state.events if isinstance(event, RunStarted))
    registered = len(started.sites)
    asked = study.federation.asked_of(registered)
    return Cohorts(
        registered=registered,
        asked_per_round=asked,
        quorum=study.federation.quorum_of(asked),
        smallest_answered=min((len(event.answered) for event in rounds), default=0),
        worst_dropout=max(
            (1 - len(event.answered) / len(event.asked) for event in rounds), default=0.0
        ),
        threshold=None,
        collusion_bound=None,
    )


def _privacy(
    study: StudyFile,
    schedule: PrivacySchedule,
    dimension: int,
    reports: list[SiteReport],
    audit: Audit | None,
) -> LocalPrivacy | NoPrivacy:
    privacy, has_probes = study.privacy, bool(study.probes)
    if isinstance(privacy, NoPrivacyPlan):
        return NoPrivacy(
            mode="none",
            plain_statement=statements.NO_DIFFERENTIAL_PRIVACY_PLAIN,
            formal_statement=statements.NO_DIFFERENTIAL_PRIVACY_FORMAL,
            sampling_rate=privacy.sampling_rate,
            steps=study.federation.rounds * study.federation.local_steps,
            outputs=statements.none_outputs(has_probes=has_probes),
            assumptions=(),
            not_covered=statements.NONE_NOT_COVERED,
        )
    worst = max(reports, key=lambda report: report.epsilon_total or 0.0)
    if worst.epsilon_total is None:
        raise TypeError("a site of a private run has spent something")
    figures = figures_of_site(worst, privacy.delta)
    figure = worst.epsilon_total
    words = LocalWording.of(
        epsilon=figure,
        delta=privacy.delta,
        unit=privacy.unit,
        records_per_subject=privacy.records_per_subject,
        trade_off=figures.trade_off,
        has_probes=has_probes,
    )
    return LocalPrivacy(
        mode="local",
        plain_statement=words.plain_statement,
        formal_statement=words.formal_statement,
        setting=words.setting,
        accesses_covered=words.accesses_covered,
        accesses_excluded=words.accesses_excluded,
        outputs=words.outputs,
        unit=privacy.unit,
        records_per_subject=privacy.records_per_subject,
        adjacency="zero-out",
        adversary=words.adversary,
        transcript=words.transcript,
        epsilon_target=privacy.epsilon,
        epsilon_spent=figure,
        delta=privacy.delta,
        releases=_releases(study, privacy, schedule, dimension),
        sampler=words.sampler,
        noise=words.noise,
        floating_point=words.floating_point,
        accountants=figures.accountants,
        curve=figures.curve,
        trade_off=figures.trade_off,
        groups=figures.groups,
        tuning=words.tuning,
        assumptions=_assumptions(study),
        not_covered=words.not_covered,
        audit=audit,
    )


def _releases(
    study: StudyFile, privacy: LocalPrivacyPlan, schedule: PrivacySchedule, dimension: int
) -> tuple[Release, ...]:
    """Every mechanism of the study, with the noise that it adds to a sum."""
    plugins = PluginTable(study.plugins)
    objective = build_objective(study, plugins)
    clip_norm = privacy.l2_clip_norm
    contribution = (
        objective.l2_sensitivity(clip_norm) if isinstance(objective, LogitDP) else clip_norm
    )
    training = statements.training_mechanism(
        unit=privacy.unit, records_per_subject=privacy.records_per_subject
    )
    return (
        _release("training", training, schedule.planned[0], clip_norm, contribution, dimension),
        *(
            _release(
                f"probe {release.probe} {release.when}",
                statements.PROBE_MECHANISM,
                release.event,
                sensitivity := build_probe(study.probes[release.probe], plugins).l2_sensitivity,
                sensitivity,
                dimension=1,  # the lattice's share of the sensitivity is the same for all
            )
            for release in schedule.probe_releases
        ),
    )


def _release(
    name: str,
    mechanism: str,
    event: PrivacyEvent,
    l2_clip_norm: float,
    contribution: float,
    dimension: int,
) -> Release:
    if isinstance(event, NonPrivateRelease):
        raise TypeError("a private study releases nothing without noise")
    lattice = LatticeGaussian(
        l2_clip_norm=contribution,
        dimension=dimension,
        noise_multiplier=event.noise_multiplier,
        source=SecureRandom(),
    )
    return Release(
        name=name,
        mechanism=mechanism,
        event=event,
        l2_clip_norm=l2_clip_norm,
        l2_sensitivity=lattice.l2_sensitivity,
        noise_stddev=lattice.noise_stddev,
    )


_SUBJECTS_PRETENDED = Assumption(
    text="All records of a subject are known to be that subject's.",
    held=False,
    why="The subjects are pretended, for rehearsal: so many records in a row count as one's.",
)
_SUBJECTS_GIVEN = Assumption(
    text="All records of a subject are known to be that subject's.",
    held=None,
    why="The data set says which records belong together; nobody can check that it is complete.",
)


def _assumptions(study: StudyFile) -> tuple[Assumption, ...]:
    plan = study.simulation
    by_subject = isinstance(study.privacy, LocalPrivacyPlan) and study.privacy.unit == "subject"
    pretended = plan is not None and isinstance(plan.subjects, BlockSubjects)
    return (
        *([_SUBJECTS_PRETENDED if pretended else _SUBJECTS_GIVEN] if by_subject else []),
        Assumption(
            text="No unit (record or subject) is held by two sites.",
            held=True,
            why="The simulation dealt every record, and every subject whole, to exactly one site.",
        ),
        Assumption(
            text="The order and the choice of hyper-parameters did not depend on these records.",
            held=None,
            why="Only who wrote the study knows; earlier trials on the same records add up.",
        ),
        Assumption(
            text="The loss of a unit depends on that unit alone.",
            held=True,
            why="Every site checked it before it paid, on the path that clips, and found nothing: "
            "replacing, removing, poisoning and permuting records changed nothing elsewhere.",
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
