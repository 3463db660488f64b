"""The sections of the page that say how good the encoder is, with pictures."""

import math
from collections.abc import Iterable, Iterator, Sequence

from tacit_common.report import numbers
from tacit_common.report.marks import interval_mark
from tacit_common.report.page.blocks import (
    Block,
    Cell,
    Column,
    Highlights,
    Paragraph,
    PictureCell,
    PictureGrid,
    PictureRow,
    Row,
    Section,
    Table,
)
from tacit_common.report.schema import (
    Evaluation,
    Interval,
    NeighbourQuery,
    Pictures,
    Reconstruction,
    Report,
)

PICTURES_ACROSS = 8


# --- the accuracy table ----------------------------------------------------------------


def quality(report: Report, evaluation: Evaluation) -> Section:
    """Accuracy on public records, beside baselines."""
    return Section(
        "quality",
        "How good the encoder is",
        (
            *_highlights(report),
            _accuracy_table(evaluation),
            Paragraph(
                f"Classifiers are fitted on {numbers.count(evaluation.train_records)} other "
                "records of the same public data set; the few-label probe sees "
                f"{evaluation.labels_per_class} labels a class. Partition of the sites’ records: "
                f"{evaluation.partition}. "
                f"Intervals: {_methods(c for row in evaluation.rows for c in row.cells)}. This "
                "evaluation is possible in a simulation only, where all data are public; it is "
                "not private.",
                "small",
            ),
        ),
    )


def _accuracy_table(evaluation: Evaluation) -> Table:
    axis = _axis([cell for row in evaluation.rows for cell in row.cells])
    rows = []
    for row in evaluation.rows:
        is_result = row.role == "result"
        marks = [
            _interval_cell(cell, axis, is_result, ours.value)
            for cell, ours in zip(row.cells, evaluation.result.cells, strict=True)
        ]
        head = Cell(row.label, note="" if is_result else "baseline")
        rows.append(Row((head, *marks), role=row.role))
    return Table(
        f"Accuracy on {numbers.count(evaluation.test_records)} public held-out records of "
        f"{evaluation.dataset} ({evaluation.classes} classes), with 95{numbers.THIN_SPACE}% "
        f"confidence intervals. Every scale runs from {_scale(axis)}; the thin upright line is "
        "this encoder.",
        (Column("Features"), *(Column(name, share=1.4) for name in evaluation.columns)),
        tuple(rows),
        kind="evaluation",
    )


def probes(report: Report) -> Section:
    """What the sites' own labels say."""
    scored = [probe.accuracy for probe in report.probes if probe.accuracy is not None]
    axis = _axis(scored) if scored else (0.0, 1.0)
    private = report.probes[0].epsilon_per_site is not None
    rows = []
    for probe in report.probes:
        is_result = probe.when == "after"
        charge = probe.epsilon_per_site
        rows.append(
            Row(
                (
                    Cell(probe.name, note=f"{probe.when} training"),
                    _interval_cell(probe.accuracy, axis, is_result, None)
                    if probe.accuracy is not None
                    else Cell("not scored"),
                    Cell("no differential privacy" if charge is None else numbers.epsilon(charge)),
                ),
                role="result" if is_result else "baseline",
            )
        )
    paid = (
        "Each site sends its statistics with noise, and pays for them from the same budget as "
        "for training; together they cost less than the sum. "
    )
    return Section(
        "probes",
        "What the sites’ own labels say",
        (
            *(() if report.evaluation is not None else _highlights(report)),
            Table(
                "Accuracy of a classifier that is fitted to the sites’ labels, with "
                f"95{numbers.THIN_SPACE}% confidence intervals. The scale runs from "
                f"{_scale(axis)}."
                if scored
                else "Classifiers that are fitted to the sites’ labels. They are not scored: the "
                "coordinator has no public labelled records to score them on.",
                (
                    Column("Probe"),
                    Column("Accuracy", share=1.4),
                    Column("ε charged to each site", is_number=True),
                ),
                tuple(rows),
                kind="evaluation",
            ),
            *_small_print(paid if private else "", scored),
        ),
    )


