"""Scaling curves as SVG files: panels side by side, a logarithmic x axis, light and dark.

Drawn with the shapes of the report's own plots. A file brings its style with it, for a page
that shows it as a picture lends it none.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tacit_common.report.drawing import Box, Dot, Drawing, Label, Point, Shape, Stroke, number, svg

_WIDTH, _HEIGHT = 360.0, 250.0  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 14.0, 44.0, 44.0  # around its axes
_LEGEND = 26.0
_LOGARITHMIC_FROM = 12.0  # largest over smallest value from which a y axis is logarithmic
_STYLE = """
svg { font: 12px system-ui, -apple-system, "Segoe UI", "Noto Sans", Arial, sans-serif }
text { fill: #33363b } .quiet { fill: #5e6168 } .title { font-weight: 600 }
.paper { fill: #fdfcf9 } .grid, .axis, .c0, .c1 { fill: none }
.grid { stroke: #e2dfd6 } .axis { stroke: #7b7d82 }
.c0 { stroke: #17565e; stroke-width: 2 } .c1 { stroke: #b3541e; stroke-width: 2 }
circle.c0, .k0 { fill: #17565e } circle.c1, .k1 { fill: #b3541e }
@media (prefers-color-scheme: dark) {
  text { fill: #e8e6e0 } .quiet { fill: #a3a5a4 } .paper { fill: #14171a }
  .grid { stroke: #2f343a } .axis { stroke: #9da1a4 }
  .c0 { stroke: #7fc8c6 } .c1 { stroke: #eda06d }
  circle.c0, .k0 { fill: #7fc8c6 } circle.c1, .k1 { fill: #eda06d }
}
"""


@dataclass(frozen=True)
class Series:
    """A curve; all x and y are positive."""

    label: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Panel:
    """One pair of axes. The curves of all panels of a picture stand in the same order."""

    title: str
    x_label: str
    series: Sequence[Series]


@dataclass(frozen=True)
class _Axis:
    """Where values lie between `first` and `last`, in the picture's own lengths."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool

    def place(self, value: float) -> float:
        low, high, here = (
            map(math.log10, (self.low, self.high, value))
            if self.logarithmic
            else (self.low, self.high, value)
        )
        return self.first + (here - low) / (high - low) * (self.last - self.first)

    def ticks(self) -> list[float]:
        if not self.logarithmic:
            step = _round_step(self.high / 4)
            return [step * n for n in range(int(self.high / step + 1e-9) + 1)]
        powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
        return [10.0**power for power in powers]


def picture(title: str, panels: Sequence[Panel]) -> str:
    """An SVG file with the panels side by side and one legend; `title` is for who cannot see it."""
    width, height = _WIDTH * len(panels), _HEIGHT + _LEGEND
    shapes: list[Shape] = [Box(0, 0, width, height, "paper")]
    shapes += _legend([series.label for series in panels[0].series])
    for index, panel in enumerate(panels):
        shapes += _panel(panel, index * _WIDTH)
    described = ". ".join(map(_in_words, panels))
    drawing = Drawing("curves", width, height, tuple(shapes), title, described)
    size = f'width="{number(width)}" height="{number(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return f"{head}<style>{_STYLE}</style>{svg(drawing)}</svg>\n"


def _legend(labels: Sequence[str]) -> Iterator[Shape]:
    x = _LEFT
    for index, label in enumerate(labels):
        yield Box(x, 12, 14, 8, f"k{index}")
        yield Label(x + 20, 20, label, "")
        x += 34 + 6.5 * len(label)


def _panel(panel: Panel, left: float) -> Iterator[Shape]:
    points = [point for series in panel.series for point in series.points]
    x = _axis([x for x, _ in points], left + _LEFT, left + _WIDTH - _RIGHT, logarithmic=True)
    top, bottom = _LEGEND + _TOP - 10, _LEGEND + _HEIGHT - _BOTTOM
    heights = [y for _, y in points]
    wide = max(heights) / min(heights) >= _LOGARITHMIC_FROM
    y = _axis(heights, bottom, top, logarithmic=wide)
    yield Label(left + _LEFT, _LEGEND + 20, panel.title, "title")
    for value in y.ticks():
        here = y.place(value)
        yield Stroke(((x.first, here), (x.last, here)), "grid")
        yield Label(x.first - 6, here + 4, _short(value), "quiet", "end")
    for value in x.ticks():
        here = x.place(value)
        yield Stroke(((here, bottom), (here, bottom + 4)), "axis")
        yield Label(here, bottom + 17, _short(value), "quiet", "middle")
    yield Stroke(((x.first, bottom), (x.last, bottom)), "axis")
    yield Label((x.first + x.last) / 2, bottom + 35, panel.x_label, "quiet", "middle")
    for index, series in enumerate(panel.series):
        places = tuple((x.place(a), y.place(b)) for a, b in series.points)
        yield Stroke(places, f"c{index}")
        for a, b in places:
            yield Dot(a, b, 3, f"c{index}")


def _axis(values: Sequence[float], first: float, last: float, *, logarithmic: bool) -> _Axis:
    if not logarithmic:
        step = _round_step(max(values) / 4)
        return _Axis(0.0, step * math.ceil(max(values) / step * 1.02), first, last, False)
    low, high = (math.log10(limit(values)) for limit in (min, max))
    margin = max(0.04 * (high - low), 0.05)
    # A power of ten on each side, so that there are at least two marks to read it by.
    low, high = min(low - margin, math.floor(high)), max(high + margin, math.floor(low) + 1)
    return _Axis(10**low, 10**high, first, last, True)


def _round_step(value: float) -> float:
    """The least of 1, 2, 5 times a power of ten that is no less than `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * 0.999)


def _short(value: float) -> str:
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:g}{letter}"
    return f"{value:.3g}"


def _in_words(panel: Panel) -> str:
    curves = (
        f"{series.label}: " + ", ".join(f"{b:.3g} at {_short(a)}" for a, b in series.points)
        for series in panel.series
    )
    return f"{panel.title} by {panel.x_label}: " + "; ".join(curves)
