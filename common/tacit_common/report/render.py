"""Draws `report.html` from a `Report`, and writes both files of a run.

The page is one file without scripts: styles, plots and pictures are inside it, and its
content security policy forbids a browser to load anything else.
"""

import math
import re
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import JsonValue

from tacit_common.files import write_atomically
from tacit_common.report import numbers, plots
from tacit_common.report.schema import Interval, LocalPrivacy, Report, SiteReport

MOST_COLUMNS = 8  # sites side by side in a table or with a curve of their own
ENGINES = {"in-process": "simulated in one process", "ray": "simulated on Ray"}


def render_html(report: Report) -> str:
    """The report as one self-contained HTML page."""
    template = _environment().get_template("report.html.j2")
    return template.render(
        report=report,
        is_private=isinstance(report.privacy, LocalPrivacy),
        headline=headline(report),
        status=status(report),
        engine=ENGINES[report.run.engine],
        tiles=list(_tiles(report)),
        epsilon_chart=_epsilon_chart(report),
        epsilon_table=_epsilon_table(report),
        loss_chart=_loss_chart(report),
        evaluation_axis=_evaluation_axis(report),
        probe_axis=_axis([probe.accuracy for probe in report.probes]),
        study_fields=list(_fields(report.study.document)),
        most_columns=MOST_COLUMNS,
    )


def write_report(directory: Path, report: Report) -> tuple[Path, Path]:
    """Write `report.json` (canonical) and `report.html` into `directory`.

    Guarantees: at every moment each file is absent, its former self, or complete.
    """
    page = render_html(report)
    json_path, html_path = directory / "report.json", directory / "report.html"
    write_atomically(json_path, report.canonical_json().encode())
    write_atomically(html_path, page.encode())
    return json_path, html_path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tacit_common.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        epsilon=numbers.epsilon,
        percent=numbers.percent,
        significant=numbers.significant,
        power=numbers.power,
        count=numbers.count,
        duration=numbers.duration,
        subscripts=_subscripts,
    )
    environment.globals.update(gauge=plots.gauge, interval_mark=_interval_mark)
    return environment


def _subscripts(sentence: str) -> Markup:
    """A sentence with its ε_k and max_k set as in a paper."""
    safe = str(escape(sentence))
    return Markup(re.sub(r"\b(ε|max)_(\w)\b", r"\1<sub>\2</sub>", safe))  # noqa: S704


# --- sentences and figures at the top --------------------------------------------------


def headline(report: Report) -> str:
    """The result in one sentence."""
    run, sites = report.run, len(report.sites)
    verb = "trained" if run.status == "complete" else "began to train"
    who = f"{numbers.in_words(sites)} simulated site{'s' if sites > 1 else ''} {verb} "
    what = "one encoder together" if sites > 1 else "an encoder"
    halt = "" if run.status == "complete" else f" and stopped after round\xa0{run.rounds_done}"
    if not isinstance(report.privacy, LocalPrivacy):
        return f"{who}{what}{halt}, with no differential privacy."
    sender = "what each sent" if sites > 1 else "what it sent"
    spent = numbers.epsilon(report.privacy.epsilon_spent)
    return (
        f"{who}{what}{halt}; {sender} is differentially private for any one "
        f"{report.privacy.unit}, with ε at\xa0most\xa0{spent}."
    )


def status(report: Report) -> str:
    """How far the run came."""
    run = report.run
    if run.status == "complete":
        return "complete"
    return f"interrupted after round {run.rounds_done} of {run.rounds_planned}"


class Tile(NamedTuple):
    """One key figure."""

    label: str
    value: str
    note: str


