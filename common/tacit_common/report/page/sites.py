"""The sections of the page about the sites: what each has spent, and of what."""

import statistics
from collections.abc import Iterator

from tacit_common.report import numbers, plots, statements
from tacit_common.report.claims import LocalPrivacy, NoPrivacy
from tacit_common.report.drawing import Drawing
from tacit_common.report.marks import budget_bar
from tacit_common.report.page.blocks import (
    Alarm,
    Block,
    Cell,
    Column,
    Figure,
    Paragraph,
    Row,
    Section,
    Table,
)
from tacit_common.report.participation import SiteReport
from tacit_common.report.schema import Report

MOST_COLUMNS = 8  # sites side by side in a table or with a curve of their own
ABSENT = {"withheld": "withheld", "missing": "not received"}
"""What stands in place of a figure of a site without an account."""
FILTER = (
    "Where several plans used the same records, their costs are composed by a Rényi filter "
    "(Feldman and Zrnic 2021, arXiv 2008.11193), which holds even if a plan was chosen after the "
    "answers to earlier ones were seen. Its ε is somewhat larger than that of one plan by PLD."
)


# --- at the top ------------------------------------------------------------------------


def largest_in_words(report: Report) -> str:
    """What the largest ε of a site is to be compared with."""
    site = max(report.sites, key=_known)
    if not site.is_disclosed:
        return "as planned for this run alone"
    parts = [] if site.epsilon_cap is None else [f"of {numbers.epsilon(site.epsilon_cap)} allowed"]
    if _others(site) > 0:
        parts.append(f"this run {numbers.epsilon(site.epsilon_run or 0.0)}")
    return ", ".join(parts) or "no cap"


def alarms(report: Report, privacy: LocalPrivacy) -> Iterator[Block]:
    """What must not be overlooked: a budget that was passed."""
    for site in report.sites:
        if site.epsilon_cap is not None and _known(site) > site.epsilon_cap:
            yield Alarm(
                "Over its cap.",
                f"{site.name} has spent ε = {numbers.epsilon(_known(site))} where "
                f"{numbers.epsilon(site.epsilon_cap)} is its cap.",
            )
    run = max(site.epsilon_run or 0.0 for site in report.sites)
    if run > privacy.epsilon_target:
        yield Alarm(
            "Over budget.",
            f"At one site this run cost ε = {numbers.epsilon(run)} where "
            f"{numbers.epsilon(privacy.epsilon_target)} was allowed.",
        )


def gauges(report: Report) -> Table:
    """What each site has spent of its cap; the highest ones where sites are many."""
    shown = list(report.sites)
    note = ""
    if len(shown) > MOST_COLUMNS:
        shown = sorted(shown, key=_known, reverse=True)[:MOST_COLUMNS]
        note = f": the {len(shown)} highest of {len(report.sites)}"
    full = _full(report)
    return Table(
        f"ε spent by each site, and its cap{note}",
        (Column("Site"), Column("Share of the cap", share=2.4), Column("ε", is_number=True)),
        tuple(
            Row(
                (
                    Cell(site.name),
                    Cell("", mark=_bar(site, full)),
                    Cell(f"{numbers.epsilon(_known(site))}{_of_cap(site)}"),
                )
            )
            for site in shown
        ),
        kind="gauges",
    )


def _of_cap(site: SiteReport) -> str:
    if not site.is_disclosed:
        return " planned, this run alone"
    return "" if site.epsilon_cap is None else f" of {numbers.epsilon(site.epsilon_cap)}"


# --- budgets ---------------------------------------------------------------------------


def budgets(report: Report, privacy: LocalPrivacy) -> Section:
    """ε of every site against its cap, and how it grew."""
    words = statements.unit_words(privacy.unit)
    blocks: list[Block] = [
        Paragraph(
            "A site writes down what a request costs before it reads a record, and refuses what "
            "would pass its own cap. What is written down is spent, even if the answer was lost."
        ),
        _budget_table(report, privacy),
    ]
    if any(site.composition == "filter" for site in report.sites):
        blocks.append(Paragraph(FILTER, "small"))
    blocks += _without_account(report)
    if report.rounds and _disclosed(report):
        blocks += [_spending_figure(report, privacy), _spending_table(report)]
    blocks.append(_activity_table(report, f"Declared {words.nouns}"))
    return Section("budgets", "Every site’s budget", tuple(blocks))


