"""A server and its sites on loopback, brought up with the commands that people type.

    tacit server init, run, enroll, submit        tacit site init, run

Each is a process of its own, in a folder of its own, with the TLS, the signatures and the
gateway that it has between machines. Only the wire is missing: loopback has no latency and
more bandwidth than any network.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from tacit_common.enrolment import read_site_card
from tacit_common.errors import TacitError
from tacit_common.study import StudyFile
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.run_record import STATUS, Status
from tacit_server.run import RunFolder
from tacit_server.run_log import LoggedEvent, read_events
from tacit_simulations.benchmarks.studies import CHANNELS, IMAGE_SIZE

RECORDS = 64

_COMMAND = ("-c", "from tacit_simulations.cli import main; main()")
_TIMED_SITE = ("-m", "tacit_simulations.benchmarks.timed_site")
_LOOK_S = 0.2
_TIME_TO_END_S = 30.0
_LAST_WORDS = 2000


class LoopbackFederation:
    """One server and some sites in a folder. A context manager that ends what it started."""

    def __init__(self, folder: Path, sites: int) -> None:
        self._folder = folder
        self._hub = folder / "hub"
        self._sites = [folder / f"site-{number}" for number in range(sites)]
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with self._ends:
            self._make_server()
            self._start("server", (*_COMMAND, "server", "run", str(self._hub)))
            for site in self._sites:
                self._make_site(site)
                self._start(site.name, (*_TIMED_SITE, str(site), str(self._work_of(site))))
            self._ends = self._ends.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ends.close()

    def run(self, study: StudyFile, *, within_s: float) -> list[LoggedEvent]:
        """Run a study over all sites; what its event log says.

        Raises:
            TacitError: it failed, or took too long.
        """
        path = self._folder / "study.toml"
        path.write_text(study.to_toml(), encoding="utf-8")
        name = self._tacit("server", "submit", str(self._hub), str(path)).strip()
        run = ServerFolder(self._hub).run_folder(name)
        end = time.monotonic() + within_s
        while (status := Status.read(run / STATUS)).stage != "finished":
            if status.trouble is not None:
                raise self._failed(status.trouble.what, status.trouble.why)
            if time.monotonic() > end:
                raise self._failed("the run takes too long", f"more than {within_s:g} s")
            time.sleep(_LOOK_S)
        return read_events(RunFolder(run).events)

    def work(self) -> list[tuple[float, float]]:
        """When any site trained: seconds since 1970, begin and end, without overlaps."""
        spans: list[tuple[float, float]] = []
        for site in self._sites:
            rows = np.loadtxt(self._work_of(site), ndmin=2)
            spans += [(float(begin), float(end)) for begin, end in rows]
        return merged(spans)

    def _make_server(self) -> None:
        gateway, superlink = _free_ports(2)
        address = f"127.0.0.1:{gateway}"
        self._tacit(
            *("server", "init", str(self._hub), "--name", "hub", "--health", "none"),
            *("--address", address, "--listen", address, "--superlink-port", str(superlink)),
        )

    def _make_site(self, site: Path) -> None:
        images = np.random.default_rng(0).random(
            (RECORDS, CHANNELS, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32
        )
        data = self._folder / f"{site.name}.npy"
        np.save(data, images)
        self._tacit(
            *("site", "init", str(site), "--name", site.name, "--data", str(data)),
            *("--coordinator", str(self._hub / "invitation.json"), "--unit", "record"),
            *("--epsilon-cap", "1000", "--delta", "1e-5", "--declared-units", str(RECORDS)),
            *("--device", "cpu", "--allow-non-private"),
        )
        policy = site / "policy.toml"
        text = policy.read_text(encoding="utf-8")
        policy.write_text(text.replace('approval = "each study"', 'approval = "none"'), "utf-8")
        card = site / f"{site.name}.site.json"
        fingerprint = read_site_card(card).fingerprint
        self._tacit("server", "enroll", str(self._hub), str(card), "--fingerprint", fingerprint)

    def _tacit(self, *arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - ours
            [sys.executable, *_COMMAND, *arguments],
            capture_output=True,
            text=True,
            env=_environment(),
            check=False,
        )
        if done.returncode != 0:
            raise self._failed(f"tacit {' '.join(arguments[:2])} failed", done.stderr)
        return done.stdout

    def _start(self, name: str, command: Sequence[str]) -> None:
        self._ends.enter_context(_running(command, self._folder / f"{name}.log"))

    def _work_of(self, site: Path) -> Path:
        return self._folder / f"{site.name}.work"

    def _failed(self, what: str, why: str) -> TacitError:
        logs = [*self._folder.glob("*.log"), *self._hub.glob("logs/*")]
        said = [f"{log.name}:\n{_end_of(log)}" for log in sorted(logs)]
        return TacitError(what, why="\n".join([why, *said]), fix="look at what the parts said")


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same time as these spans of begin and end, in spans that do not overlap."""
    found: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


@contextmanager
def _running(command: Sequence[str], log: Path) -> Iterator[None]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - ours
            [sys.executable, *command], stdout=output, stderr=output, env=_environment()
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_TIME_TO_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    """One thread a process: sites of different machines would not share cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _free_ports(number: int) -> list[int]:
    with ExitStack() as held:
        sockets = [
            held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)
        ]
        return [int(one.getsockname()[1]) for one in sockets]


def _end_of(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]
