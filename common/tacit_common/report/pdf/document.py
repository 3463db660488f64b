"""Draws `report.pdf`: the sections of the page in the same words, on A4.

The fonts are matplotlib's DejaVu, which hold every sign that a report uses. Charts are
vectors. Equal reports give equal bytes.
"""

import base64
import io
from collections.abc import Sequence

from PIL import Image

from tacit_common.report.claims import Signature
from tacit_common.report.page import Block, Page, build_page
from tacit_common.report.page.blocks import (
    Alarm,
    Bullets,
    Checks,
    Command,
    Fact,
    Facts,
    Figure,
    FigurePair,
    Heading,
    Highlights,
    Paragraph,
    PictureGrid,
    PictureRow,
    Quote,
    Section,
    Table,
    Tile,
)
from tacit_common.report.pdf import drawing as look
from tacit_common.report.pdf.sheet import Family, Sheet
from tacit_common.report.pdf.table import draw_table
from tacit_common.report.schema import Report

_BODY, _SMALL = 9.0, 7.6
_COLUMN_GAP = 8.0
_PICTURE = 12.0  # mm
_PIXELS = 96  # small pictures are enlarged to this, so that no viewer blurs them


def render_pdf(report: Report, signatures: Sequence[Signature] = ()) -> bytes:
    """The report as a PDF; without signatures it says so."""
    page = build_page(report, signatures)
    sheet = Sheet(title=page.title, date=report.run.finished)
    _draw_top(sheet, page)
    for section in page.sections:
        _draw_section(sheet, section)
    sheet.ln(4)
    sheet.rule()
    sheet.ln(2)
    sheet.words(page.colophon, size=7, colour=look.MUTED)
    return bytes(sheet.output())


# --- the first page --------------------------------------------------------------------


def _draw_top(sheet: Sheet, page: Page) -> None:
    badge = f" ({page.badge})" if page.badge else ""
    sheet.words(
        f"Tacit training report of {page.name}, {page.date}{badge}", size=8, colour=look.MUTED
    )
    sheet.ln(2)
    sheet.start_section(page.headline, level=0)
    sheet.words(page.headline, size=19, family="serif")
    sheet.ln(3)
    if page.verdict:
        sheet.words(page.verdict, size=10.5)
        sheet.ln(3)
    _draw_tiles(sheet, page.tiles)
    _draw_blocks(sheet, page.top)


def _draw_tiles(sheet: Sheet, tiles: Sequence[Tile]) -> None:
    width = sheet.epw / len(tiles)
    sheet.rule()
    top = bottom = sheet.get_y() + 2.5
    for index, tile in enumerate(tiles):
        x = sheet.l_margin + index * width
        sheet.set_y(top)
        sheet.words(tile.label, size=7.2, colour=look.MUTED, x=x, width=width - 3)
        sheet.words(tile.value, size=14, family="serif", x=x, width=width)
        sheet.words(tile.note, size=7.2, colour=look.MUTED, x=x, width=width - 3)
        bottom = max(bottom, sheet.get_y())
    sheet.set_y(bottom + 2.5)
    sheet.rule()
    sheet.ln(3)


def _draw_section(sheet: Sheet, section: Section) -> None:
    sheet.ln(5)
    sheet.make_room(16 + _least_height(sheet, section.blocks[0]) if section.blocks else 0)
    if sheet.get_y() > sheet.t_margin:
        sheet.rule()
        sheet.ln(4)
    sheet.start_section(section.title, level=1)
    sheet.words(section.title, size=14, family="serif")
    sheet.ln(2)
    _draw_blocks(sheet, section.blocks)


def _least_height(sheet: Sheet, block: Block) -> float:
    """How much of the block must stand below its heading."""
    match block:
        case Figure():
            return _figure_height(sheet, block, sheet.epw)
        case Table():
            return 30.0
    return 20.0


# --- blocks ----------------------------------------------------------------------------


def _draw_blocks(sheet: Sheet, blocks: Sequence[Block]) -> None:
    for block in blocks:
        _draw_block(sheet, block)