def _budget_table(report: Report, privacy: LocalPrivacy) -> Table:
    full = _full(report)
    return Table(
        f"ε at δ = {numbers.power(privacy.delta)}. Solid: this run. Hatched: what other runs on "
        "the same records add to it; costs taken together are less than their sum. Pale: what "
        "remains. Tick: the cap.",
        (
            Column("Site", share=1.6),
            Column("Spent and remaining", share=2.3),
            Column("This run", is_number=True),
            Column("Other runs add", is_number=True),
            Column("Total", is_number=True),
            Column("Cap", is_number=True),
            Column("Remaining", is_number=True, share=1.1),
        ),
        tuple(
            Row(
                (
                    Cell(site.name),
                    Cell("", mark=_bar(site, full)),
                    *map(Cell, _budget_of(site)),
                )
            )
            for site in report.sites
        ),
    )


def _budget_of(site: SiteReport) -> tuple[str, str, str, str, str]:
    """This run, what other runs add, total, cap, and what remains."""
    run = numbers.epsilon(site.epsilon_run or 0.0)
    if not site.is_disclosed:
        word = ABSENT[site.account]
        return f"≤ {run}", word, word, word, word
    remaining = site.epsilon_remaining
    return (
        run,
        numbers.significant(_others(site)),
        numbers.epsilon(_known(site)),
        numbers.epsilon(site.epsilon_cap) if site.epsilon_cap else "none",
        "no cap" if remaining is None else numbers.at_least(remaining),
    )


def _without_account(report: Report) -> Iterator[Block]:
    """Which sites gave no account, and what is stated of them instead."""
    reasons = {
        "withheld": "withheld the account of {its} ledger, as {its} policy says",
        "missing": "sent no account of {its} ledger when the rounds were over",
    }
    for account, reason in reasons.items():
        names = [site.name for site in report.sites if site.account == account]
        if names:
            said = reason.format(its="its" if len(names) == 1 else "their")
            figures = (
                " What is stated is what the study plans for this run. That no more was asked of "
                "the site, and what other runs have cost, its own ledger shows."
                if isinstance(report.privacy, LocalPrivacy)
                else ""
            )
            yield Paragraph(f"{_listed(names)} {said}.{figures}")


