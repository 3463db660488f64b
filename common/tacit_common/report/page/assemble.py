"""From a `Report` to the page that a person reads: which sections, in which order."""

from collections.abc import Iterator, Sequence

from tacit_common.report import numbers, statements
from tacit_common.report.claims import LocalPrivacy, Signature
from tacit_common.report.page import attacker, check, counting, quality, reveal, sites, training
from tacit_common.report.page.blocks import Alarm, Block, Page, Section, Tile
from tacit_common.report.schema import Report


def build_page(report: Report, signatures: Sequence[Signature]) -> Page:
    """Everything that the HTML page and the PDF say of a report."""
    run = report.run
    return Page(
        title=f"{run.name}: Tacit training report",
        name=run.name,
        date=run.finished.strftime("%Y-%m-%d"),
        badge="" if run.status == "complete" else training.status(report),
        headline=headline(report),
        verdict=report.verdicts[0] if report.verdicts else "",
        tiles=tuple(_tiles(report)),
        top=tuple(_top(report)),
        sections=tuple(_sections(report, signatures)),
        colophon=(
            f"Drawn from report.json, schema version {report.schema_version}. SHA-256 of the "
            f"report: {report.digest()}."
        ),
    )


def headline(report: Report) -> str:
    """The result in one sentence."""
    run, several = report.run, len(report.sites) > 1
    verb = "trained" if run.status == "complete" else "began to train"
    took_part = sum(site.rounds_answered > 0 for site in report.sites)
    count = numbers.in_words(len(report.sites))
    if 0 < took_part < len(report.sites):  # a site that only ever refused trained nothing
        count = f"{numbers.in_words(took_part)} of {count.lower()}"
    kind = "" if run.engine == "deployed" else "simulated "
    who = f"{count} {kind}site{'s' if several else ''} {verb} "
    what = "one encoder together" if several else "an encoder"
    halt = "" if run.status == "complete" else f" and stopped after round\xa0{run.rounds_done}"
    if not isinstance(report.privacy, LocalPrivacy):
        return f"{who}{what}{halt}, with no differential privacy."
    sender = "what each sent" if several else "what it sent"
    if not all(site.is_disclosed for site in report.sites):
        sender += " in this run"
    spent = numbers.epsilon(report.privacy.epsilon_spent)
    return (
        f"{who}{what}{halt}; {sender} is differentially private for any one "
        f"{statements.unit_words(report.privacy.unit).noun}, with ε at\xa0most\xa0{spent}."
    )


def _tiles(report: Report) -> Iterator[Tile]:
    run, privacy = report.run, report.privacy
    if isinstance(privacy, LocalPrivacy):
        spent = numbers.epsilon(privacy.epsilon_spent)
        yield Tile("Largest ε of a site", spent, sites.largest_in_words(report))
        unit = statements.unit_words(privacy.unit).noun
        yield Tile("δ", numbers.power(privacy.delta), f"unit: one {unit}")
    else:
        yield Tile("ε", "none", "no differential privacy")
    refusals = sum(len(r.refused) for r in report.rounds)
    silences = sum(len(r.silent) for r in report.rounds)
    missing = [
        f"{number} {what}{'s' if number > 1 else ''}"
        for number, what in ((refusals, "refusal"), (silences, "lost answer"))
        if number
    ]
    lacking = sum(not site.is_disclosed for site in report.sites)
    missing += [f"{lacking} without an account"] if lacking else []
    yield Tile(
        "Sites", numbers.count(len(report.sites)), ", ".join(missing) or "all answered each request"
    )
    seconds = numbers.duration(run.wall_s)
    yield Tile("Rounds", f"{run.rounds_done} of {run.rounds_planned}", f"in {seconds}")
    if report.evaluation is not None:
        evaluation = report.evaluation
        baselines = [row for row in evaluation.rows if row.role == "baseline"]
        best = max(baselines, key=lambda row: row.cells[0].value)
        yield Tile(
            f"{evaluation.columns[0]} accuracy",
            numbers.percent(evaluation.result.cells[0].value),
            f"best baseline {numbers.percent(best.cells[0].value)}",
        )
        return
    scored = [probe for probe in report.probes if probe.accuracy is not None]
    if scored and scored[-1].accuracy is not None:
        last, value = scored[-1], numbers.percent(scored[-1].accuracy.value)
        yield Tile("Probe accuracy", value, f"{last.name}, {last.when} training")


def _top(report: Report) -> Iterator[Block]:
    privacy = report.privacy
    if not isinstance(privacy, LocalPrivacy):
        yield Alarm(
            "No differential privacy.",
            "Nothing limits what this training may have revealed about a single record.",
        )
        return
    yield from sites.alarms(report, privacy)
    yield sites.gauges(report)


def _sections(report: Report, signatures: Sequence[Signature]) -> Iterator[Section]:
    privacy = report.privacy
    if isinstance(privacy, LocalPrivacy):
        all_gave_account = all(site.is_disclosed for site in report.sites)
        yield reveal.reveal(privacy, all_gave_account=all_gave_account)
        yield attacker.attacker(privacy)
        yield reveal.limits(privacy)
        yield sites.budgets(report, privacy)
        yield counting.counting(privacy)
        yield counting.audit(privacy)
    else:
        yield reveal.reveal_all(privacy)
        yield reveal.limits_without(privacy)
        yield sites.sites_without(report)
    if report.evaluation is not None:
        yield quality.quality(report, report.evaluation)
    if report.probes:
        yield quality.probes(report)
    yield training.training(report)
    if report.pictures is not None:
        yield quality.pictures(report.pictures)
    yield check.cohorts(report)
    yield training.provenance(report)
    yield check.check(report, signatures)
