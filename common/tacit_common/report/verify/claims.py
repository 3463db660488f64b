"""Checks of a report: study, cohorts, wording and audit, from what else the report holds."""

from dataclasses import fields

from pydantic import ValidationError

from tacit_common.report.assumptions import assumptions
from tacit_common.report.claims import LocalPrivacy, NoPrivacy
from tacit_common.report.schema import Report
from tacit_common.report.verify.audit_bound import epsilon_lower_bound
from tacit_common.report.verify.findings import ARITHMETIC, Check, Comparison, Tolerance
from tacit_common.report.wording import LocalWording, NoneWording
from tacit_common.study import LocalPrivacyPlan, Study

_BISECTED = Tolerance(relative=1e-6, absolute=1e-6)
"""For the audit's bound: a root that two programs find in their own ways."""


def study_of(report: Report) -> Study | None:
    """The study of a report; None if this version cannot read it."""
    try:
        return Study.model_validate(report.study.document)
    except ValidationError:
        return None


def check_study(report: Report) -> Check:
    """The run and the privacy statement against the study that travelled to the sites."""
    found = Comparison()
    claim = "The run and its privacy are those of the study that the sites received."
    study = study_of(report)
    if study is None:
        found.differs("study.document", "the study", "a study that this version can read")
        return found.check("study", claim)
    found.same("study.digest", report.study.digest, study.digest())
    found.same("run.name", report.run.name, study.name)
    found.same("run.rounds_planned", report.run.rounds_planned, study.federation.rounds)
    plan, privacy = study.privacy, report.privacy
    found.same("privacy.mode", privacy.mode, plan.mode)
    if isinstance(privacy, LocalPrivacy) and isinstance(plan, LocalPrivacyPlan):
        found.same("privacy.unit", privacy.unit, plan.unit)
        found.same(
            "privacy.records_per_subject", privacy.records_per_subject, plan.records_per_subject
        )
        found.same("privacy.epsilon_target", privacy.epsilon_target, plan.epsilon)
        found.same("privacy.delta", privacy.delta, plan.delta)
    if isinstance(privacy, NoPrivacy):
        found.same("privacy.sampling_rate", privacy.sampling_rate, plan.sampling_rate)
        steps = study.federation.rounds * study.federation.local_steps
        found.same("privacy.steps", privacy.steps, steps)
    for i, probe in enumerate(report.probes):
        planned = [p.epsilon for p in study.probes if p.kind == probe.name and probe.when in p.when]
        if not planned:
            found.differs(f"probes[{i}].name", f"{probe.name} {probe.when}", "a probe of the study")
        elif probe.epsilon_per_site not in planned:
            found.differs(f"probes[{i}].epsilon_per_site", probe.epsilon_per_site, planned)
    return found.check("study", claim)


def check_cohorts(report: Report) -> Check:
    """Who took part, from the list of rounds."""
    found = Comparison()
    seen, rounds, study = report.cohorts, report.rounds, study_of(report)
    registered = len(report.sites)
    found.same("cohorts.registered", seen.registered, registered)
    if study is not None:
        asked = study.federation.asked_of(registered)
        found.same("cohorts.asked_per_round", seen.asked_per_round, asked)
        found.same("cohorts.quorum", seen.quorum, study.federation.quorum_of(asked))
    answered = [len(r.answered) for r in rounds]
    found.same("cohorts.smallest_answered", seen.smallest_answered, min(answered, default=0))
    dropout = max((1 - len(r.answered) / max(len(r.asked), 1) for r in rounds), default=0.0)
    found.near("cohorts.worst_dropout", seen.worst_dropout, dropout, ARITHMETIC)
    found.same("cohorts.threshold", seen.threshold, None)  # there is no secure aggregation
    found.same("cohorts.collusion_bound", seen.collusion_bound, None)
    for i, r in enumerate(rounds):
        found.at_most(f"rounds[{i}].asked", len(r.asked), seen.asked_per_round, ARITHMETIC)
        if study is not None:
            needed = study.federation.quorum_of(len(r.asked))
            found.at_least(f"rounds[{i}].answered", len(r.answered), needed, ARITHMETIC)
    for i, site in enumerate(report.sites):
        rounds_answered = sum(site.name in r.answered for r in rounds)
        found.same(f"sites[{i}].rounds_answered", site.rounds_answered, rounds_answered)
    return found.check("cohorts", "Cohorts, quorum and dropout are those of the rounds listed.")


# --- words -----------------------------------------------------------------------------


def check_wording(report: Report) -> Check:
    """Every sentence on privacy, said again from the figures."""
    found = Comparison()
    if isinstance(report.privacy, LocalPrivacy):
        words: LocalWording | NoneWording = _local_words(report, report.privacy)
    else:
        words = NoneWording.of(has_probes=_has_probes(report), engine=report.run.engine)
    for field in fields(words):
        path, stated = f"privacy.{field.name}", getattr(report.privacy, field.name)
        said_again = getattr(words, field.name)
        if isinstance(said_again, tuple):
            found.sequences(path, stated, said_again)
        else:
            found.same(path, stated, said_again)
    _check_assumptions(found, report)
    return found.check(
        "wording",
        "The statements on privacy are those that belong to these figures, word for word.",
    )


def _local_words(report: Report, privacy: LocalPrivacy) -> LocalWording:
    return LocalWording.of(
        epsilon=privacy.epsilon_spent,
        delta=privacy.delta,
        unit=privacy.unit,
        records_per_subject=privacy.records_per_subject,
        trade_off=privacy.trade_off,
        has_probes=any(release.name != "training" for release in privacy.releases),
        engine=report.run.engine,
        without_account=sum(not site.is_disclosed for site in report.sites),
    )


def _has_probes(report: Report) -> bool:
    study = study_of(report)
    return study is not None and bool(study.probes)


def _check_assumptions(found: Comparison, report: Report) -> None:
    """Those of a deployed run follow from its study; a rehearsal's depend on its data too."""
    study = study_of(report)
    if study is not None and report.run.engine == "deployed":
        expected = assumptions(study, engine="deployed")
        found.sequences("privacy.assumptions", report.privacy.assumptions, expected)


# --- audit -----------------------------------------------------------------------------


def check_audit(report: Report) -> Check:
    """The lower bound of the audit, from its counts."""
    found = Comparison()
    audit = report.privacy.audit if isinstance(report.privacy, LocalPrivacy) else None
    if audit is None or not isinstance(report.privacy, LocalPrivacy):
        return found.check("audit", "No audit is stated.")
    bound = epsilon_lower_bound(
        delta=report.privacy.delta,
        canaries=audit.canaries,
        guesses=audit.guesses,
        right=audit.right_guesses,
        confidence=audit.confidence,
    )
    path = "privacy.audit.epsilon_lower_bound"
    found.near(path, audit.epsilon_lower_bound, bound, _BISECTED)
    found.at_most(path, audit.epsilon_lower_bound, audit.claimed_epsilon, ARITHMETIC)
    return found.check("audit", "The audit’s lower bound follows from its counts.")
