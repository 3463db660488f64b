"""The PDF says what the page says. Its text is read here without the library that wrote it."""

import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from tacit_common.report import Report, Signature, render_html
from tacit_common.report.pdf import render_pdf

Example = Callable[..., Report]
SIGNATURE = Signature(signer="coordinator", public_key="ab" * 32, signature="cd" * 64)


# --- reading a PDF ---------------------------------------------------------------------


def objects(pdf: bytes) -> dict[int, bytes]:
    """Every object by number; a compressed stream is unpacked."""
    found = {}
    for match in re.finditer(rb"(\d+) 0 obj\n(.*?)\nendobj", pdf, re.DOTALL):
        head, marker, stream = match[2].partition(b"\nstream\n")
        if marker:
            stream = stream.removesuffix(b"\nendstream")
            if b"/FlateDecode" in head:
                stream = zlib.decompress(stream)
        found[int(match[1])] = head + marker + stream
    return found


def glyph_tables(pdf: bytes) -> dict[bytes, dict[int, str]]:
    """From the name of each font to what its codes mean (ToUnicode, ISO 32000-1, 9.10.3)."""
    parts = objects(pdf)
    tables = {}
    for name, number in set(re.findall(rb"/(F\d+) (\d+) 0 R", pdf)):
        (table,) = re.findall(rb"/ToUnicode (\d+) 0 R", parts[int(number)])
        pairs = re.findall(rb"<([0-9A-F]{4})> <([0-9A-F]+)>", parts[int(table)])
        tables[name] = {
            int(code, 16): bytes.fromhex(means.decode()).decode("utf-16-be")
            for code, means in pairs
        }
    return tables


def unescaped(string: bytes) -> bytes:
    """A literal string as the bytes that it stands for (ISO 32000-1, 7.3.4.2)."""
    named = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"}
    return re.sub(rb"\\(.)", lambda m: named.get(m[1], m[1]), string, flags=re.DOTALL)


def text_of(pdf: bytes) -> str:
    """All text but footers, without any space, in the order in which it was drawn."""
    tables, words, font = glyph_tables(pdf), [], b""
    for body in objects(pdf).values():
        shown = rb"/(F\d+) [\d.]+ Tf|\(((?:\\.|[^\\()])*)\) Tj"
        for name, string in re.findall(shown, body, re.DOTALL):
            if name:
                font = name
                continue
            codes = unescaped(string)
            line = "".join(
                tables[font][int.from_bytes(codes[i : i + 2])] for i in range(0, len(codes), 2)
            )
            # A footer may stand in the middle of a paragraph.
            if not re.fullmatch(r"page \d+|[\w-]+: Tacit training report", line):
                words.append(line)
    return squeezed("".join(words))


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text).replace("\x00", "")


class Words(HTMLParser):
    """Pieces of text of a page, but for styles and titles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.skipping = 0
        self.pieces: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skipping += tag in {"style", "title", "sub"}

    def handle_endtag(self, tag: str) -> None:
        self.skipping -= tag in {"style", "title", "sub"}

    def handle_data(self, data: str) -> None:
        if not self.skipping and squeezed(data):
            self.pieces.append(squeezed(data))


# --- what it says ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def person(example_report: Example) -> Report:
    return example_report(subject=True, audited=True, earlier=2.5)


@pytest.fixture(scope="module")
def pdf(person: Report) -> bytes:
    return render_pdf(person, [SIGNATURE])


def test_pdf_says_every_word_of_the_page(person: Report, pdf: bytes) -> None:
    text = text_of(pdf)
    pieces = Words(render_html(person, [SIGNATURE])).pieces
    assert len(pieces) > 400
    only_on_screen = {"Thispageloadsnothingandrunsnoscript.", "Shareofthecap"}
    formal = squeezed(person.privacy.formal_statement).replace("_k", "ₖ")
    assert formal in text
    missing = [
        piece
        for piece in pieces
        if piece not in text
        and not any(piece.endswith(end) for end in only_on_screen)
        and piece not in squeezed(person.privacy.formal_statement).replace("_k", "")
    ]
    assert missing == []


def test_pdf_says_the_statement_the_limits_and_the_caps(person: Report, pdf: bytes) -> None:
    text, privacy = text_of(pdf), person.privacy
    sentences = [privacy.plain_statement, privacy.setting, *privacy.not_covered, *privacy.outputs]
    sentences += [a.text for a in privacy.assumptions]
    sentences += ["✓ held", "✗ not held", "? unknown", "10.5 of 12.0"]
    for sentence in sentences:
        assert squeezed(sentence) in text, sentence


def test_pdf_without_privacy_says_so_in_full(example_report: Example) -> None:
    text = text_of(render_pdf(example_report(private=False)))
    assert squeezed("Five simulated sites trained one encoder together, with no diff") in text
    assert squeezed("No differential privacy. Nothing limits what this training may") in text
    assert squeezed("is not signed") in text


def test_a_word_that_is_not_in_the_pdf_would_be_missed(pdf: bytes) -> None:
    assert squeezed("Nothing limits what this training may") not in text_of(pdf)


# --- how it is made --------------------------------------------------------------------


def test_equal_reports_give_equal_bytes(person: Report, pdf: bytes) -> None:
    assert render_pdf(person, [SIGNATURE]) == pdf
    other = person.model_copy(update={"verdicts": ("Another verdict.",)})
    assert render_pdf(other, [SIGNATURE]) != pdf


def test_pages_are_a4_and_hold_no_script_and_no_link(pdf: bytes) -> None:
    boxes = set(re.findall(rb"/MediaBox \[([^\]]+)\]", pdf))
    assert boxes == {b"0 0 595.28 841.89"}
    for part in objects(pdf).values():
        head = part.partition(b"\nstream\n")[0]
        assert not re.search(rb"/(JavaScript|JS|URI|Launch|OpenAction /|EmbeddedFile)\b", head)


def test_the_page_is_light_enough_to_send(pdf: bytes) -> None:
    assert len(pdf) < 500_000


@pytest.mark.slow
def test_every_kind_of_report_fits_on_paper(report_variant: Report) -> None:
    text = text_of(render_pdf(report_variant))
    assert squeezed("How to check this report") in text
    for site in report_variant.sites:
        assert squeezed(site.name) in text


def test_names_that_are_long_or_strange_do_not_stop_it(example_report: Example) -> None:
    names = ("a" * 200, "Krankenhaus Süd–Ost (Städtisch) № 7", "病院")
    text = text_of(render_pdf(example_report(sites=names, silent=None)))
    assert names[0][:30] in text
    assert squeezed(names[1]) in text
