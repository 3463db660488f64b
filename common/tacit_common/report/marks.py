"""Small drawings that stand in a table's row; the text beside them says the numbers."""

from tacit_common.report.drawing import Box, Dot, Drawing, Shape, Stroke

_HATCH_GAP = 5.0


def interval_mark(
    value: float,
    low: float,
    high: float,
    *,
    axis: tuple[float, float],
    is_result: bool,
    reference: float | None,
) -> Drawing:
    """A dot with its interval as a bar on a thin track.

    `reference` is a value to compare with, drawn as an upright line.
    """
    width, height = 160.0, 16.0

    def x(share: float) -> float:
        inside = min(max(share, axis[0]), axis[1])
        return 4 + (inside - axis[0]) / (axis[1] - axis[0]) * (width - 8)

    middle = height / 2
    shapes: list[Shape] = [
        Stroke(((4, middle), (width - 4, middle)), "track"),
        Box(x(low), middle - 3, max(1.0, x(high) - x(low)), 6, "bar"),
    ]
    if reference is not None:
        shapes.append(Stroke(((x(reference), 0), (x(reference), height)), "ours"))
    shapes.append(Dot(x(value), middle, 3.4, "dot"))
    kind = "interval result" if is_result else "interval baseline"
    return Drawing(kind, width, height, tuple(shapes))


def budget_bar(
    *, run: float, total: float, cap: float | None, full: float | None = None
) -> Drawing:
    """What a site has spent: this run solid, what others add to it hatched, the cap a tick.

    ε of parts do not add up, so the hatched part is what is left of `total` beside `run`.
    `full` is the ε at the bar's right end, for bars that are to be compared.
    """
    width, height = 240.0, 10.0
    end = full or max(total, cap or 0.0) or 1.0
    over = cap is not None and total > cap
    shapes: list[Shape] = []
    if cap is not None:
        shapes.append(Box(0, 2, min(1.0, cap / end) * width, 6, "room"))
    split, reach = min(run, total) / end * width, total / end * width
    if reach > split:
        shapes += _hatched(split, reach, over=over)
    shapes.append(Box(0, 2, split, 6, "over" if over else "spent"))
    if cap is not None:
        shapes.append(Box(min(1.0, cap / end) * width - 1.5, 0, 1.5, height, "limit"))
    return Drawing("gauge", width, height, tuple(shapes))


def _hatched(left: float, right: float, *, over: bool) -> list[Shape]:
    style = "over" if over else "spent"
    shapes: list[Shape] = [Box(left, 2, right - left, 6, f"{style} pale")]
    x = left + _HATCH_GAP / 2
    while x < right:
        shapes.append(Stroke(((x, 2), (x, 8)), f"{style} hatch"))
        x += _HATCH_GAP
    return shapes
