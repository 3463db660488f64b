"""The commands `tacit report RUN` and `tacit report verify FILE`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from click import Context
from typer.core import TyperGroup

from tacit_common.errors import UsageError

if TYPE_CHECKING:
    from tacit_common.ledger_chain import LedgerExport
    from tacit_common.report.verify import Check

_RUN_IS_MEANT = "show"


class _ReportGroup(TyperGroup):
    """`report verify FILE` is a command of its own; anything else is `report show …`."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = [_RUN_IS_MEANT, *args]
        return super().parse_args(ctx, args)


report_app = typer.Typer(
    cls=_ReportGroup,
    help="Read a run's report, or check one: tacit report RUN, tacit report verify FILE.",
    no_args_is_help=True,
)


@report_app.command(_RUN_IS_MEANT)
def show(
    run: Annotated[Path, typer.Argument(help="The folder of a run, or its report.json.")],
    format_: Annotated[
        Literal["html", "json", "pdf"], typer.Option("--format", help="What to write.")
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write; else report.html or .pdf in RUN, or JSON to stdout."),
    ] = None,
) -> None:
    """Write the report of a run as a page, as JSON or for print. `show` may be left out."""
    from tacit_common.files import write_atomically
    from tacit_common.report.pdf import render_pdf
    from tacit_common.report.render import render_html
    from tacit_common.report.signing import parse_signed_report

    path = _report_of(run)
    signed = parse_signed_report(_read(path), source=path.name)
    if not all(signed.is_genuine(signature) for signature in signed.signatures):
        raise UsageError(
            f"'{path.name}' was changed since it was signed",
            why="the signature in it is not one of what it says now",
            fix="get the report anew from who signed it; `tacit report verify` says what differs",
        )
    if format_ == "json" and out is None:
        typer.echo(signed.canonical_json())
        return
    match format_:
        case "json":
            content = signed.canonical_json().encode()
        case "html":
            content = render_html(signed.report, signed.signatures).encode()
        case "pdf":
            content = render_pdf(signed.report, signed.signatures)
    target = out or path.with_name(f"report.{format_}")
    try:
        write_atomically(target, content)
    except OSError as error:
        raise UsageError(
            f"'{target.name}' cannot be written",
            why=error.strerror or type(error).__name__,
            fix="give another file with --out",
        ) from None
    typer.echo(str(target))


@report_app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A report.json, or the folder of a run.")],
    ledger: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="EXPORT", help="The export of a site's ledger. Give it once for each site."
        ),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(metavar="PUBLIC_KEY", help="The key that must have signed, 64 characters."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Recompute every figure of a report and check its signatures, without any network.

    The exit code is 0 if everything holds, and 1 if anything does not.
    """
    from tacit_common.report.verify import Check, all_hold, read_document, run_checks

    trusted = None if key is None else _public_key(key)
    exports = [_export(path) for path in ledger or ()]
    path = _report_of(file)
    document = read_document(_read(path), source=path.name)
    checks = (
        [document]
        if isinstance(document, Check)
        else run_checks(document, exports, trusted_key=trusted)
    )
    typer.echo(_as_json(checks) if json_ else _as_text(checks))
    if not all_hold(checks):
        raise typer.Exit(1)


def _as_text(checks: "Sequence[Check]") -> str:
    """One line a check, and under it what the reader has to know."""
    from tacit_common.report.verify import NOT_CHECKED

    lines = []
    for check in checks:
        if check.claim:
            lines.append(f"{'✓' if check.holds else '✗ NOT TRUE:'} {check.claim}")
        lines += [
            f"    {found.path}: it says {found.stated}; it should say {found.recomputed}"
            for found in check.findings
        ]
        if check.note:
            lines.append(f"  ! {check.note}")
    failed = sum(len(check.findings) for check in checks)
    lines += ["", NOT_CHECKED, ""]
    lines.append(
        f"The report does not hold: {failed} {'field differs' if failed == 1 else 'fields differ'}."
        if failed
        else "Everything that was checked holds."
    )
    return "\n".join(lines)


def _as_json(checks: "Sequence[Check]") -> str:
    from tacit_common.report.verify import NOT_CHECKED, all_hold

    document = {
        "holds": all_hold(checks),
        "checks": [
            {
                "name": check.name,
                "claim": check.claim,
                "holds": check.holds,
                "note": check.note,
                "findings": [
                    {
                        "path": found.path,
                        "stated": found.stated,
                        "recomputed": found.recomputed,
                    }
                    for found in check.findings
                ],
            }
            for check in checks
        ],
        "not_checked": NOT_CHECKED,
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _report_of(run: Path) -> Path:
    """The report of a run's folder, or the file itself."""
    path = run / "report.json" if run.is_dir() else run
    if run.is_dir() and not path.exists():
        raise UsageError(
            f"'{run.name}' has no report",
            why="a run writes it when all of its rounds are done",
            fix=f"finish the run: tacit simulate --resume {run}, or tacit server resume where it "
            "is a deployed one",
        )
    return path


def _export(path: Path) -> "LedgerExport":
    from tacit_common.ledger_chain import parse_export

    return parse_export(_read(path), source=path.name)


def _public_key(text: str) -> str:
    key = text.strip().lower()
    if len(key) != 64 or set(key) - set("0123456789abcdef"):
        raise UsageError(
            "--key is not a public key",
            why="an Ed25519 key has 64 hexadecimal characters",
            fix="give the whole key, not its fingerprint",
        )
    return key


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"'{path.name}' cannot be read",
            why=getattr(error, "strerror", None) or "it is not a text file",
            fix="give the file that a run or a site wrote",
        ) from None
