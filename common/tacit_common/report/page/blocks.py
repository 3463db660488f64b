"""What a page is made of. HTML and PDF draw the same blocks, so they say the same words."""

from dataclasses import dataclass
from typing import Literal

from tacit_common.report.drawing import Drawing


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str
    role: Literal["normal", "lead", "small"] = "normal"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Alarm:
    """Something that nobody may overlook."""

    title: str
    text: str


@dataclass(frozen=True)
class Quote:
    """A formal statement, set apart."""

    label: str
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Highlights:
    """What the figures say; the most important sentence first."""

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """An assumption, and whether it held; None where it cannot be checked."""

    text: str
    held: bool | None
    why: str

    @property
    def verdict(self) -> str:
        """In words and with a mark, so that nothing hangs on colour."""
        if self.held is None:
            return "? unknown"
        return "✓ held" if self.held else "✗ not held"


@dataclass(frozen=True)
class Checks:
    """Assumptions."""

    items: tuple[Check, ...]


@dataclass(frozen=True)
class Fact:
    """A name and its value; `note` explains it."""

    term: str
    value: str
    note: str = ""
    is_code: bool = False
    is_wide: bool = False


@dataclass(frozen=True)
class Facts:
    """Names and values, side by side."""

    items: tuple[Fact, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table; `share` is its part of the width in print."""

    name: str
    is_number: bool = False
    share: float = 1.0


@dataclass(frozen=True)
class Cell:
    """What stands in a table: text, a small drawing below it, a quieter note below that."""

    text: str
    mark: Drawing | None = None
    note: str = ""
    is_code: bool = False


@dataclass(frozen=True)
class Row:
    """A row; its first cell is its head."""

    cells: tuple[Cell, ...]
    role: Literal["normal", "total", "result", "baseline"] = "normal"


@dataclass(frozen=True)
class Table:
    """A table; with `summary` it is folded on screen, and open in print."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    summary: str = ""
    kind: Literal["compact", "narrow", "gauges", "evaluation"] = "compact"


@dataclass(frozen=True)
class Figure:
    """A drawing and what it shows."""

    drawing: Drawing
    caption: str


@dataclass(frozen=True)
class FigurePair:
    """Two figures side by side where there is room."""

    left: Figure
    right: Figure


@dataclass(frozen=True)
class PictureCell:
    """A picture of a public record."""

    source: str
    words: str
    label: str = ""
    is_other: bool = False


@dataclass(frozen=True)
class PictureRow:
    """Pictures that belong together."""

    head: str
    pictures: tuple[PictureCell, ...]


@dataclass(frozen=True)
class PictureGrid:
    """Rows of pictures; `first_is_query` sets the first of each row apart."""

    rows: tuple[PictureRow, ...]
    caption: str
    first_is_query: bool = False


@dataclass(frozen=True)
class Command:
    """A line to type."""

    line: str


Block = (
    Paragraph
    | Heading
    | Alarm
    | Quote
    | Bullets
    | Highlights
    | Checks
    | Facts
    | Table
    | Figure
    | FigurePair
    | PictureGrid
    | Command
)


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Tile:
    """One key figure."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Page:
    """The whole report, ready to be drawn."""

    title: str
    name: str
    date: str
    badge: str
    headline: str
    verdict: str
    tiles: tuple[Tile, ...]
    top: tuple[Block, ...]
    """What stands on the first screen, below the key figures."""
    sections: tuple[Section, ...]
    colophon: str
