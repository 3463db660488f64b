"""Writes the parts of the documentation that follow from the code: `make docs`.

docs/study.md, docs/policy.md, docs/objectives.md, docs/cli.md and docs/report-schema.json in
full, and in README.md the examples that stand under a comment naming their file. From the
result files of the benchmarks: docs/performance.md, its pictures, and what README.md quotes of
them. A test builds all of them again and compares.
"""

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import click
import typer

from tacit_client.policy.reference import policy_reference
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives import Coupling, Objective, build_objective
from tacit_common.plugins import PluginTable
from tacit_common.privacy import require_legal
from tacit_common.report.schema import SCHEMA_VERSION
from tacit_common.report.signing import SignedReport
from tacit_common.study import (
    NoPrivacyPlan,
    ObjectivePlan,
    PluginPlan,
    PrivacyPlan,
)
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY, study_reference
from tacit_simulations.benchmarks import page as performance
from tacit_simulations.cli import app

ROOT = Path(__file__).parents[1]
_NOTICE = "<!-- Written by docs/build.py: change the code, then run `make docs`. -->\n\n"
_NOTICE_OF_FIGURES = (
    "<!-- Written by docs/build.py: measure anew with `make bench`, then run `make docs`. -->\n\n"
)
_EXAMPLE = re.compile(r"(<!-- (docs/examples/\S+) -->\n+```\w+\n).*?(?=```)", re.DOTALL)
_FIGURES = re.compile(r"(<!-- figures[^>]*-->\n).*?(<!-- end of figures -->)", re.DOTALL)
_COUPLING = {
    Coupling.NONE: "that record alone",
    Coupling.BATCH: "the whole batch",
    Coupling.LOGITS: "the whole batch, through similarities that are clipped one by one",
}
_PAPER = re.compile(r"(?:van den )?[A-Z]\w+ et al\. \d{4}(?:, arXiv \d{4}\.\d{5})?")


def pages() -> dict[Path, str]:
    """Every built page and its text."""
    results = performance.read_results()
    pictures = performance.pictures(results)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return {
        ROOT / "docs/study.md": _NOTICE + study_reference(),
        ROOT / "docs/policy.md": _NOTICE + policy_reference(),
        ROOT / "docs/objectives.md": _NOTICE + objectives(),
        ROOT / "docs/cli.md": _NOTICE + commands(),
        ROOT / "docs/report-schema.json": report_schema(),
        ROOT / "docs/performance.md": _NOTICE_OF_FIGURES + performance.page(results),
        **{ROOT / "docs/pictures" / name: text for name, text in pictures.items()},
        ROOT / "README.md": with_figures(with_examples(readme), performance.headlines(results)),
    }


def with_examples(page: str) -> str:
    """`page` with the code under each `<!-- docs/examples/… -->` replaced by that file."""
    return _EXAMPLE.sub(lambda m: m[1] + (ROOT / m[2]).read_text(encoding="utf-8"), page)


def with_figures(page: str, figures: str) -> str:
    """`page` with what stands between the comments `figures` and `end of figures` replaced."""
    return _FIGURES.sub(lambda m: f"{m[1]}\n{figures}\n{m[2]}", page)


def report_schema() -> str:
    """The JSON Schema of a run's `report.json`."""
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:tacit:report:{SCHEMA_VERSION}",
        **SignedReport.model_json_schema(),
        "title": f"Tacit report, schema version {SCHEMA_VERSION}",
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


_SECTION_3 = "privacy.md#3-objectives-separability-is-checked"


# --- objectives ------------------------------------------------------------------------