def _listed(names: list[str]) -> str:
    """Names in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _activity_table(report: Report, declared: str) -> Table:
    without = isinstance(report.privacy, NoPrivacy)
    return Table(
        "What each site declared and did. Reserves are requests that were paid for, of all runs; "
        "one that was never committed gave no answer, and is paid for all the same.",
        (
            Column("Site", share=1.6),
            Column(declared, is_number=True),
            Column("Rounds answered", is_number=True),
            Column("Releases", is_number=True),
            Column("Reserves", is_number=True),
            Column("Never committed", is_number=True),
            Column("Parts of its data touched", share=1.3),
            *([] if without else [Column("Costs composed by", share=1.5)]),
        ),
        tuple(
            Row(
                (
                    Cell(site.name),
                    Cell(numbers.count(site.declared_units)),
                    Cell(f"{site.rounds_answered} of {report.run.rounds_done}"),
                    *(
                        Cell(ABSENT[site.account] if count is None else numbers.count(count))
                        for count in (site.releases, site.reserves, site.never_committed)
                    ),
                    Cell(", ".join(site.atoms) or ABSENT.get(site.account, "none")),
                    *([] if without else [Cell(_composition(site))]),
                )
            )
            for site in report.sites
        ),
    )


def _composition(site: SiteReport) -> str:
    if site.renyi_order is not None:
        return f"Rényi filter, order {site.renyi_order:g}"
    return "one plan, PLD" if site.is_disclosed else "this run’s plan, PLD"


def sites_without(report: Report) -> Section:
    """The sites of a run without differential privacy."""
    blocks = (*_without_account(report), _activity_table(report, "Declared units"))
    return Section("sites", "Every site", blocks)


# --- how the budget was spent ----------------------------------------------------------


def _spending_figure(report: Report, privacy: LocalPrivacy) -> Figure:
    run = report.run
    groups: dict[tuple[float, ...], list[SiteReport]] = {}
    sites = _disclosed(report)
    for site in sites:
        groups.setdefault((*(site.epsilon_after_round or ()), _known(site)), []).append(site)
    curves = sorted(groups, key=lambda curve: -curve[-1])
    named = curves if len(curves) <= plots.SERIES_COLOURS else [curves[0], curves[-1]]
    lines = []
    for curve in curves:
        points = [(float(i), value) for i, value in enumerate(curve[:-1], start=1)]
        if curve[-1] != curve[-2]:
            points.append((float(run.rounds_done), curve[-1]))  # a probe after the last round
        label = f"{_names(groups[curve], len(sites))}: {numbers.epsilon(curve[-1])}"
        lines.append(plots.Line(label, tuple(points), quiet=curve not in named))
    mark = _cap_mark(report)
    heights = [y for line in lines for _, y in line.points]
    chart = plots.Chart(
        title="How the budget was spent",
        description=f"ε of each site after each round, at most "
        f"{numbers.epsilon(privacy.epsilon_spent)}. Table below.",
        x=plots.whole_axis("round", 1, run.rounds_planned),
        y=plots.value_axis(
            "total ε spent", heights + ([mark.value] if mark else []), from_zero=True
        ),
        lines=tuple(lines),
        reached=run.rounds_done,
        mark=mark,
    )
    return Figure(
        plots.draw_chart(chart),
        f"Total ε of each site when a round was over, at δ = {numbers.power(privacy.delta)}. ε "
        "grows more slowly than the number of rounds. A site that refuses a round spends nothing "
        "on it." + (" Probes are included; the last dot is the total." if report.probes else ""),
    )


def _cap_mark(report: Report) -> plots.Mark | None:
    caps = {site.epsilon_cap for site in report.sites if site.epsilon_cap is not None}
    if not caps:
        return None
    lowest = min(caps)
    name = "cap" if len(caps) == 1 else "lowest cap"
    return plots.Mark(f"{name}: {numbers.epsilon(lowest)}", lowest)


def _spending_table(report: Report) -> Table:
    """ε by round and site; where sites are many, its spread over them."""
    sites = _disclosed(report)
    by_round = list(zip(*(site.epsilon_after_round or () for site in sites), strict=True))
    rows = [(str(number), list(row)) for number, row in enumerate(by_round, start=1)]
    rows.append(("total", [_known(site) for site in sites]))
    names = [site.name for site in sites]
    if len(names) > MOST_COLUMNS:
        names = ["lowest", "median", "highest"]
        rows = [(name, [min(row), statistics.median(row), max(row)]) for name, row in rows]
    return Table(
        "Total ε spent, rounded up to three digits.",
        (Column("Round"), *(Column(name, is_number=True) for name in names)),
        tuple(
            Row(
                (Cell(name), *(Cell(numbers.epsilon(value)) for value in row)),
                role="total" if name == "total" else "normal",
            )
            for name, row in rows
        ),
        summary="ε after every round, as a table",
    )


# --- figures of a site -----------------------------------------------------------------


def _known(site: SiteReport) -> float:
    return site.epsilon_known or 0.0


def _disclosed(report: Report) -> list[SiteReport]:
    return [site for site in report.sites if site.is_disclosed]


def _others(site: SiteReport) -> float:
    """What other runs add to this one's ε; rounding alone is nothing."""
    added = _known(site) - (site.epsilon_run or 0.0)
    return added if added > 1e-9 * _known(site) else 0.0


def _full(report: Report) -> float:
    """The ε at the right end of every bar, so that bars can be compared."""
    return max(max(_known(site), site.epsilon_cap or 0.0) for site in report.sites)


def _bar(site: SiteReport, full: float) -> Drawing:
    run = site.epsilon_run if _others(site) > 0 else site.epsilon_known
    return budget_bar(run=run or 0.0, total=_known(site), cap=site.epsilon_cap, full=full)


def _names(sites: list[SiteReport], all_sites: int) -> str:
    if len(sites) == 1:
        return sites[0].name
    return f"all {all_sites} sites" if len(sites) == all_sites else f"{len(sites)} sites"
