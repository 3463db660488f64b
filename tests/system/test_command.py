"""The command as a process: what it prints, how it is interrupted, and how it goes on."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tacit_common.study import StudyFile

COMMAND = "from tacit_simulations.cli import main; main()"

pytestmark = pytest.mark.system


@pytest.fixture
def world(tmp_path: Path, study_file: Callable[..., StudyFile]) -> Path:
    """A folder that holds the tiny study."""
    (tmp_path / "study.toml").write_text(study_file("federation.rounds=1").to_toml())
    return tmp_path


def tacit(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_typo_costs_three_lines_and_leaves_nothing(world: Path) -> None:
    with tacit("simulate", "digit", cwd=world) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert out == ""
    error, why, fix = err.splitlines()
    assert error == "error: there is no recipe 'digit'"
    assert "did you mean 'digits'" in why
    assert fix.startswith("  fix: ")
    assert [path.name for path in world.iterdir()] == ["study.toml"]


def test_control_c_says_how_to_go_on_and_the_run_can(world: Path) -> None:
    arguments = ("study.toml", "--json", "--set", "federation.rounds=400")
    folder = world / "interrupted"
    with tacit("simulate", *arguments, "--out", str(folder), cwd=world) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "round_finished":
                break
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        process.wait(timeout=60)
    assert process.returncode == 130
    assert f"interrupted; go on with: tacit simulate --resume {folder}" in err
    assert "Traceback" not in err
    done = [
        json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()
    ]
    with tacit("simulate", "--json", "--resume", str(folder), cwd=world) as process:
        assert process.stdout is not None
        events = []
        for line in process.stdout:
            events.append(json.loads(line)["event"])
            if len(events) > len(done) + 2:
                break
        process.kill()
    assert events[: len(done)] == done
    assert events[len(done) :] == ["run_resumed", "round_finished", "round_finished"]


def test_json_output_is_json_alone(world: Path) -> None:
    with tacit("simulate", "study.toml", "--json", "--out", "run-j", cwd=world) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err == ""
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["event"] for event in events] == [
        "run_started",
        "round_finished",
        "run_finished",
        "report",
    ]
    assert (world / events[-1]["path"]).is_file()
