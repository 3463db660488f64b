"""Checks of a report against the ledgers of its sites: what the sites themselves wrote.

A ledger may have grown since the report. Its rows up to the report's head are what the
report is about. Of the rows after it, charges of the same run contradict the report, which
left them out; those of other runs are pointed out.
"""

from collections.abc import Sequence

from tacit_common.errors import LedgerError, PrivacyConfigError
from tacit_common.ledger_chain import LedgerExport, VerifiedLedger, verify_rows
from tacit_common.privacy.spend import Spend
from tacit_common.report import numbers
from tacit_common.report.account import SiteAccount, may_have_left, site_account
from tacit_common.report.claims import LocalPrivacy
from tacit_common.report.participation import SiteReport
from tacit_common.report.recompute import Composition, grouped
from tacit_common.report.schema import Report
from tacit_common.report.verify.findings import GRID, NOT_THERE, Check, Comparison


def check_heads(report: Report) -> Check:
    """The head of each ledger, as the report has it: signed by the site, one key a site."""
    found = Comparison()
    keys: dict[str, str] = {}
    for i, site in enumerate(report.sites):
        path = f"sites[{i}].ledger"
        found.same(f"{path}.site", site.ledger.site, site.name)
        if not site.ledger.is_genuine():
            found.differs(f"{path}.signature", site.ledger.signature, "a signature of this head")
        other = keys.setdefault(site.ledger.public_key, site.name)
        if other != site.name:
            found.differs(f"{path}.public_key", site.ledger.public_key, f"not that of {other}")
    return found.check("heads", "Each site signed the place where its ledger stood.")


def check_ledgers(report: Report, exports: Sequence[LedgerExport]) -> list[Check]:
    """One check for each export, and one that names the sites without."""
    checks, seen = [], set()
    for number, export in enumerate(exports):
        found = Comparison()
        name, later = _check_export(found, f"ledger[{number}]", report, export)
        if name in seen:
            found.differs(f"ledger[{number}]", name, "one export for each site")
        seen.add(name)
        checks.append(found.check("ledger", _claim(report, name), note=later))
    missing = [site.name for site in report.sites if site.name not in seen]
    if missing:
        checks.append(
            Check("ledger", "", note=f"not checked against a ledger: {', '.join(missing)}")
        )
    return checks


def _claim(report: Report, name: str) -> str:
    if any(site.name == name and not site.is_disclosed for site in report.sites):
        return f"By its ledger, this run cost {name} no more than the report says."
    return f"The report says of {name} what its ledger says."


def _check_export(
    found: Comparison, export_path: str, report: Report, export: LedgerExport
) -> tuple[str, str | None]:
    """Compare; returns the site's name as the export has it, and what came after the report."""
    try:
        whole = verify_rows(export.rows)
    except LedgerError as error:
        found.differs(export_path, error.what, error.why)
        return export_path, None
    name = whole.genesis.site
    numbered = [(i, site) for i, site in enumerate(report.sites) if site.name == name]
    if not numbered:
        found.differs(export_path, name, "a site of the report")
        return name, None
    ((i, site),) = numbered
    path = f"sites[{i}]"
    if site.ledger.public_key != whole.genesis.public_key:
        stated, other = site.ledger.public_key, whole.genesis.public_key
        found.differs(f"{path}.ledger.public_key", stated, f"{other}; nothing else was compared")
        return name, None
    rows = export.rows[: site.ledger.seq + 1]
    if len(rows) <= site.ledger.seq:
        found.differs(
            f"{path}.ledger.seq", site.ledger.seq, f"an export that ends at {len(rows) - 1}"
        )
        return name, None
    found.same(f"{path}.ledger.hash", site.ledger.hash, rows[-1].hash)
    ledger = whole if len(rows) == len(export.rows) else verify_rows(rows)
    if not site.is_disclosed:
        # The newest head that the coordinator saw, which may be older than the end of the run.
        _check_planned(found, path, report, site, whole)
        _check_run(found, report, site, whole)
        return name, _total_of_today(report, whole)
    _check_account(found, path, report, site, ledger)
    _check_run(found, report, site, ledger)
    return name, _check_later(found, f"{path}.ledger.seq", report, ledger, whole)


def _check_unit(
    found: Comparison, privacy: LocalPrivacy, site: SiteReport, run: str, ledger: VerifiedLedger
) -> None:
    """Every charge behind the statement is about the unit of the statement: all of the data that
    the run touched, or without an account those of the run."""
    spend = Spend.of(ledger)
    for charge in ledger.charges:
        if site.is_disclosed:
            is_behind = bool(set(spend.touched(charge)) & set(site.atoms))
        else:
            is_behind = charge.run == run
        if is_behind and charge.unit not in {None, privacy.unit}:
            other = f"{charge.unit}, by '{charge.label}' at {site.name}"
            found.differs("privacy.unit", privacy.unit, other)
            return


