"""Draws a `Drawing` into a PDF as vectors, in the colours of the printed page."""

from dataclasses import dataclass

from fpdf import FPDF

from tacit_common.report.drawing import Box, Dot, Drawing, Label, Shape, Stroke

Colour = tuple[int, int, int]

INK: Colour = (0x11, 0x11, 0x11)
MUTED: Colour = (0x55, 0x55, 0x55)
RULE: Colour = (0xDD, 0xDD, 0xDD)
PANEL: Colour = (0xF6, 0xF5, 0xF1)
ACCENT: Colour = (0x17, 0x56, 0x5E)
ACCENT_SOFT: Colour = (0xC4, 0xDC, 0xDC)
ALARM: Colour = (0x8C, 0x34, 0x10)
ALARM_SOFT: Colour = (0xFB, 0xEC, 0xE2)
GREY: Colour = (0x77, 0x77, 0x77)
GREY_SOFT: Colour = (0xD6, 0xD4, 0xCD)
SERIES: tuple[Colour, ...] = (
    (0x17, 0x56, 0x5E),
    (0xB3, 0x54, 0x1E),
    (0x5A, 0x4B, 0x9B),
    (0x7D, 0x74, 0x11),
    (0xA2, 0x37, 0x6C),
    (0x2C, 0x7A, 0x46),
)

_TEXT_HEIGHT = 12.5  # of labels in a chart, in the drawing's own units
_POINTS_PER_MM = 72 / 25.4


@dataclass(frozen=True)
class _Pen:
    colour: Colour
    width: float
    dash: tuple[float, float] | None = None


_FILLS: dict[str, Colour] = {
    "room": GREY_SOFT,
    "spent": ACCENT,
    "over": ALARM,
    "spent pale": ACCENT_SOFT,
    "over pale": ALARM_SOFT,
    "limit": INK,
    "not-run": PANEL,
    "axis-label": MUTED,
    "tick": MUTED,
    "mark-label": INK,
    "callout": INK,
    **{f"series-{index}": colour for index, colour in enumerate(SERIES)},
    **{f"line-label series-{index}": colour for index, colour in enumerate(SERIES)},
}
_INTERVAL_FILLS: dict[tuple[str, str], Colour] = {
    ("interval result", "bar"): ACCENT_SOFT,
    ("interval result", "dot"): ACCENT,
    ("interval baseline", "bar"): GREY_SOFT,
    ("interval baseline", "dot"): GREY,
}
_PENS: dict[str, _Pen] = {
    "grid": _Pen(RULE, 1.0),
    "mark": _Pen(INK, 1.2, (5, 4)),
    "track": _Pen(RULE, 1.0),
    "ours": _Pen(ACCENT, 0.8),
    "spent hatch": _Pen(ACCENT, 1.4),
    "over hatch": _Pen(ALARM, 1.4),
    "line quiet": _Pen(GREY_SOFT, 1.2),
    **{f"line series-{index}": _Pen(colour, 2.0) for index, colour in enumerate(SERIES)},
}


def draw(
    pdf: FPDF, drawing: Drawing, *, x: float, y: float, width: float, height: float | None = None
) -> float:
    """Draw at (x, y), so wide (in mm), and give the height. `height` stretches the drawing."""
    across = width / drawing.width
    down = across if height is None else height / drawing.height
    for shape in drawing.shapes:
        _draw_shape(pdf, drawing.kind, shape, x, y, across, down)
    return drawing.height * down


def _draw_shape(
    pdf: FPDF, kind: str, shape: Shape, x: float, y: float, across: float, down: float
) -> None:
    match shape:
        case Stroke():
            pen = _PENS[shape.style]
            pdf.set_draw_color(*pen.colour)
            pdf.set_line_width(pen.width * across)
            if pen.dash is not None:
                pdf.set_dash_pattern(dash=pen.dash[0] * across, gap=pen.dash[1] * across)
            pdf.polyline([(x + a * across, y + b * down) for a, b in shape.points])
            pdf.set_dash_pattern()
        case Box():
            pdf.set_fill_color(*_fill(kind, shape.style))
            left, top = x + shape.x * across, y + shape.y * down
            pdf.rect(left, top, shape.width * across, shape.height * down, style="F")
        case Dot():
            pdf.set_fill_color(*_fill(kind, shape.style))
            pdf.circle(x + shape.x * across, y + shape.y * down, shape.radius * across, style="F")
        case Label():
            bold = shape.style == "callout"
            size = _TEXT_HEIGHT * across * _POINTS_PER_MM
            pdf.set_font("sans", style="B" if bold else "", size=size)
            pdf.set_text_color(*_fill(kind, shape.style))
            length = pdf.get_string_width(shape.text)
            shift = {"start": 0.0, "middle": length / 2, "end": length}[shape.anchor]
            pdf.text(x + shape.x * across - shift, y + shape.y * down, shape.text)


def _fill(kind: str, style: str) -> Colour:
    return _INTERVAL_FILLS.get((kind, style)) or _FILLS[style]