def _draw_block(sheet: Sheet, block: Block) -> None:  # noqa: PLR0912 - one case a block
    match block:
        case Paragraph(role="lead"):
            sheet.words(block.text, size=12, family="serif")
            sheet.ln(2.5)
        case Paragraph():
            is_small = block.role == "small"
            colour = look.MUTED if is_small else look.INK
            sheet.words(block.text, size=_SMALL if is_small else _BODY, colour=colour)
            sheet.ln(2)
        case Heading():
            sheet.ln(2)
            sheet.make_room(22)
            sheet.words(block.text, size=_BODY, bold=True)
            sheet.ln(1)
        case Alarm():
            _draw_panel(sheet, block.title, block.text, look.ALARM_SOFT, look.ALARM, _BODY)
        case Quote():
            _draw_panel(sheet, block.label, block.text, look.PANEL, look.ACCENT, _BODY)
        case Highlights():
            first, *rest = block.sentences
            _draw_panel(sheet, first, " ".join(rest), None, look.ACCENT, 11)
        case Command():
            _draw_command(sheet, block)
        case Bullets():
            for item in block.items:
                _draw_item(sheet, "•", item, indent=4)
            sheet.ln(1)
        case Checks():
            for check in block.items:
                sheet.make_room(12)
                is_broken = check.held is False
                colour = look.ALARM if is_broken else look.ACCENT if check.held else look.MUTED
                _draw_item(
                    sheet, check.verdict, check.text, indent=26, colour=colour, bold=is_broken
                )
                x = sheet.l_margin + 26
                sheet.words(check.why, size=_SMALL, colour=look.MUTED, x=x)
                sheet.ln(1.5)
        case Facts():
            _draw_facts(sheet, block)
        case Table():
            draw_table(sheet, block)
        case Figure():
            _draw_figures(sheet, [block])
        case FigurePair():
            _draw_figures(sheet, [block.left, block.right])
        case PictureGrid():
            _draw_pictures(sheet, block)


def _draw_panel(
    sheet: Sheet,
    title: str,
    text: str,
    fill: look.Colour | None,
    edge: look.Colour,
    title_size: float,
) -> None:
    x, width = sheet.l_margin + 4, sheet.epw - 8
    is_strong = fill == look.ALARM_SOFT
    height = sheet.height_of(title, size=title_size, width=width, bold=is_strong)
    height += sheet.height_of(text, size=_BODY, width=width) + 5
    sheet.make_room(height)
    top = sheet.get_y()
    sheet.panel(height, fill=fill, edge=edge)
    sheet.set_y(top + 2)
    quiet = look.MUTED if title_size == _BODY else look.INK
    colour = look.ALARM if is_strong else quiet
    sheet.words(title, size=title_size, bold=is_strong, colour=colour, x=x, width=width)
    if text:
        sheet.words(text, size=_BODY, x=x, width=width)
    sheet.set_y(top + height + 3)


def _draw_command(sheet: Sheet, block: Command) -> None:
    width = sheet.epw - 8
    height = sheet.height_of(block.line, size=8.5, width=width, family="mono") + 4
    sheet.make_room(height)
    top = sheet.get_y()
    sheet.panel(height, fill=look.PANEL, edge=look.RULE)
    sheet.set_y(top + 2)
    sheet.words(block.line, size=8.5, family="mono", x=sheet.l_margin + 4, width=width)
    sheet.set_y(top + height + 2.5)


def _draw_item(
    sheet: Sheet,
    sign: str,
    text: str,
    *,
    indent: float,
    colour: look.Colour = look.INK,
    bold: bool = False,
) -> None:
    width = sheet.epw - indent
    sheet.make_room(sheet.height_of(text, size=_BODY, width=width))
    top = sheet.get_y()
    sheet.words(sign, size=_BODY, colour=colour, bold=bold, width=indent)
    sheet.set_y(top)
    sheet.words(text, size=_BODY, x=sheet.l_margin + indent, width=width)
    sheet.ln(0.8)


