"""Inline SVG drawn by hand: its colours are the page's own, so it follows light and dark.

Every function returns markup whose text is escaped; classes are styled in style.css.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 760.0, 300.0
LEFT, TOP, BOTTOM = 46.0, 30.0, 42.0
LETTER_WIDTH = 6.6  # of the label font at its size, on average and rather too much
LONGEST_LABEL = 24
LABEL_GAP = 16.0
SERIES_COLOURS = 6
MOST_DOTS = 40
SMALLEST_SPAN = 1e-300  # below it, powers of ten are not floats


@dataclass(frozen=True)
class Line:
    """One curve; a quiet one has no label and no colour of its own."""

    label: str
    points: tuple[tuple[float, float], ...]
    quiet: bool = False


@dataclass(frozen=True)
class Mark:
    """A horizontal line that the curves are compared with."""

    label: str
    value: float


@dataclass(frozen=True)
class LineChart:
    """Curves over a horizontal axis of whole numbers that goes from `first` to `last`.

    Beyond `reached`, if that is less than `last`, nothing was measured; the space is marked.
    """

    description: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    first: int
    last: int
    reached: int
    mark: Mark | None = None
    from_zero: bool = False


def line_chart(chart: LineChart) -> Markup:
    """The chart as SVG."""
    values = [y for line in chart.lines for _, y in line.points]
    if chart.mark is not None:
        values.append(chart.mark.value)
    low, high = (0.0 if chart.from_zero else min(values)), max(values)
    ticks = nice_ticks(low, high)
    bottom_value, top_value = min(low, ticks[0]), max(high, ticks[-1])
    labels = [_shorten(line.label) for line in chart.lines if not line.quiet]
    if chart.mark is not None:
        labels.append(_shorten(chart.mark.label))
    right = WIDTH - 18.0 - LETTER_WIDTH * max((len(label) for label in labels), default=0)
    floor = HEIGHT - BOTTOM

    def x(value: float) -> float:
        return LEFT + (value - chart.first) / max(1, chart.last - chart.first) * (right - LEFT)

    def y(value: float) -> float:
        return floor - (value - bottom_value) / (top_value - bottom_value) * (floor - TOP)

    parts = [
        _open(WIDTH, HEIGHT, chart.description, "chart"),
        _text(0, 12, chart.y_label, "axis-label"),
        _text(right, HEIGHT - 4, chart.x_label, "axis-label", anchor="end"),
    ]
    if chart.reached < chart.last:
        edge = x(chart.reached)
        parts.append(_box(edge, TOP, right - edge, floor - TOP, "not-run"))
        if right - edge > 60:
            parts.append(_text((edge + right) / 2, TOP + 18, "not run", "tick", anchor="middle"))
    for tick in ticks:
        parts.append(_stroke(LEFT, y(tick), right, y(tick), "grid"))
        parts.append(_text(LEFT - 8, y(tick) + 4, _tick_label(tick, ticks), "tick", anchor="end"))
    for number in _whole_ticks(chart.first, chart.last):
        parts.append(_text(x(number), floor + 18, str(number), "tick", anchor="middle"))
    ends: list[tuple[float, str, str]] = []  # where a label wants to be, its text, its class
    if chart.mark is not None:
        parts.append(_stroke(LEFT, y(chart.mark.value), right, y(chart.mark.value), "mark"))
        ends.append((y(chart.mark.value), chart.mark.label, "mark-label"))
    for line in chart.lines:
        if line.quiet:
            parts.append(_polyline([(x(a), y(b)) for a, b in line.points], "quiet"))
    for number, line in enumerate(line for line in chart.lines if not line.quiet):
        colour = f"series-{number % SERIES_COLOURS}"
        parts.append(_polyline([(x(a), y(b)) for a, b in line.points], colour))
        if len(line.points) <= MOST_DOTS:
            parts += [_dot(x(a), y(b), 2.6, colour) for a, b in line.points]
        ends.append((y(line.points[-1][1]), line.label, f"line-label {colour}"))
    for height, (_, label, name) in _spread(ends, floor):
        parts.append(_text(right + 10, height + 4, _shorten(label), name))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def interval_mark(
    value: float,
    low: float,
    high: float,
    *,
    axis: tuple[float, float],
    highlight: bool,
    reference: float | None,
) -> Markup:
    """A dot with its interval as a bar on a thin track; the text beside it says the numbers.

    `reference` is a value to compare with, drawn as an upright line.
    """
    width, height = 160.0, 16.0

    def x(share: float) -> float:
        inside = min(max(share, axis[0]), axis[1])
        return 4 + (inside - axis[0]) / (axis[1] - axis[0]) * (width - 8)

    middle = height / 2
    kind = "result" if highlight else "baseline"
    parts = [
        Markup('<svg class="interval {}" viewBox="0 0 {} {}" aria-hidden="true">').format(
            kind, _n(width), _n(height)
        ),
        _stroke(4, middle, width - 4, middle, "track"),
        _box(x(low), middle - 3, max(1.0, x(high) - x(low)), 6, "bar"),
    ]
    if reference is not None:
        parts.append(_stroke(x(reference), 0, x(reference), height, "ours"))
    parts += [_dot(x(value), middle, 3.4, "dot"), Markup("</svg>")]
    return Markup("").join(parts)


def gauge(spent: float, budget: float) -> Markup:
    """How much of a budget is spent; the text beside it says the numbers."""
    width, height = 240.0, 10.0
    full = max(spent, budget)
    parts = [
        Markup('<svg class="gauge" viewBox="0 0 {} {}" preserveAspectRatio="none" ').format(
            _n(width), _n(height)
        ),
        Markup('aria-hidden="true">'),
        _box(0, 2, width, 6, "room"),
        _box(0, 2, spent / full * width, 6, "over" if spent > budget else "spent"),
        _box(budget / full * width - 1.5, 0, 1.5, height, "limit"),
        Markup("</svg>"),
    ]
    return Markup("").join(parts)


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


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _open(width: float, height: float, description: str, name: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        name, _n(width), _n(height), description
    )


def _text(x: float, y: float, text: str, name: str, *, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        _n(x), _n(y), name, anchor, text
    )


def _stroke(x1: float, y1: float, x2: float, y2: float, name: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(
        _n(x1), _n(y1), _n(x2), _n(y2), name
    )


def _box(x: float, y: float, width: float, height: float, name: str) -> Markup:
    return Markup('<rect x="{}" y="{}" width="{}" height="{}" rx="1.5" class="{}"/>').format(
        _n(x), _n(y), _n(width), _n(height), name
    )


def _dot(x: float, y: float, radius: float, name: str) -> Markup:
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}"/>').format(
        _n(x), _n(y), _n(radius), name
    )


def _polyline(points: Sequence[tuple[float, float]], name: str) -> Markup:
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(path, name)
