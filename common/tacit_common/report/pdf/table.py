"""Draws a table into a PDF: columns as wide as they need, rows that do not break."""

from fpdf.enums import Align

from tacit_common.report.page.blocks import Cell, Column, Row, Table
from tacit_common.report.pdf import drawing as look
from tacit_common.report.pdf.sheet import Family, Sheet

_SIZE, _SMALL = 7.6, 6.8
_PAD = 1.1  # above and below a row's text
_GAP = 3.0  # between columns
_MARK_HEIGHT = 2.4
_KEPT_TOGETHER = 60.0  # a table that is no higher does not go over two pages
_MARK_WIDTH = 34.0


def draw_table(sheet: Sheet, table: Table) -> None:
    """The table with its caption; its head is repeated on every page."""
    sheet.ln(1.5)
    widths = _widths(sheet, table)
    caption = table.caption if not table.summary else f"{table.summary}. {table.caption}"
    heights = [_height(sheet, row, widths) for row in table.rows]
    together = heights if sum(heights) <= _KEPT_TOGETHER else heights[:2]
    caption_height = sheet.height_of(caption, size=_SIZE, width=sheet.epw)
    sheet.make_room(caption_height + 9 + sum(together))
    sheet.words(caption, size=_SIZE, colour=look.MUTED)
    sheet.ln(1)
    has_head = table.kind != "gauges"
    if has_head:
        _draw_head(sheet, table.columns, widths)
    for row, height in zip(table.rows, heights, strict=True):
        if sheet.make_room(height) and has_head:
            _draw_head(sheet, table.columns, widths)
        _draw_row(sheet, row, table.columns, widths, has_rule=has_head)
    sheet.ln(3)


# --- widths ----------------------------------------------------------------------------


def _widths(sheet: Sheet, table: Table) -> list[float]:
    """Numbers get what they need; text shares the rest, but never less than a word needs."""
    room = sheet.epw
    least, wanted = [], []
    for index, column in enumerate(table.columns):
        cells = [row.cells[index] for row in table.rows]
        least.append(_GAP + max(_longest_word(sheet, column, cells), _marks(cells)))
        wanted.append(_GAP + max(_longest_line(sheet, column, cells), _marks(cells)))
    if table.kind in {"narrow", "gauges"} or sum(wanted) <= 0:
        return wanted
    if sum(wanted) <= room:  # everything fits on one line: spread what is left
        spare = (room - sum(wanted)) / len(wanted)
        return [width + spare for width in wanted]
    taken = [
        want if column.is_number else low
        for column, low, want in zip(table.columns, least, wanted, strict=True)
    ]
    if sum(taken) > room:
        taken = least
    left = max(0.0, room - sum(taken))
    needs = [
        column.share * max(0.0, want - have)
        for column, want, have in zip(table.columns, wanted, taken, strict=True)
    ]
    total = sum(needs) or 1.0
    widths = [have + left * need / total for have, need in zip(taken, needs, strict=True)]
    return [width * min(1.0, room / sum(widths)) for width in widths]


def _longest_word(sheet: Sheet, column: Column, cells: list[Cell]) -> float:
    texts = [column.name, *(cell.note for cell in cells)]
    texts += [cell.text for cell in cells if not cell.is_code]
    sheet.set_font("sans", style="B", size=_SIZE)
    words = [word for text in texts for word in text.split(" ")]
    longest = max((sheet.get_string_width(word) for word in words), default=0.0)
    return min(longest, sheet.epw / 3)


def _longest_line(sheet: Sheet, column: Column, cells: list[Cell]) -> float:
    longest = 0.0
    for cell in cells:
        sheet.set_font("mono" if cell.is_code else "sans", size=_SIZE)
        longest = max(longest, sheet.get_string_width(cell.text))
        sheet.set_font("sans", size=_SMALL)
        longest = max(longest, sheet.get_string_width(cell.note))
    sheet.set_font("sans", style="B", size=_SIZE)
    head = sheet.get_string_width(column.name)
    if column.is_number:  # a head may take two lines
        words = column.name.split(" ")
        head = max([head * 0.6, *(sheet.get_string_width(word) for word in words)])
    return max(longest, head) + 0.5


def _marks(cells: list[Cell]) -> float:
    return _MARK_WIDTH if any(cell.mark is not None for cell in cells) else 0.0


# --- rows ------------------------------------------------------------------------------


def _draw_head(sheet: Sheet, columns: tuple[Column, ...], widths: list[float]) -> None:
    heads = Row(tuple(Cell(column.name) for column in columns))
    top, x = sheet.get_y(), sheet.l_margin
    height = _height(sheet, heads, widths)
    for cell, column, width in zip(heads.cells, columns, widths, strict=True):
        sheet.set_y(top + _PAD)
        _draw_text(sheet, cell, column, x, width, colour=look.MUTED)
        x += width
    sheet.set_y(top + height)
    _draw_rule(sheet, sum(widths), colour=look.GREY)


def _draw_row(
    sheet: Sheet, row: Row, columns: tuple[Column, ...], widths: list[float], *, has_rule: bool
) -> None:
    top, x = sheet.get_y(), sheet.l_margin
    height = _height(sheet, row, widths)
    if row.role == "result":
        sheet.set_fill_color(*look.PANEL)
        sheet.rect(x, top, sum(widths), height, style="F")
    is_strong = row.role in {"result", "total"}
    colour = look.ACCENT if row.role == "result" else look.INK
    for cell, column, width in zip(row.cells, columns, widths, strict=True):
        sheet.set_y(top + _PAD)
        if cell.text:
            _draw_text(sheet, cell, column, x, width, colour=colour, bold=is_strong)
        if cell.mark is not None:
            y = sheet.get_y() + (0.6 if cell.text else 0.5)
            look.draw(sheet, cell.mark, x=x, y=y, width=_MARK_WIDTH, height=_MARK_HEIGHT)
            sheet.set_y(y + _MARK_HEIGHT + 0.4)
        if cell.note:
            sheet.words(cell.note, size=_SMALL, colour=look.MUTED, x=x, width=width - _GAP)
        x += width
    sheet.set_y(top + height)
    if has_rule:
        _draw_rule(sheet, sum(widths), colour=look.RULE)


def _draw_rule(sheet: Sheet, width: float, *, colour: look.Colour) -> None:
    sheet.set_draw_color(*colour)
    sheet.set_line_width(0.2)
    sheet.line(sheet.l_margin, sheet.get_y(), sheet.l_margin + width, sheet.get_y())


def _draw_text(
    sheet: Sheet,
    cell: Cell,
    column: Column,
    x: float,
    width: float,
    *,
    colour: look.Colour,
    bold: bool = False,
) -> None:
    sheet.words(
        cell.text,
        size=_SIZE,
        family="mono" if cell.is_code else "sans",
        bold=bold and not cell.is_code,
        colour=colour,
        x=x,
        width=width - _GAP,
        align=Align.R if column.is_number else Align.L,
    )


def _height(sheet: Sheet, row: Row, widths: list[float]) -> float:
    heights = []
    for cell, width in zip(row.cells, widths, strict=True):
        inner = width - _GAP
        family: Family = "mono" if cell.is_code else "sans"
        bold = row.role in {"result", "total"} and not cell.is_code
        height = sheet.height_of(cell.text, size=_SIZE, width=inner, family=family, bold=bold)
        if cell.mark is not None:
            height += _MARK_HEIGHT + 1.0
        height += sheet.height_of(cell.note, size=_SMALL, width=inner)
        heights.append(height)
    return max(heights) + 2 * _PAD
