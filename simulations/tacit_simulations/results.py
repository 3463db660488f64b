"""From what a simulated run left on disk and in its ledgers to its report."""

from collections.abc import Sequence

from tacit_client.ledger_file import read_ledger
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule
from tacit_common.report import (
    Audit,
    Engine,
    Evaluation,
    Pictures,
    Report,
    SiteReport,
)
from tacit_common.report.account import site_account
from tacit_common.report.assumptions import assumptions
from tacit_common.study import BlockSubjects, LocalPrivacyPlan, StudyFile
from tacit_server.checkpoint import RunState
from tacit_server.report import build_report, rounds_of
from tacit_simulations.sites import SimulatedSites


def simulated_report(
    study: StudyFile,
    schedule: PrivacySchedule,
    state: RunState,
    sites: SimulatedSites,
    *,
    engine: Engine,
    evaluation: Evaluation | None,
    verdicts: Sequence[str],
    pictures: Pictures | None,
    audit: Audit | None,
) -> Report:
    """The report of a finished simulation, with the account of every ledger on the disk."""
    plan = study.simulation
    travelling = study.travelling()
    return build_report(
        travelling,
        schedule,
        state,
        [_site_report(study, state, sites, index) for index in range(sites.plan.sites)],
        plugins=PluginTable(study.plugins),
        engine=engine,
        assumptions=assumptions(
            travelling,
            engine=engine,
            pretended_subjects=plan is not None and isinstance(plan.subjects, BlockSubjects),
        ),
        evaluation=evaluation,
        verdicts=verdicts,
        pictures=pictures,
        audit=audit,
    )


def _site_report(
    study: StudyFile, state: RunState, sites: SimulatedSites, index: int
) -> SiteReport:
    privacy, rounds = study.privacy, rounds_of(state)
    ledger = read_ledger(sites.ledger_path(index))
    name = ledger.genesis.site
    account = site_account(
        ledger,
        run=state.run,
        rounds_done=len(rounds),
        delta=privacy.delta if isinstance(privacy, LocalPrivacyPlan) else None,
    )
    return SiteReport.of_account(
        account,
        name=name,
        declared_units=sites.plan.declared_units,
        rounds_answered=sum(name in event.answered for event in rounds),
    )
