"""Paper: an A4 document with fonts, a cursor and running text."""

import re
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from fpdf import FPDF
from fpdf.enums import Align, MethodReturnValue, WrapMode, XPos, YPos

from tacit_common.errors import UsageError
from tacit_common.report.pdf import drawing as look

MARGIN = 18.0
BOTTOM = 20.0
LEADING = 1.42  # line height over font size
MM_PER_POINT = 25.4 / 72

Family = Literal["sans", "serif", "mono"]

_FILES: tuple[tuple[Family, Literal["", "B"], str], ...] = (
    ("sans", "", "DejaVuSans.ttf"),
    ("sans", "B", "DejaVuSans-Bold.ttf"),
    ("serif", "", "DejaVuSerif.ttf"),
    ("mono", "", "DejaVuSansMono.ttf"),
)


class Sheet(FPDF):
    """Pages with a footer. Lengths are mm, font sizes points."""

    def __init__(self, *, title: str, date: datetime) -> None:
        super().__init__(format="A4", unit="mm")
        self._title = title
        self.set_margins(MARGIN, MARGIN, MARGIN)
        self.set_auto_page_break(True, margin=BOTTOM)
        self.c_margin = 0.0  # text begins where rules begin
        self.set_title(title)
        self.set_lang("en")
        self.set_creation_date(date)  # of the run, so that equal reports give equal bytes
        folder = _font_folder()
        for family, style, name in _FILES:
            self.add_font(family, style, folder / name)
        self.add_page()

    def footer(self) -> None:
        """The report's name and the number of the page."""
        self.set_y(-12)
        self.set_font("sans", size=7.5)
        self.set_text_color(*look.MUTED)
        self.cell(self.epw / 2, 4, self._title)
        self.cell(self.epw / 2, 4, f"page {self.page_no()}", align=Align.R)

    def words(
        self,
        text: str,
        *,
        size: float,
        family: Family = "sans",
        bold: bool = False,
        colour: look.Colour = look.INK,
        x: float | None = None,
        width: float | None = None,
        align: Align = Align.L,
    ) -> None:
        """Running text from the cursor on, wrapped; the cursor then stands below it."""
        self.set_font(family, style="B" if bold else "", size=size)
        self.set_text_color(*colour)
        left = self.l_margin if x is None else x
        self.set_x(left)
        self.multi_cell(
            self.epw - (left - self.l_margin) if width is None else width,
            size * LEADING * MM_PER_POINT,
            _set_in_type(text),
            align=align,
            new_x=XPos.LMARGIN,
            new_y=YPos.NEXT,
            wrapmode=WrapMode.CHAR if family == "mono" else WrapMode.WORD,
        )

    def height_of(
        self, text: str, *, size: float, width: float, family: Family = "sans", bold: bool = False
    ) -> float:
        """How high `words` would be."""
        if not text:
            return 0.0
        self.set_font(family, style="B" if bold else "", size=size)
        lines = self.multi_cell(
            width,
            size * LEADING * MM_PER_POINT,
            _set_in_type(text),
            align=Align.L,
            dry_run=True,
            output=MethodReturnValue.LINES,
            wrapmode=WrapMode.CHAR if family == "mono" else WrapMode.WORD,
        )
        count = len(lines) if isinstance(lines, list) else 1
        return count * size * LEADING * MM_PER_POINT

    def make_room(self, height: float) -> bool:
        """Go to a new page unless so much fits on this one. Whether it did."""
        if self.get_y() + height <= self.page_break_trigger or self.get_y() <= MARGIN:
            return False
        self.add_page()
        return True

    def rule(self, *, colour: look.Colour = look.RULE, width: float = 0.2) -> None:
        """A thin line across the page at the cursor."""
        self.set_draw_color(*colour)
        self.set_line_width(width)
        self.line(self.l_margin, self.get_y(), self.l_margin + self.epw, self.get_y())

    def panel(
        self, height: float, *, fill: look.Colour | None, edge: look.Colour, x: float | None = None
    ) -> None:
        """A coloured field from the cursor down, with a thick line on its left."""
        left = self.l_margin if x is None else x
        if fill is not None:
            self.set_fill_color(*fill)
            self.rect(left, self.get_y(), self.epw, height, style="F")
        self.set_fill_color(*edge)
        self.rect(left, self.get_y(), 0.9, height, style="F")


def _set_in_type(text: str) -> str:
    """A sentence with its ε_k and max_k set as in a paper."""
    return re.sub(r"\b(ε|max)_k\b", r"\1ₖ", text)


def _font_folder() -> Path:
    """Where matplotlib keeps its fonts; it need not be imported for that."""
    found = find_spec("matplotlib")
    for place in (found.submodule_search_locations or []) if found else []:
        folder = Path(place) / "mpl-data/fonts/ttf"
        if folder.is_dir():
            return folder
    raise UsageError(
        "the PDF cannot be drawn",
        why="the fonts that come with matplotlib are not installed",
        fix="reinstall matplotlib, or use the HTML report and print it",
    )