def objectives() -> str:
    """The built-in objectives: what each couples, which modes allow it, where it is from."""
    lines = [
        "# Objectives\n",
        "An objective is what the encoder learns from, without labels. What it couples decides",
        f"under which privacy it may run ([privacy.md, section 3]({_SECTION_3})): a",
        "loss that depends on other records of the batch has no gradient of one record to clip.\n",
        "| `objective.kind` | a record's loss depends on | legal modes | source |",
        "|---|---|---|---|",
    ]
    details = []
    for kind in _objective_kinds():
        objective = _objective(kind)
        coupling = _COUPLING[objective.coupling]
        modes = ", ".join(_legal_modes(objective))
        lines.append(f"| [`{kind}`](#{kind}) | {coupling} | {modes} | {_papers(objective)} |")
        details.append(
            f"## `{kind}`\n\n{inspect.getdoc(type(objective))}\n\n"
            f"Options: [study.md](study.md#objectivekind--{kind}). "
            f"Code: `{type(objective).__module__}.{type(objective).__name__}`.\n"
        )
    lines.append(
        "| `plugin` | what it declares, and [the conformance suite](extending.md) checks | "
        "by the same rule | yours |\n"
    )
    return "\n".join([*lines, *details])


def _objective_kinds() -> list[str]:
    plans = get_args(get_args(ObjectivePlan)[0])
    return [get_args(p.model_fields["kind"].annotation)[0] for p in plans if p is not PluginPlan]


def _objective(kind: str) -> Objective:
    overrides = [f'objective={{ kind = "{kind}" }}', "views.max_shift=0.1"]
    study = parse_study(EXAMPLE_STUDY, overrides=overrides)
    return build_objective(study, PluginTable())


def _legal_modes(objective: Objective) -> Iterator[str]:
    for name, plan in _plans().items():
        try:
            require_legal(objective.coupling, "", plan)
        except PrivacyConfigError:
            continue
        yield name


def _plans() -> dict[str, PrivacyPlan]:
    """A plan of each mode and unit; their figures are irrelevant."""
    subject = ["privacy.unit=subject", "privacy.records_per_subject=2"]
    return {
        "`local` by record": parse_study(EXAMPLE_STUDY).privacy,
        "`local` by subject": parse_study(EXAMPLE_STUDY, overrides=subject).privacy,
        "`none`": NoPrivacyPlan(mode="none", sampling_rate=0.5),
    }


def _papers(objective: Objective) -> str:
    """The papers that the objective's docstring cites, or those of its module."""
    module = inspect.getmodule(type(objective))
    for text in (inspect.getdoc(type(objective)), inspect.getdoc(module)):
        if found := _PAPER.findall(text or ""):
            return "; ".join(found)
    raise SystemExit(f"the docstring of {type(objective).__name__} cites no paper")


# --- commands --------------------------------------------------------------------------


def commands() -> str:
    """Every command with its arguments and options."""
    lines = [
        "# The command line\n",
        "Every command prints errors to stderr as what happened, why, and what to do. It exits",
        "with 0 on success, 1 on a failure, 2 when the request has to change, and 130 when it",
        "is interrupted. Every command takes `--help`; `--debug`, right after `tacit`, adds a",
        "traceback to an error.\n",
    ]
    return "\n".join([*lines, *_command(typer.main.get_command(app), "tacit", None)])


def _command(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    # Put together here: what `--help` prints depends on the width of the terminal.
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"## `{context.command_path}`\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    yield f"```\n{context.command_path} {pieces}\n```\n"
    shown = [p for p in command.get_params(context) if "--help" not in p.opts]
    rows = [_row(command, parameter, context) for parameter in shown]
    if rows:
        yield "| | default | meaning |\n|---|---|---|"
        yield from rows
        yield ""
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _command(found, child, context)


def _row(command: click.Command, parameter: click.Parameter, context: click.Context) -> str:
    label = parameter.make_metavar(ctx=context)
    if isinstance(parameter, click.Option):
        label = parameter.opts[0] if parameter.is_flag else f"{parameter.opts[0]} {label}"
    default = parameter.default
    shown = "" if default is None or default is False else f"`{default}`"
    if parameter.required:
        shown = "**required**"
    cells = (f"`{label}`", shown, _help(command, parameter))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _help(command: click.Command, parameter: click.Parameter) -> str:
    """What the parameter's own declaration says: newer versions of click drop it."""
    hints = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    for note in getattr(hints.get(parameter.name or ""), "__metadata__", ()):
        if text := getattr(note, "help", None):
            return str(text)
    return str(getattr(parameter, "help", None) or "")


def main() -> None:
    """Write every page that is out of date."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