def _draw_facts(sheet: Sheet, block: Facts) -> None:
    narrow = [fact for fact in block.items if not fact.is_wide]
    width = (sheet.epw - 2 * _COLUMN_GAP) / 3
    for start in range(0, len(narrow), 3):
        sheet.make_room(14)
        top = bottom = sheet.get_y()
        for index, fact in enumerate(narrow[start : start + 3]):
            sheet.set_y(top)
            _draw_fact(sheet, fact, sheet.l_margin + index * (width + _COLUMN_GAP), width)
            bottom = max(bottom, sheet.get_y())
        sheet.set_y(bottom + 1.8)
    for fact in block.items:
        if fact.is_wide:
            sheet.make_room(14)
            _draw_fact(sheet, fact, sheet.l_margin, sheet.epw)
            sheet.ln(1.8)
    sheet.ln(1)


def _draw_fact(sheet: Sheet, fact: Fact, x: float, width: float) -> None:
    sheet.words(fact.term, size=7.2, colour=look.MUTED, x=x, width=width)
    family: Family = "mono" if fact.is_code else "sans"
    size = 8.0 if fact.is_code else _BODY
    sheet.words(fact.value, size=size, family=family, x=x, width=width)
    if fact.note:
        sheet.words(fact.note, size=_SMALL, colour=look.MUTED, x=x, width=width)


# --- figures and pictures --------------------------------------------------------------


def _draw_figures(sheet: Sheet, figures: Sequence[Figure]) -> None:
    """Figures side by side, each with its caption below."""
    width = (sheet.epw - _COLUMN_GAP * (len(figures) - 1)) / len(figures)
    height = max(_figure_height(sheet, figure, width) for figure in figures)
    sheet.make_room(height)
    top = sheet.get_y()
    for index, figure in enumerate(figures):
        x = sheet.l_margin + index * (width + _COLUMN_GAP)
        drawn = look.draw(sheet, figure.drawing, x=x, y=top, width=width)
        sheet.set_y(top + drawn + 2)
        sheet.words(figure.caption, size=_SMALL, colour=look.MUTED, x=x, width=width)
    sheet.set_y(top + height + 3)


def _figure_height(sheet: Sheet, figure: Figure, width: float) -> float:
    drawn = figure.drawing.height * width / figure.drawing.width
    return drawn + 2 + sheet.height_of(figure.caption, size=_SMALL, width=width)


def _draw_pictures(sheet: Sheet, grid: PictureGrid) -> None:
    step = _PICTURE + (6.0 if grid.first_is_query else 1.0)
    sheet.make_room(step * min(len(grid.rows), 3) + 10)
    for row in grid.rows:
        sheet.make_room(step)
        _draw_picture_row(sheet, row, has_head=not grid.first_is_query, step=step)
    if grid.caption:
        sheet.ln(1)
        sheet.words(grid.caption, size=_SMALL, colour=look.MUTED)
    sheet.ln(3)


def _draw_picture_row(sheet: Sheet, row: PictureRow, *, has_head: bool, step: float) -> None:
    top, x = sheet.get_y(), sheet.l_margin
    if has_head:
        sheet.set_y(top + _PICTURE / 2 - 2)
        sheet.words(row.head, size=7.2, colour=look.MUTED, width=24)
        x += 24
    for index, picture in enumerate(row.pictures):
        if not has_head and index == 1:
            x += 6  # the query stands apart
        sheet.image(_enlarged(picture.source), x=x, y=top, w=_PICTURE, alt_text=picture.words)
        if picture.label:
            sheet.set_y(top + _PICTURE + 0.3)
            colour = look.ALARM if picture.is_other else look.MUTED
            sheet.words(
                picture.label,
                size=7.2,
                colour=colour,
                x=x,
                width=_PICTURE + 1,
                bold=picture.is_other,
            )
        x += _PICTURE + (4.0 if not has_head else 1.0)
    sheet.set_y(top + step)


def _enlarged(source: str) -> Image.Image:
    """The picture of a data URI, with pixels that stay squares."""
    picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    times = max(1, round(_PIXELS / max(picture.size)))
    size = (picture.width * times, picture.height * times)
    return picture.resize(size, Image.Resampling.NEAREST)
