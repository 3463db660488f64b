"""How long one waits: for an import, for the command's help, and for the first round.

Each sample is a process of its own, so nothing is warm but the disk's cache.
"""

import importlib
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tacit_common.study_file import parse_study
from tacit_server import run as server_run
from tacit_simulations import display, simulate
from tacit_simulations.benchmarks.measure import Samples, Track, in_fresh_process
from tacit_simulations.benchmarks.record import Figure, summarise
from tacit_simulations.cli import app
from tacit_simulations.recipes import recipe_text

IMPORT_TARGET_S = 0.3
FIRST_ROUND_TARGET_S = 3.0

_TIMED_IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
_COMMAND = "from tacit_simulations.cli import main; main()"
# What a simulation imports where it needs it, so that other commands need not wait.
_IMPORTED_ON_USE = (
    "datasets",
    "dp_accounting.pld.privacy_loss_distribution",
    "dp_accounting.rdp",
    "flwr_datasets.partitioner",
    "sklearn.datasets",
    "sklearn.model_selection",
)
_LOADED = (simulate, display)  # imported by the command before it begins, so not timed here


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    imports: int
    starts: int


FULL = Plan(imports=10, starts=5)
QUICK = Plan(imports=5, starts=1)


class _FirstRoundError(BaseException):
    """Ends a run where its first round would begin."""


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Import, help, and the way to the first round."""
    figures: list[Figure] = []
    for module, target in (
        ("tacit_common", IMPORT_TARGET_S),
        ("tacit_common.study", None),
        ("tacit_simulations.simulate", None),
    ):
        with track.measuring(f"import {module}"):
            seconds = [_timed_import(module) for _ in range(plan.imports)]
        figures += summarise(
            f"import {module}",
            seconds,
            "s",
            "fresh process, without Python's own start",
            target=target,
        )
    with track.measuring("tacit --help"):
        seconds = [_timed_help() for _ in range(plan.imports)]
    figures += summarise("tacit --help", seconds, "s", "whole process")
    for probes, on_use, condition in (
        (1, 1, "with the recipe's probe and what is imported on use"),
        (0, 1, "without probes, with what is imported on use"),
        (0, 0, "without probes, everything imported before"),
    ):
        with track.measuring(f"start to the first round, {condition}"):
            seconds = [
                in_fresh_process("startup:to_first_round", probes=probes, on_use=on_use)["start"][0]
                for _ in range(plan.starts)
            ]
        figures += summarise(
            "start to the first round",
            seconds,
            "s",
            f"recipe digits without warm start, after the command's imports, {condition}",
            target=FIRST_ROUND_TARGET_S,
        )
    return figures


def to_first_round(probes: int, on_use: int) -> Samples:
    """Seconds from `tacit simulate digits` to the beginning of its first round.

    The recipe is run without its warm start; `probes` says whether its probes are kept,
    `on_use` whether libraries that are imported where they are needed count.
    """
    study = parse_study(recipe_text("digits")).model_copy(update={"warm_start": None})
    if not probes:
        study = study.model_copy(update={"probes": []})
    if not on_use:
        for module in _IMPORTED_ON_USE:
            importlib.import_module(module)

    def first_round(*_: object, **__: object) -> NoReturn:
        raise _FirstRoundError

    vars(server_run)["run_round"] = first_round  # a module's names are its vars
    with tempfile.TemporaryDirectory(prefix="tacit-bench-") as folder:
        path = Path(folder) / "digits.toml"
        path.write_text(study.to_toml(), encoding="utf-8")
        arguments = ["simulate", str(path), "--plain", "--out", str(Path(folder) / "run")]
        started = time.perf_counter()
        try:
            app(arguments, standalone_mode=False)
        except _FirstRoundError:
            return {"start": [time.perf_counter() - started]}
    raise RuntimeError("the run ended without a first round")


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
