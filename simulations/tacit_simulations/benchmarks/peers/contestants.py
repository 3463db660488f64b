"""Who is compared, and how one of them is run: in a fresh process of its own environment."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tacit_common.errors import TacitError
from tacit_simulations.benchmarks.measure import SAMPLES, Samples
from tacit_simulations.benchmarks.memory import TreeMemory
from tacit_simulations.benchmarks.peers.clock import SPAWNED

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

MEMORY = "memory"
"""Among a contestant's samples: the peak of its processes, in bytes."""

_SOURCES = Path(__file__).parents[3]  # simulations/ of the repository
_TIMEOUT_S = 900.0
_LINES_SHOWN = 20
_PACKAGES = ("torch", "numpy", "flwr", "ray", "opacus", "pfl")


@dataclass(frozen=True)
class Contestant:
    """One way to do the work; `end` says which result can be held against which.

    `same`: exactly the plain loop's, up to rounding. `private`: the clipped gradients of the
    Opacus loop, with noise of the same size. `other`: another promise, or none.
    """

    title: str
    module: str
    environment: Literal["tacit", "peers"] = "peers"
    arguments: dict[str, int] = field(default_factory=dict)
    processes: int = 1
    end: Literal["same", "private", "other"] = "same"

    @property
    def key(self) -> str:
        """A name for files."""
        return "-".join([self.module, *(f"{k}-{v}" for k, v in self.arguments.items())])


def run(contestant: Contestant, folder: Path, python: Path) -> Samples:
    """What a contestant's `rounds` returns, with the peak of its memory.

    `python` is that of the peers' environment.

    Raises:
        TacitError: it failed; the message ends with what it printed last.
    """
    program = str(python) if contestant.environment == "peers" else sys.executable
    arguments = {
        "module": contestant.module,
        "folder": str(folder.absolute()),
        "name": contestant.key,
        "arguments": contestant.arguments,
    }
    with tempfile.TemporaryDirectory(prefix="tacit-peers-") as scratch:
        result, log = Path(scratch) / "result.json", Path(scratch) / "log"
        command = [program, "-m", "tacit_simulations.benchmarks.child"]
        command += ["peers.contestants:contend", json.dumps(arguments), str(result)]
        with log.open("wb") as output:
            try:
                code = subprocess.run(  # noqa: S603 - our own module
                    command,
                    stdout=output,
                    stderr=output,
                    env=_environment(Path(scratch)),
                    timeout=_TIMEOUT_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = os.EX_TEMPFAIL
        if code == 0:
            return SAMPLES.validate_json(result.read_bytes())
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
    raise TacitError(
        f"{contestant.title} failed",
        why="\n".join([f"exit code {code}", *last]),
        fix=f"run: {program} -m tacit_simulations.benchmarks.child peers.contestants:contend "
        f"'{json.dumps(arguments)}' out.json",
    )


def contend(module: str, folder: str, name: str, arguments: dict[str, int]) -> Samples:
    """Run one contestant in this process, watching the memory of all that it starts."""
    with TreeMemory() as memory:
        program = importlib.import_module(f"{__package__}.{module}")
        samples: Samples = program.rounds(folder=folder, name=name, **arguments)
    return {**samples, MEMORY: [float(memory.peak)]}


def versions_of(python: Path) -> dict[str, str]:
    """Versions in the peers' environment, by "peers: package"."""
    program = "import json, sys; from importlib.metadata import version; "
    program += "print(json.dumps({p: version(p) for p in sys.argv[1:]}))"
    found = subprocess.run(  # noqa: S603 - the interpreter that `make bench-peers` made
        [str(python), "-c", program, *_PACKAGES], capture_output=True, check=True, timeout=60.0
    )
    return {f"peers: {name}": value for name, value in json.loads(found.stdout).items()}


def _environment(scratch: Path) -> dict[str, str]:
    """One thread a process, no calls home, and no certificate from an earlier run."""
    paths = [str(_SOURCES.parent / part) for part in ("common", "client", "server")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(_SOURCES), *paths]),
        "XDG_CACHE_HOME": str(scratch / "cache"),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        SPAWNED: str(time.time()),
    }
