"""Charts of a report: curves on two axes, with labels that do not cover one another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tacit_common.report import numbers
from tacit_common.report.drawing import Box, Dot, Drawing, Label, Point, Shape, Stroke

WIDTH, HEIGHT = 760.0, 300.0
LEFT, TOP, BOTTOM = 46.0, 30.0, 42.0
LETTER_WIDTH = 6.6  # of the label font at its size, on average and rather too much
LONGEST_LABEL = 24
LABEL_GAP = 16.0
SERIES_COLOURS = 6
MOST_DOTS = 40
SMALLEST_SPAN = 1e-300  # below it, powers of ten are not floats


@dataclass(frozen=True)
class Axis:
    """A straight axis from `low` to `high`, with ticks where something is written."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Line:
    """One curve; a quiet one has no label and no colour of its own."""

    label: str
    points: tuple[Point, ...]
    quiet: bool = False


@dataclass(frozen=True)
class Mark:
    """A value of the vertical axis that the curves are compared with, drawn across."""

    label: str
    value: float


@dataclass(frozen=True)
class Callout:
    """A point with a dashed line down to the horizontal axis, and a label.

    The label stands right of the point and above it, where a curve that rises leaves room,
    or left of it and below, where one that falls does.
    """

    label: str
    at: Point
    is_below: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves over a horizontal axis; beyond `reached`, if given, nothing was measured."""

    title: str
    description: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    reached: float | None = None
    mark: Mark | None = None
    guessing: bool = False
    callouts: tuple[Callout, ...] = ()
    has_dots: bool = True
    width: float = WIDTH
    height: float = HEIGHT


# --- axes ------------------------------------------------------------------------------


def value_axis(label: str, values: Sequence[float], *, from_zero: bool) -> Axis:
    """Round ticks that cover the values."""
    low, high = (0.0 if from_zero else min(values)), max(values)
    ticks = nice_ticks(low, high)
    names = tuple((tick, _tick_label(tick, ticks)) for tick in ticks)
    return Axis(label, min(low, ticks[0]), max(high, ticks[-1]), names)


def whole_axis(label: str, first: int, last: int) -> Axis:
    """Whole numbers, such as rounds."""
    ticks = tuple((float(number), str(number)) for number in _whole_ticks(first, last))
    return Axis(label, first, max(last, first + 1), ticks)


def power_axis(label: str, lowest: float, highest: float) -> Axis:
    """Powers of ten. Its points are base-10 logarithms."""
    low, high = math.floor(math.log10(lowest)), math.ceil(math.log10(highest) - 1e-9)
    step = max(1, math.ceil((high - low) / 4))
    ticks = tuple((float(n), numbers.power(10.0**n)) for n in range(high, low - 1, -step))
    return Axis(label, low, max(high, low + 1), ticks)


def share_axis(label: str) -> Axis:
    """Shares from 0 to 100 %."""
    ticks = tuple((n / 4, f"{25 * n}{numbers.THIN_SPACE}%") for n in range(5))
    return Axis(label, 0.0, 1.0, ticks)


def nice_ticks(low: float, high: float, *, wanted: int = 5) -> list[float]:
    """Round numbers, about `wanted` of them, that cover [low, high]."""
    span = high - low
    if span <= max(1e-9 * max(abs(low), abs(high)), SMALLEST_SPAN):  # a constant, up to rounding
        span = abs(high) if abs(high) > SMALLEST_SPAN else 1.0
    rough = span / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= rough * (1 - 1e-9))
    start = math.floor(low / step + 1e-9)
    stop = math.ceil((low + span) / step - 1e-9)
    return [number * step for number in range(start, stop + 1)]


def _tick_label(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if round(step * 10**decimals, 6) % 1:  # a step of 2.5 or 0.25 needs one digit more
        decimals += 1
    return f"{value:.{decimals}f}"


def _whole_ticks(first: int, last: int) -> list[int]:
    if last - first <= 13:
        return list(range(first, last + 1))
    step = max(1, round(nice_ticks(0, last - first, wanted=8)[1]))
    inner = [number for number in range(0, last + 1, step) if first < number < last - step // 2]
    return [first, *(number for number in inner if number - first >= step // 2), last]


# --- the chart -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Frame:
    """Where the axes lie on the canvas."""

    x_axis: Axis
    y_axis: Axis
    left: float
    right: float
    floor: float

    def x(self, value: float) -> float:
        share = (value - self.x_axis.low) / (self.x_axis.high - self.x_axis.low)
        return self.left + share * (self.right - self.left)

    def y(self, value: float) -> float:
        share = (value - self.y_axis.low) / (self.y_axis.high - self.y_axis.low)
        return self.floor - share * (self.floor - TOP)

    def at(self, point: Point) -> Point:
        return self.x(point[0]), self.y(point[1])


def draw_chart(chart: Chart) -> Drawing:
    """The chart as a drawing."""
    labels = [_shorten(line.label) for line in chart.lines if line.label and not line.quiet]
    if chart.mark is not None:
        labels.append(_shorten(chart.mark.label))
    margin = 18.0 + LETTER_WIDTH * max((len(label) for label in labels), default=0)
    frame = _Frame(chart.x, chart.y, LEFT, chart.width - margin, chart.height - BOTTOM)
    shapes = [*_axes(chart, frame), *_curves(chart, frame)]
    for callout in chart.callouts:
        shapes += _called_out(callout, frame)
    return Drawing(
        "chart" if chart.width == WIDTH else "chart half",
        chart.width,
        chart.height,
        tuple(shapes),
        title=chart.title,
        description=chart.description,
    )


def _axes(chart: Chart, frame: _Frame) -> list[Shape]:
    shapes: list[Shape] = [
        Label(0, 12, chart.y.label, "axis-label"),
        Label(frame.right, chart.height - 4, chart.x.label, "axis-label", "end"),
    ]
    if chart.reached is not None and chart.reached < chart.x.high:
        edge = frame.x(chart.reached)
        shapes.append(Box(edge, TOP, frame.right - edge, frame.floor - TOP, "not-run"))
        if frame.right - edge > 60:
            middle = (edge + frame.right) / 2
            shapes.append(Label(middle, TOP + 18, "not run", "tick", "middle"))
    for value, name in chart.y.ticks:
        height = frame.y(value)
        shapes.append(Stroke(((frame.left, height), (frame.right, height)), "grid"))
        shapes.append(Label(frame.left - 8, height + 4, name, "tick", "end"))
    for value, name in chart.x.ticks:
        shapes.append(Label(frame.x(value), frame.floor + 18, name, "tick", "middle"))
    return shapes


def _curves(chart: Chart, frame: _Frame) -> list[Shape]:
    shapes: list[Shape] = []
    ends: list[tuple[float, str, str]] = []  # where a label wants to be, its text, its style
    if chart.guessing:
        corners = (frame.at((0, 0)), frame.at((1, 1)))
        shapes.append(Stroke(corners, "mark"))
        x, y = frame.at((0.62, 0.56))
        shapes.append(Label(x, y + 12, "guessing blindly", "mark-label"))
    if chart.mark is not None:
        height = frame.y(chart.mark.value)
        shapes.append(Stroke(((frame.left, height), (frame.right, height)), "mark"))
        ends.append((height, chart.mark.label, "mark-label"))
    for line in chart.lines:
        if line.quiet:
            shapes.append(Stroke(tuple(map(frame.at, line.points)), "line quiet"))
    for index, line in enumerate(line for line in chart.lines if not line.quiet):
        colour = f"series-{index % SERIES_COLOURS}"
        points = tuple(map(frame.at, line.points))
        shapes.append(Stroke(points, f"line {colour}"))
        if chart.has_dots and len(points) <= MOST_DOTS:
            shapes += [Dot(x, y, 2.6, colour) for x, y in points]
        if line.label:
            ends.append((points[-1][1], line.label, f"line-label {colour}"))
    for height, (_, label, style) in _spread(ends, frame.floor):
        shapes.append(Label(frame.right + 10, height + 4, _shorten(label), style))
    return shapes


def _called_out(callout: Callout, frame: _Frame) -> list[Shape]:
    x, y = frame.at(callout.at)
    label = Label(x + 9, max(y - 8, TOP + 14), callout.label, "callout")
    if callout.is_below:
        label = Label(x - 8, min(y + 20, frame.floor - 6), callout.label, "callout", "end")
    return [Stroke(((x, y), (x, frame.floor)), "mark"), Dot(x, y, 4, "series-0"), label]


def _spread(
    ends: list[tuple[float, str, str]], floor: float
) -> list[tuple[float, tuple[float, str, str]]]:
    """Heights near the wanted ones at which labels do not cover one another."""
    ordered = sorted(ends)
    heights: list[float] = []
    for wanted, _, _ in ordered:
        heights.append(max([wanted, *(height + LABEL_GAP for height in heights[-1:])]))
    room = floor
    for i in reversed(range(len(heights))):
        heights[i] = min(heights[i], room)
        room = heights[i] - LABEL_GAP
    return list(zip(heights, ordered, strict=True))


def _shorten(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
