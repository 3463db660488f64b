"""The report of a deployed run, from its checkpoint alone: the sites have said their part."""

from pathlib import Path

from tacit_common.errors import CheckpointError, RefusalCode
from tacit_common.identity import Identity
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.report import Report, SiteReport, write_report
from tacit_common.report.assumptions import assumptions
from tacit_common.report.recompute import grouped
from tacit_common.report.verify.figures import check_spending
from tacit_common.study import LocalPrivacyPlan, Study, StudyFile
from tacit_server.checkpoint import RunState
from tacit_server.report.assembly import build_report, rounds_of
from tacit_server.run_log import AccountsCollected, RunStarted


def write_deployed_report(
    folder: Path, study: StudyFile, schedule: PrivacySchedule, state: RunState, identity: Identity
) -> tuple[Path, Path]:
    """Write `report.json`, signed by the coordinator, and `report.html` into a run's folder.

    Raises:
        CheckpointError: the run has not come to the accounts of its sites.
    """
    return write_report(folder, deployed_report(study, schedule, state), identity)


def deployed_report(study: StudyFile, schedule: PrivacySchedule, state: RunState) -> Report:
    """The report of a deployed run whose rounds are over.

    An account that the report's own verifier would not believe counts as none: no site can
    make the others' report one that fails.

    Raises:
        CheckpointError: the run has not come to the accounts of its sites.
    """
    travelling, plugins = study.travelling(), PluginTable(study.plugins)
    report = _report(travelling, schedule, state, plugins, disbelieved=frozenset())
    paths = [finding.path for finding in check_spending(report).findings]
    disbelieved = {
        site.name
        for i, site in enumerate(report.sites)
        if any(path.startswith(f"sites[{i}].") for path in paths)
    }
    if not disbelieved:
        return report
    return _report(travelling, schedule, state, plugins, disbelieved=frozenset(disbelieved))


def _report(
    study: Study,
    schedule: PrivacySchedule,
    state: RunState,
    plugins: PluginTable,
    *,
    disbelieved: frozenset[str],
) -> Report:
    collected = next((e for e in state.events if isinstance(e, AccountsCollected)), None)
    if collected is None:
        raise CheckpointError(
            "the run has no report yet",
            why="its sites have not been asked what it cost their data",
            fix="resume the run: it goes on from where it stands",
        )
    declared = collected.sites
    for event in state.events:
        if isinstance(event, RunStarted):
            declared = {**event.sites, **declared}
    sites = [
        _site(name, units, study, schedule, state, collected, is_believed=name not in disbelieved)
        for name, units in sorted(declared.items())
    ]
    return build_report(
        study,
        schedule,
        state,
        sites,
        plugins=plugins,
        engine="deployed",
        assumptions=assumptions(study, engine="deployed"),
    )


def _site(
    name: str,
    declared_units: int,
    study: Study,
    schedule: PrivacySchedule,
    state: RunState,
    collected: AccountsCollected,
    *,
    is_believed: bool,
) -> SiteReport:
    answered = sum(name in event.answered for event in rounds_of(state))
    account = collected.accounts.get(name)
    if account is not None and is_believed:
        return SiteReport.of_account(
            account, name=name, declared_units=declared_units, rounds_answered=answered
        )
    is_private = isinstance(study.privacy, LocalPrivacyPlan)
    return SiteReport.without_account(
        "withheld" if collected.missing.get(name) == RefusalCode.POLICY else "missing",
        name=name,
        declared_units=declared_units,
        rounds_answered=answered,
        ledger=state.heads[name],
        planned=grouped(schedule.planned) if is_private else (),
        epsilon_planned=schedule.planned_epsilon if is_private else None,
    )