def _check_later(
    found: Comparison, path: str, report: Report, ledger: VerifiedLedger, whole: VerifiedLedger
) -> str | None:
    """What was reserved after the report's head: none of it may be of the report's own run."""
    later = whole.charges[len(ledger.charges) :]
    of_this_run = sum(charge.run == report.run.id for charge in later)
    if of_this_run:
        found.differs(path, ledger.head.seq, f"a head after {of_this_run} more of this run")
    if len(later) > of_this_run:
        return (
            f"since this report {len(later) - of_this_run} more releases of other runs were paid "
            "for; `tacit site budget` has the total of today"
        )
    return None


def _account(report: Report, ledger: VerifiedLedger) -> SiteAccount:
    privacy = report.privacy
    return site_account(
        ledger,
        run=report.run.id,
        rounds_done=report.run.rounds_done,
        delta=privacy.delta if isinstance(privacy, LocalPrivacy) else None,
    )


def _check_planned(
    found: Comparison, path: str, report: Report, site: SiteReport, ledger: VerifiedLedger
) -> None:
    """Of a site without an account: this run cost no more than the report says."""
    privacy = report.privacy
    if not isinstance(privacy, LocalPrivacy) or site.epsilon_run is None:
        return
    own = [charge.event for charge in ledger.charges if charge.run == report.run.id]
    cost = Composition("plan").epsilon(own, privacy.delta)
    found.at_least(f"{path}.epsilon_run", site.epsilon_run, cost, GRID)


def _total_of_today(report: Report, ledger: VerifiedLedger) -> str | None:
    """What a site that gave no account shows by its ledger all the same."""
    try:
        total = _account(report, ledger).epsilon_total
    except PrivacyConfigError as error:
        return f"the report has no total of this site, and its ledger none that is finite: {error}"
    if total is None:
        return None
    return (
        "the report has no total of this site; its ledger comes to "
        f"ε = {numbers.epsilon(total)}, other runs included"
    )


def _check_account(
    found: Comparison, path: str, report: Report, site: SiteReport, ledger: VerifiedLedger
) -> None:
    try:
        account = _account(report, ledger)
    except PrivacyConfigError as error:
        found.differs(f"{path}.epsilon_total", site.epsilon_total, error.why)
        return
    found.sequences(f"{path}.atoms", site.atoms, account.atoms)
    found.sequences(f"{path}.spent", site.spent, account.spent)
    for name in ("reserves", "never_committed", "releases"):
        found.same(f"{path}.{name}", getattr(site, name), getattr(account, name))
    _check_epsilons(found, path, site, account)


def _check_epsilons(found: Comparison, path: str, site: SiteReport, account: SiteAccount) -> None:
    found.same(f"{path}.composition", site.composition, account.composition)
    found.same(f"{path}.renyi_order", site.renyi_order, account.renyi_order)
    found.near(f"{path}.epsilon_run", site.epsilon_run, account.epsilon_run, GRID)
    found.near(f"{path}.epsilon_total", site.epsilon_total, account.epsilon_total, GRID)
    found.same(f"{path}.epsilon_cap", site.epsilon_cap, account.epsilon_cap)
    stated, recomputed = site.epsilon_after_round or (), account.epsilon_after_round or ()
    if len(stated) != len(recomputed):
        found.differs(f"{path}.epsilon_after_round", len(stated), f"{len(recomputed)} figures")
    for number, (left, right) in enumerate(zip(stated, recomputed, strict=False)):
        found.near(f"{path}.epsilon_after_round[{number}]", left, right, GRID)


def _check_run(found: Comparison, report: Report, site: SiteReport, ledger: VerifiedLedger) -> None:
    """The charges of this run: whose study they are for, what it plans, and what left."""
    own = [charge for charge in ledger.charges if charge.run == report.run.id]
    if site.rounds_answered and not own:
        found.differs("run.id", report.run.id, f"a run that the ledger of {site.name} knows")
    for digest in sorted({charge.study_digest for charge in own} - {report.study.digest}):
        found.differs("study.digest", report.study.digest, f"{digest}, to {site.name}")
    if isinstance(report.privacy, LocalPrivacy):
        stated = grouped(release.event for release in report.privacy.releases)
        for planned in {grouped(charge.planned) for charge in own}:
            found.sequences("privacy.releases", stated, planned)
        _check_unit(found, report.privacy, site, report.run.id, ledger)
    left = {charge.label for charge in own if may_have_left(ledger, charge)}
    for i, seen in enumerate(report.rounds):
        if site.name in seen.answered and f"round {seen.number}" not in left:
            found.differs(f"rounds[{i}].answered", site.name, f"{NOT_THERE} in its ledger")
