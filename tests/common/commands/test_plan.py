"""`tacit plan`: readable at 80 columns, typed as JSON, drawn as a plot, and never a traceback."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from tacit_common.cli import run_command
from tacit_common.commands.plan import plan
from tacit_common.privacy.planner.figures import PlanFigures

ASKED = ("--records", "1400", "--epsilon", "2", "--rounds", "20")
FULL = (*ASKED, "--local-steps", "2", "--parameters", "2000000", "--delta", "1e-5")


@dataclass(frozen=True)
class Outcome:
    """What the command left on the screen, and its exit code."""

    code: int
    out: str
    err: str


Plan = Callable[..., Outcome]


def application() -> typer.Typer:
    """A command line with `plan` as one of its commands, as the root application has it."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(plan)

    @app.callback()
    def options() -> None:
        """A second entry, so that `plan` has to be named."""

    return app


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Outcome:
        code = run_command(lambda: application()(["plan", *arguments], standalone_mode=False))
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


def test_the_tables_fit_into_80_columns_and_lose_no_figure(run: Plan) -> None:
    outcome = run(*FULL, "--probe-epsilon", "0.5", "--sites", "5")
    assert outcome.code == 0
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    assert "…" not in outcome.out
    text = " ".join(outcome.out.split())
    for said in ("▶", "ε spent", "distributed", "secure aggregation, which this release does not"):
        assert said in text
    assert "arXiv 2210.03403" in text


@pytest.mark.slow
@pytest.mark.parametrize("model", [(), ("--parameters", "300000000")])
def test_large_numbers_fit_into_80_columns_too(run: Plan, model: tuple[str, ...]) -> None:
    outcome = run(
        *("--records", "5000000", "--epsilon", "0.5", "--rounds", "20000"),
        *("--local-steps", "2", "--sites", "100", *model),
    )
    assert outcome.code == 0
    assert max(len(line) for line in outcome.out.splitlines()) <= 80
    assert "…" not in outcome.out


def test_json_is_the_typed_figures_and_nothing_else(run: Plan) -> None:
    outcome = run(*FULL, "--sampling-rate", "0.2", "--sampling-rate", "0.5", "--json")
    figures = PlanFigures.model_validate_json(outcome.out)
    assert [row.sampling_rate for row in figures.alternatives if row.rounds == 20] == [0.2, 0.5]
    assert figures.feasibility.verdict == "too_small"
    assert json.loads(outcome.out)["modes"][3]["epsilon"] is None
    assert outcome.err == ""


def test_every_field_of_the_json_is_documented_or_plain() -> None:
    schema = PlanFigures.model_json_schema()
    assert {"alternatives", "curve", "modes", "feasibility", "findings"} <= set(
        schema["properties"]
    )
    rows = schema["$defs"]["Alternative"]["properties"]
    undocumented = {name for name, field in rows.items() if "description" not in field}
    assert undocumented == {"rounds", "recommended"}


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--delta", "2"), "--delta 2.0 is out of range"),
        (("--sampling-rate", "0.1", "--batch", "10"), "both given"),
        (("--batch", "2000"), "cannot be sampled from 1,400"),
        (("--unit", "subject"), "do not fit together"),
        (("--probe-epsilon", "3"), "probes alone"),
        (("--plot", "figure.pdf"), "cannot be written to 'figure.pdf'"),
        (("--plot", "no/such/folder/figure.svg"), "no folder"),
    ],
)
def test_bad_input_is_one_error_of_three_lines(
    run: Plan, arguments: tuple[str, ...], what: str
) -> None:
    outcome = run(*FULL, *arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    first, why, fix = outcome.err.splitlines()
    assert first.startswith("error: ")
    assert what in first
    assert why.startswith("  why: ")
    assert fix.startswith("  fix: ")


@pytest.mark.parametrize("missing", ["--records", "--epsilon", "--rounds"])
def test_records_epsilon_and_rounds_have_no_default(run: Plan, missing: str) -> None:
    at = ASKED.index(missing)
    outcome = run(*ASKED[:at], *ASKED[at + 2 :])
    assert outcome.code == 2
    assert missing in outcome.err
    assert outcome.out == ""


def test_a_plan_that_is_too_small_is_an_answer_not_an_error(run: Plan) -> None:
    outcome = run(*FULL)
    assert outcome.code == 0
    assert "Too small" in outcome.out


def test_a_budget_that_cannot_be_kept_is_said_in_a_sentence(run: Plan) -> None:
    outcome = run(
        *("--records", "1000", "--epsilon", "1e-4", "--rounds", "100", "--local-steps", "100"),
        *("--sampling-rate", "1"),
    )
    assert outcome.code == 0
    assert "none fits" in outcome.out
    assert "could be kept" in " ".join(outcome.out.split())


def test_the_plot_has_three_panels_as_svg(run: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.svg"
    assert run(*FULL, "--plot", str(path)).code == 0
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8")))
    for said in ("rounds", "ε (PLD)", "expected batch", "noise multiplier σ", "signal-to-noise"):
        assert said in text
    again = tmp_path / "again.svg"
    run(*FULL, "--plot", str(again))
    assert again.read_bytes() == path.read_bytes()


def test_the_plot_is_a_picture_as_png_and_json_stays_json(run: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.png"
    outcome = run(*ASKED, "--plot", str(path), "--json")
    PlanFigures.model_validate_json(outcome.out)
    assert path.read_bytes().startswith(b"\x89PNG")


MEASURE = """
import sys, time
from pathlib import Path
from tacit_common.commands.plan import plan
plan(records=10_000, epsilon=2.0, rounds=[100], local_steps=5, parameters=200_000,
     plot=Path(sys.argv[1]))
print("torch" in sys.modules, time.process_time())
"""


@pytest.mark.slow
def test_a_plan_with_its_plot_takes_3_seconds_of_one_core_and_no_torch(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path / "plan.svg")],
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    torch, seconds = result.stdout.split()[-2:]
    assert torch == "False"
    assert float(seconds) <= 3.0