def _small_print(paid: str, scored: Sequence[Interval]) -> Iterator[Block]:
    text = paid + (f"Intervals: {_methods(scored)}." if scored else "")
    if text:
        yield Paragraph(text.strip(), "small")


def _highlights(report: Report) -> tuple[Block, ...]:
    return (Highlights(report.verdicts),) if report.verdicts else ()


def _interval_cell(
    interval: Interval, axis: tuple[float, float], is_result: bool, reference: float | None
) -> Cell:
    mark = interval_mark(
        interval.value,
        interval.low,
        interval.high,
        axis=axis,
        is_result=is_result,
        reference=reference,
    )
    low, high = numbers.percent(interval.low), numbers.percent(interval.high)
    return Cell(numbers.percent(interval.value), mark=mark, note=f"{low} to {high}")


def _axis(intervals: Sequence[Interval]) -> tuple[float, float]:
    """The range that all marks of a table share: whole tens of percent around its intervals."""
    lowest = min(interval.low for interval in intervals)
    highest = max(interval.high for interval in intervals)
    low = min(9, max(0, math.floor(lowest * 10)))
    high = max(low + 1, min(10, math.ceil(highest * 10)))
    return low / 10, high / 10


def _scale(axis: tuple[float, float]) -> str:
    return f"{round(100 * axis[0])} to {round(100 * axis[1])}{numbers.THIN_SPACE}%"


def _methods(intervals: Iterable[Interval]) -> str:
    return "; ".join(dict.fromkeys(interval.method for interval in intervals))


# --- pictures --------------------------------------------------------------------------


def pictures(shown: Pictures) -> Section:
    """Public pictures, what the encoder makes of them, and their neighbours."""
    blocks: list[Block] = [
        Paragraph(
            f"All pictures are of public records: {shown.source}. No record of a site is ever "
            "shown."
        )
    ]
    triples = shown.reconstructions
    for start in range(0, len(triples), PICTURES_ACROSS):
        batch = triples[start : start + PICTURES_ACROSS]
        blocks.append(_reconstructions(batch, start, start + PICTURES_ACROSS >= len(triples)))
    if shown.neighbour_queries:
        blocks.append(_neighbours(shown.neighbour_queries))
    return Section("pictures", "What the encoder sees", tuple(blocks))


def _reconstructions(batch: Sequence[Reconstruction], start: int, is_last: bool) -> PictureGrid:
    rows = {
        "original": [triple.original for triple in batch],
        "masked": [triple.masked for triple in batch],
        "reconstructed": [triple.reconstructed for triple in batch],
    }
    return PictureGrid(
        tuple(
            PictureRow(
                name,
                tuple(
                    PictureCell(source, f"Image {number}, {name}")
                    for number, source in enumerate(sources, start=start + 1)
                ),
            )
            for name, sources in rows.items()
        ),
        "Reconstruction: the encoder sees the middle row, and has to fill in what is hidden."
        if is_last
        else "",
    )


def _neighbours(queries: Sequence[NeighbourQuery]) -> PictureGrid:
    rows, same, everything = [], 0, 0
    for number, query in enumerate(queries, start=1):
        cells = [PictureCell(query.picture, f"Query {number}, of class {query.label}", query.label)]
        for rank, neighbour in enumerate(query.neighbours, start=1):
            is_same = neighbour.label == query.label
            same, everything = same + is_same, everything + 1
            kind = "the same class" if is_same else "another class"
            cells.append(
                PictureCell(
                    neighbour.picture,
                    f"Neighbour {rank}, of {kind}, {neighbour.label}",
                    neighbour.label if is_same else f"{neighbour.label} ≠",
                    is_other=not is_same,
                )
            )
        rows.append(PictureRow("query, then nearest", tuple(cells)))
    return PictureGrid(
        tuple(rows),
        f"Nearest neighbours in feature space, nearest first after the query: {same} of "
        f"{everything} carry the label of their query; the others are marked ≠. The encoder never "
        "saw a label.",
        first_is_query=True,
    )
