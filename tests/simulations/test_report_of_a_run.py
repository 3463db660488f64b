"""A real run's report, against real exports of its sites' ledgers."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tacit_simulations.cli import app

TINY = Path(__file__).parent / "tiny.toml"


def tacit(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


@pytest.mark.slow
def test_the_report_of_a_real_run_is_true_and_a_smaller_epsilon_is_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert tacit("simulate", TINY, "--out", run, "--plain")[0] == 0
    ledgers: list[object] = []
    for site in sorted((run / "sites").iterdir()):
        export = tmp_path / f"{site.name}.json"
        assert tacit("site", "budget", site, "--export", export)[0] == 0
        ledgers += ["--ledger", export]
    assert len(ledgers) == 4
    code, output = tacit("report", "verify", run, *ledgers)
    assert code == 0, output
    assert "site-1" in output
    assert "not checked against a ledger" not in output

    report = run / "report.json"
    document = json.loads(report.read_text())
    document["report"]["sites"][0]["epsilon_after_round"][0] *= 0.9
    report.write_text(json.dumps(document))
    code, output = tacit("report", "verify", run, *ledgers)
    assert code == 1
    assert "sites[0].epsilon_after_round[0]" in output
    assert "signatures[0].signature" in output
