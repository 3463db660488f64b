"""From the record of a run, and what its sites say of their ledgers, to its report.

Simulations and deployments build the same report: they differ in how the accounts of the
sites came (from ledgers on the same disk, or over the wire) and in what may be assumed.
"""

from collections.abc import Sequence

from tacit_common.errors import RefusalCode
from tacit_common.messages import parameters_sha256
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
    Engine,
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
from tacit_common.report.recompute import figures_of_site
from tacit_common.report.wording import LocalWording, NoneWording
from tacit_common.study import LocalPrivacyPlan, NoPrivacyPlan, Study
from tacit_server.checkpoint import RunState
from tacit_server.run_log import (
    ProbeFinished,
    RoundFinished,
    RunResumed,
    RunStarted,
    WarmStarted,
)


def build_report(
    study: Study,
    schedule: PrivacySchedule,
    state: RunState,
    sites: Sequence[SiteReport],
    *,
    plugins: PluginTable,
    engine: Engine,
    assumptions: tuple[Assumption, ...],
    evaluation: Evaluation | None = None,
    verdicts: Sequence[str] = (),
    pictures: Pictures | None = None,
    audit: Audit | None = None,
) -> Report:
    """The report of a finished run; ε comes from the sites' ledgers, not from the plan.

    The exception are sites that gave no account: of those it says what was planned.
    """
    rounds = rounds_of(state)
    return Report(
        run=_run(study, state, engine, rounds),
        study=StudyRecord.of(study),
        software=Software.installed(),
        privacy=(
            _without_privacy(study, study.privacy, engine, assumptions)
            if isinstance(study.privacy, NoPrivacyPlan)
            else _local(
                study,
                study.privacy,
                sites,
                engine=engine,
                releases=_releases(study, study.privacy, schedule, plugins, len(state.initial)),
                assumptions=assumptions,
                audit=audit,
            )
        ),
        sites=tuple(sites),
        cohorts=_cohorts(study, len(sites), rounds),
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
                accuracy=None if event.accuracy is None else Interval.of(event.accuracy),
            )
            for event in state.events
            if isinstance(event, ProbeFinished)
        ),
        evaluation=evaluation,
        pictures=pictures,
    )


def rounds_of(state: RunState) -> list[RoundFinished]:
    """The rounds of a run, in order."""
    return [event for event in state.events if isinstance(event, RoundFinished)]


def _run(study: Study, state: RunState, engine: Engine, rounds: list[RoundFinished]) -> Run:
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


def _cohorts(study: Study, registered: int, rounds: list[RoundFinished]) -> Cohorts:
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


def _without_privacy(
    study: Study, privacy: NoPrivacyPlan, engine: Engine, assumptions: tuple[Assumption, ...]
) -> NoPrivacy:
    words = NoneWording.of(has_probes=bool(study.probes), engine=engine)
    return NoPrivacy(
        mode="none",
        plain_statement=words.plain_statement,
        formal_statement=words.formal_statement,
        setting=words.setting,
        sampling_rate=privacy.sampling_rate,
        steps=study.federation.rounds * study.federation.local_steps,
        outputs=words.outputs,
        assumptions=assumptions,
        not_covered=words.not_covered,
    )


def _local(
    study: Study,
    privacy: LocalPrivacyPlan,
    sites: Sequence[SiteReport],
    *,
    engine: Engine,
    releases: tuple[Release, ...],
    assumptions: tuple[Assumption, ...],
    audit: Audit | None,
) -> LocalPrivacy:
    worst = max(sites, key=lambda site: site.epsilon_known or 0.0)
    if worst.epsilon_known is None:
        raise TypeError("a site of a private run has spent something")
    figures = figures_of_site(worst, privacy.delta)
    words = LocalWording.of(
        epsilon=worst.epsilon_known,
        delta=privacy.delta,
        unit=privacy.unit,
        records_per_subject=privacy.records_per_subject,
        trade_off=figures.trade_off,
        has_probes=bool(study.probes),
        engine=engine,
        without_account=sum(not site.is_disclosed for site in sites),
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
        epsilon_spent=worst.epsilon_known,
        delta=privacy.delta,
        releases=releases,
        sampler=words.sampler,
        noise=words.noise,
        floating_point=words.floating_point,
        accountants=figures.accountants,
        curve=figures.curve,
        trade_off=figures.trade_off,
        groups=figures.groups,
        tuning=words.tuning,
        assumptions=assumptions,
        not_covered=words.not_covered,
        audit=audit,
    )


def _releases(
    study: Study,
    privacy: LocalPrivacyPlan,
    schedule: PrivacySchedule,
    plugins: PluginTable,
    dimension: int,
) -> tuple[Release, ...]:
    """Every mechanism of the study, with the noise that it adds to a sum."""
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
