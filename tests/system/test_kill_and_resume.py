"""A run that is killed at any moment and resumed is one whole run, paid for once."""

import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from tacit_client.ledger_file import read_export
from tacit_common.encoders import embed, load_encoder
from tacit_common.report.signing import parse_signed_report
from tacit_common.report.verify import verify
from tacit_common.study import StudyFile

ROUNDS, SITES = 5, 3
CHANGES = (
    f"federation.rounds={ROUNDS}",
    f"simulation.sites={SITES}",
    "warm_start={ steps = 150, batch_size = 64 }",
)
COMMAND = "from tacit_simulations.cli import main; main()"

NURSERY = """
import os, sys

# Importing takes seconds, so it is done once; every life is a process of its own.
import tacit_simulations.cli, tacit_simulations.simulate, tacit_simulations.summary
import datasets, flwr_datasets.partitioner, matplotlib.figure, opacus.accountants
import sklearn.datasets, sklearn.model_selection, dp_accounting.pld

print("ready", flush=True)
for line in sys.stdin:
    log, *arguments = line.strip().split("\\t")
    child = os.fork()
    if child == 0:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["tacit", *arguments]
        tacit_simulations.cli.main()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Nursery:
    """Starts `tacit` processes that have everything imported already."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log

    def hear(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def start(self, *arguments: str) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join([str(self._log), *arguments]) + "\n")
        self._process.stdin.flush()
        return int(self.hear())

    def status(self) -> int:
        """Of the process that was started last, once it is gone; 9 if it was killed."""
        return int(self.hear())


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    ) as process:
        opened = Nursery(process, tmp_path / "log.txt")
        assert opened.hear() == "ready"
        try:
            yield opened
        finally:
            process.kill()


# --- where a run stands, seen from outside -------------------------------------------------

Moment = Callable[[Path], bool]


def events(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of the event log."""
    with contextlib.suppress(FileNotFoundError):
        text = (folder / "events.jsonl").read_text()
        return [json.loads(line) for line in text.split("\n")[:-1]]
    return []


def count(folder: Path, kind: str) -> int:
    return sum(event["event"] == kind for event in events(folder))


def has(name: str) -> Moment:
    return lambda folder: any(folder.glob(name))


def rounds_done(number: int) -> Moment:
    return lambda folder: count(folder, "round_finished") >= number


MOMENTS: list[tuple[str, Moment, float]] = [
    ("the folder is made", has("study.toml"), 0.05),
    ("data is dealt out", has("sites"), 0.2),
    ("warm start", has("events.jsonl"), 0.1),
    ("warm start, later", has("events.jsonl"), 0.5),
    ("first probe", has("checkpoints/*.ckpt"), 0.05),
    ("first payment", has("sites/*/ledger.db"), 0.05),
    ("round 2", rounds_done(1), 0.1),
    ("round 3", rounds_done(2), 0.05),
    ("round 4", rounds_done(3), 0.02),
    ("round 5", rounds_done(4), 0.1),
    ("last probe", rounds_done(5), 0.05),
    ("export", has("encoder/encoder.safetensors"), 0.02),
    ("evaluation", lambda folder: count(folder, "run_finished") > 0, 0.5),
    ("evaluation, later", lambda folder: count(folder, "run_finished") > 0, 1.0),
]


@pytest.mark.system
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_at_every_stage_and_resumed_is_whole_and_paid_for_once(
    nursery: Nursery,
    tmp_path: Path,
    study_file: Callable[..., StudyFile],
    with_probe: str,
    workers: int,
) -> None:
    folder, chance = tmp_path / "run", random.Random()  # noqa: S311 - moments, not secrets
    (tmp_path / "study.toml").write_text(study_file(with_probe, *CHANGES).to_toml())
    shared_out = ("--workers", str(workers))
    new = ("simulate", str(tmp_path / "study.toml"), "--plain", "--out", str(folder), *shared_out)
    resume = ("simulate", "--plain", "--resume", str(folder), *shared_out)
    killed = []
    for name, moment, delay_s in MOMENTS:
        pid = nursery.start(*(resume if (folder / "study.toml").exists() else new))
        deadline = time.monotonic() + 60
        while not moment(folder) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, delay_s))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if nursery.status() == signal.SIGKILL:
            killed.append(name)
    assert len(killed) >= 10, killed

    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *resume],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    log = (tmp_path / "log.txt").read_text() + done.stdout + done.stderr
    assert done.returncode == 0, log
    assert "Traceback" not in log
    assert "error:" not in log
    assert_whole(folder)


def assert_whole(folder: Path) -> None:
    logged = events(folder)
    rounds = [event for event in logged if event["event"] == "round_finished"]
    assert [event["round"] for event in rounds] == list(range(1, ROUNDS + 1))
    assert all(event["failed"] == {} for event in rounds)
    assert all(len(event["answered"]) == SITES for event in rounds)
    assert [e["when"] for e in logged if e["event"] == "probe_finished"] == ["before", "after"]
    assert count(folder, "run_started") == count(folder, "run_finished") == 1
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in metrics]
    assert steps == [0, *range(1, ROUNDS + 1), ROUNDS]

    text = (folder / "report.json").read_text()
    report = json.loads(text)["report"]
    assert report["run"]["rounds_done"] == ROUNDS
    assert report["run"]["resumed"] == count(folder, "run_resumed") > 0
    labels = ["probe 0 before", *(f"round {n}" for n in range(1, ROUNDS + 1)), "probe 0 after"]
    for site in report["sites"]:
        rows = ledger_rows(folder / "sites" / site["name"] / "ledger.db")
        reserved = [payload for kind, payload in rows if kind == "RESERVE"]
        assert [payload["label"] for payload in reserved] == labels
        committed = [payload["key"] for kind, payload in rows if kind == "COMMIT"]
        assert committed == [payload["key"] for payload in reserved]
        total = epsilon([payload["event"] for payload in reserved], report["privacy"]["delta"])
        assert site["epsilon_total"] == pytest.approx(total, abs=1e-6)
        assert site["releases"] == len(labels)
    assert report["privacy"]["epsilon_spent"] <= report["privacy"]["epsilon_target"]

    ledgers = [read_export(path) for path in sorted(folder.glob("sites/*/ledger.db"))]
    assert verify(parse_signed_report(text), ledgers, trusted_key=None) == []

    features = embed(load_encoder(folder / "encoder"), torch.rand(4, 1, 8, 8))
    assert features.shape == (4, 16)
    assert np.isfinite(features).all()


def ledger_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Kind and payload of every row, read without any code of ours."""
    database = sqlite3.connect(path)
    rows = database.execute("SELECT kind, payload FROM entries ORDER BY seq").fetchall()
    database.close()
    return [(kind, json.loads(payload)) for kind, payload in rows]


_known: dict[str, float] = {}


def epsilon(charged: list[dict[str, Any]], delta: float) -> float:
    """ε of the events in a ledger by dp-accounting alone."""
    key = json.dumps([charged, delta])
    if key not in _known:
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
        for event in charged:
            gaussian = dp_accounting.GaussianDpEvent(event["noise_multiplier"])
            if event["kind"] == "gaussian_release":
                accountant.compose(gaussian)
            else:
                assert event["kind"] == "poisson_gaussian_steps"
                sampled = dp_accounting.PoissonSampledDpEvent(event["sampling_rate"], gaussian)
                accountant.compose(sampled, event["steps"])
        _known[key] = float(accountant.get_epsilon(delta))
    return _known[key]
