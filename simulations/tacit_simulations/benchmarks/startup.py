"""How long one waits: for an import, for the command's help, and for the first round.

Each sample is a whole process of its own, from its start, so nothing is warm but the disk's
cache and what Tacit keeps for the user from run to run: that the gate has passed a model.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tacit_common.study_file import parse_study
from tacit_simulations.benchmarks.measure import Track, scratch_folder
from tacit_simulations.benchmarks.record import Figure, summarise
from tacit_simulations.recipes import recipe_text

HELP, FIRST_ROUND = "tacit --help", "tacit simulate, to the first round"
HELP_TARGET_S = 0.4
FIRST_ROUND_TARGET_S = 4.0

_TIMED_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_COMMAND = "from tacit_simulations.cli import main; main()"
_UP_TO_THE_FIRST_ROUND = """
import os, sys, time
from tacit_server import run

def first_round(*_, **__):
    print(time.time(), flush=True)
    os._exit(0)

vars(run)["run_round"]  # a KeyError, should it move
run.run_round = first_round
"""


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    imports: int
    starts: int


FULL = Plan(imports=10, starts=7)
QUICK = Plan(imports=5, starts=2)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Import, help, and the way to the first round."""
    figures: list[Figure] = []
    for module in ("tacit_common", "tacit_common.study", "torch", "tacit_simulations.simulate"):
        with track.measuring(f"import {module}"):
            seconds = [_timed_import(module) for _ in range(plan.imports)]
        condition = "fresh process, without Python's own start"
        figures += summarise(f"import {module}", seconds, "s", condition)
    with track.measuring(HELP):
        seconds = [_timed_help() for _ in range(plan.imports)]
    figures += summarise(HELP, seconds, "s", "whole process", target=HELP_TARGET_S)
    with track.measuring("one start, so that the gate has passed the model"):
        _timed_start(probes=False)
    for probes in (True, False):
        condition = "recipe digits without warm start, " + (
            "with its private probe of the random encoder" if probes else "without its probe"
        )
        with track.measuring(f"{FIRST_ROUND}, {condition}"):
            seconds = [_timed_start(probes=probes) for _ in range(plan.starts)]
        figures += summarise(FIRST_ROUND, seconds, "s", condition, target=FIRST_ROUND_TARGET_S)
    return figures


def _timed_start(*, probes: bool) -> float:
    """Seconds from the start of the process to the beginning of its first round."""
    study = parse_study(recipe_text("digits")).model_copy(update={"warm_start": None})
    if not probes:
        study = study.model_copy(update={"probes": []})
    with scratch_folder() as folder:
        path = folder / "digits.toml"
        path.write_text(study.to_toml(), encoding="utf-8")
        started = time.time()
        said = _python(
            _UP_TO_THE_FIRST_ROUND + _COMMAND,
            *("simulate", str(path), "--json", "--out", str(Path(folder) / "run")),
        )
    return float(said.splitlines()[-1]) - started


def _timed_import(module: str) -> float:
    return float(_python(_TIMED_IMPORT.format(module)))


def _timed_help() -> float:
    started = time.perf_counter()
    _python(_COMMAND, "--help")
    return time.perf_counter() - started


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return done.stdout
