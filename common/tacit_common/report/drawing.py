"""A drawing as plain shapes: one geometry, written as SVG in the page and as vectors in the PDF.

A shape names a style, not a colour: style.css and the PDF's palette say what it looks
like, so that a drawing follows light, dark and print.
"""

from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Stroke:
    """A line through points."""

    points: tuple[Point, ...]
    style: str


@dataclass(frozen=True)
class Box:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    style: str


@dataclass(frozen=True)
class Dot:
    """A filled circle."""

    x: float
    y: float
    radius: float
    style: str


@dataclass(frozen=True)
class Label:
    """Text whose base line starts, stands centred or ends at a point."""

    x: float
    y: float
    text: str
    style: str
    anchor: Anchor = "start"


Shape = Stroke | Box | Dot | Label


@dataclass(frozen=True)
class Drawing:
    """Shapes on a canvas; y grows downwards. Without a title it only repeats text beside it."""

    kind: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    title: str = ""
    description: str = ""


def svg(drawing: Drawing) -> Markup:
    """The drawing as SVG. All text is escaped; classes are styled in style.css."""
    head = Markup('<svg class="{}" viewBox="0 0 {} {}"').format(
        drawing.kind, number(drawing.width), number(drawing.height)
    )
    if drawing.title:
        words = Markup(' role="img" aria-label="{}"><title>{}</title>').format(
            f"{drawing.title}. {drawing.description}".strip(), drawing.title
        )
    else:
        words = Markup(' preserveAspectRatio="none" aria-hidden="true">')
    return head + words + Markup("").join(map(_element, drawing.shapes)) + Markup("</svg>")


def _element(shape: Shape) -> Markup:
    match shape:
        case Stroke(points=points):
            path = " ".join(f"{number(x)},{number(y)}" for x, y in points)
            return Markup('<polyline points="{}" class="{}"/>').format(path, shape.style)
        case Box():
            sides = _sides(x=shape.x, y=shape.y, width=shape.width, height=shape.height)
            return Markup('<rect {} rx="1.5" class="{}"/>').format(sides, shape.style)
        case Dot():
            sides = _sides(cx=shape.x, cy=shape.y, r=shape.radius)
            return Markup('<circle {} class="{}"/>').format(sides, shape.style)
        case Label():
            sides = _sides(x=shape.x, y=shape.y)
            return Markup('<text {} class="{}" text-anchor="{}">{}</text>').format(
                sides, shape.style, shape.anchor, shape.text
            )


def _sides(**values: float) -> Markup:
    return Markup(" ").join(
        Markup('{}="{}"').format(name, number(value)) for name, value in values.items()
    )


def number(value: float) -> str:
    """A length as short as two decimals allow."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
