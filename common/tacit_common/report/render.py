"""Draws `report.html` from a `Report`, and writes both files of a run.

The page is one file without scripts: styles, plots and pictures are inside it, and its
content security policy forbids a browser to load anything else.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tacit_common.files import write_atomically
from tacit_common.identity import Identity
from tacit_common.report.claims import Signature
from tacit_common.report.drawing import svg
from tacit_common.report.page import Block, build_page
from tacit_common.report.schema import Report
from tacit_common.report.signing import sign_report


def render_html(report: Report, signatures: Sequence[Signature] = ()) -> str:
    """The report as one self-contained HTML page; without signatures it says so."""
    template = _environment().get_template("report.html.j2")
    return template.render(page=build_page(report, signatures))


def write_report(directory: Path, report: Report, identity: Identity) -> tuple[Path, Path]:
    """Write `report.json`, signed and canonical, and `report.html` into `directory`.

    Guarantees: at every moment each file is absent, its former self, or complete.
    """
    signed = sign_report(report, identity)
    page = render_html(signed.report, signed.signatures)
    json_path, html_path = directory / "report.json", directory / "report.html"
    write_atomically(json_path, signed.canonical_json().encode())
    write_atomically(html_path, page.encode())
    return json_path, html_path


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tacit_common.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(kind=_kind, svg=svg, subscripts=_subscripts)
    return environment


def _kind(block: Block) -> str:
    return type(block).__name__


def _subscripts(sentence: str) -> Markup:
    """A sentence with its ε_k and max_k set as in a paper."""
    safe = str(escape(sentence))
    return Markup(re.sub(r"\b(ε|max)_(\w)\b", r"\1<sub>\2</sub>", safe))  # noqa: S704