def _tiles(report: Report) -> Iterator[Tile]:
    run, privacy = report.run, report.privacy
    if isinstance(privacy, LocalPrivacy):
        budget = f"of {numbers.epsilon(privacy.epsilon_target)} allowed"
        yield Tile("Largest ε of a site", numbers.epsilon(privacy.epsilon_spent), budget)
        yield Tile("δ", numbers.power(privacy.delta), f"unit: one {privacy.unit}")
    else:
        yield Tile("ε", "none", "no differential privacy")
    refusals = sum(len(r.refused) for r in report.rounds)
    silences = sum(len(r.silent) for r in report.rounds)
    missing = [
        f"{number} {what}{'s' if number > 1 else ''}"
        for number, what in ((refusals, "refusal"), (silences, "lost answer"))
        if number
    ]
    yield Tile(
        "Sites",
        numbers.count(len(report.sites)),
        ", ".join(missing) or "all answered each request",
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
    elif report.probes:
        last = report.probes[-1]
        value = numbers.percent(last.accuracy.value)
        yield Tile("Probe accuracy", value, f"{last.name}, {last.when} training")


# --- plots and tables ------------------------------------------------------------------


def _epsilon_chart(report: Report) -> Markup | None:
    privacy, run = report.privacy, report.run
    if not isinstance(privacy, LocalPrivacy) or not report.rounds:
        return None
    groups: dict[tuple[float, ...], list[SiteReport]] = {}
    for site in report.sites:
        groups.setdefault((*(site.epsilon_after_round or ()), _total(site)), []).append(site)
    curves = sorted(groups, key=lambda curve: -curve[-1])
    named = curves if len(curves) <= plots.SERIES_COLOURS else [curves[0], curves[-1]]
    lines = []
    for curve in curves:
        points = [(float(i), value) for i, value in enumerate(curve[:-1], start=1)]
        if curve[-1] != curve[-2]:
            points.append((float(run.rounds_done), curve[-1]))  # a probe after the last round
        label = f"{_names(groups[curve], len(report.sites))}: {numbers.epsilon(curve[-1])}"
        lines.append(plots.Line(label, tuple(points), quiet=curve not in named))
    return plots.line_chart(
        plots.LineChart(
            description=f"ε of each site after each round. {headline(report)} Table below.",
            x_label="round",
            y_label="total ε spent",
            lines=tuple(lines),
            first=1,
            last=run.rounds_planned,
            reached=run.rounds_done,
            mark=plots.Mark(
                f"budget: {numbers.epsilon(privacy.epsilon_target)}", privacy.epsilon_target
            ),
            from_zero=True,
        )
    )


def _names(sites: list[SiteReport], all_sites: int) -> str:
    if len(sites) == 1:
        return sites[0].name
    return f"all {all_sites} sites" if len(sites) == all_sites else f"{len(sites)} sites"


def _total(site: SiteReport) -> float:
    return site.epsilon_total or 0.0


class Table(NamedTuple):
    """Column heads, and rows of one head and figures."""

    columns: list[str]
    rows: list[tuple[str, list[float]]]


def _epsilon_table(report: Report) -> Table | None:
    """ε by round and site; where sites are many, its spread over them."""
    if not isinstance(report.privacy, LocalPrivacy):
        return None
    by_round = list(zip(*(site.epsilon_after_round or () for site in report.sites), strict=True))
    rows = [(str(number), list(row)) for number, row in enumerate(by_round, start=1)]
    rows.append(("total", [_total(site) for site in report.sites]))
    if len(report.sites) <= MOST_COLUMNS:
        return Table([site.name for site in report.sites], rows)
    spread = [(name, [min(row), statistics.median(row), max(row)]) for name, row in rows]
    return Table(["lowest", "median", "highest"], spread)


def _loss_chart(report: Report) -> Markup | None:
    lines = []
    validation = [(0, report.initial_validation_loss)]
    validation += [(r.number, r.validation_loss) for r in report.rounds]
    training = [(r.number, r.training_loss) for r in report.rounds]
    for label, series in (("public images", validation), ("sites' records", training)):
        points = tuple((float(number), loss) for number, loss in series if loss is not None)
        if points:
            lines.append(plots.Line(label, points))
    if not lines or not report.rounds:
        return None
    return plots.line_chart(
        plots.LineChart(
            description="Loss of the objective after each round. Table of rounds below.",
            x_label="round",
            y_label="loss",
            lines=tuple(lines),
            first=0 if report.initial_validation_loss is not None else 1,
            last=report.run.rounds_planned,
            reached=report.run.rounds_done,
        )
    )


def _interval_mark(
    interval: Interval, axis: tuple[float, float], highlight: bool, reference: float | None
) -> Markup:
    return plots.interval_mark(
        interval.value,
        interval.low,
        interval.high,
        axis=axis,
        highlight=highlight,
        reference=reference,
    )


def _evaluation_axis(report: Report) -> tuple[float, float]:
    rows = report.evaluation.rows if report.evaluation is not None else ()
    return _axis([cell for row in rows for cell in row.cells])


def _axis(intervals: list[Interval]) -> tuple[float, float]:
    """The range that all marks of a table share: whole tens of percent around its intervals."""
    lowest = min((interval.low for interval in intervals), default=0.0)
    highest = max((interval.high for interval in intervals), default=1.0)
    low = min(9, max(0, math.floor(lowest * 10)))
    high = max(low + 1, min(10, math.ceil(highest * 10)))
    return low / 10, high / 10


def _fields(document: JsonValue, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of the study, as dotted names and TOML-like values."""
    if isinstance(document, dict) and document:
        for key, value in document.items():
            yield from _fields(value, f"{prefix}.{key}" if prefix else key)
    elif isinstance(document, list) and any(isinstance(item, dict) for item in document):
        for index, value in enumerate(document):
            yield from _fields(value, f"{prefix}.{index}")
    elif isinstance(document, list):
        yield prefix, ", ".join(_plain(item) for item in document) or "none"
    else:
        yield prefix, _plain(document)


def _plain(value: JsonValue) -> str:
    if value is None or value == {}:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
