"""Real processes for tests: started as a person would, watched, and surely ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import randbelow
from uuid import uuid4

COMMAND = "from tacit_simulations.cli import main; main()"
PATIENCE_S = 120.0
_LOOK_S = 0.05
_TAIL = 40  # lines
_MARK = "TACIT_TEST_WORLD"

WORLDS: "list[World]" = []
"""Those that are open: their logs go with the report of a test that fails."""


def wait_for(condition: Callable[[], object], what: str, *, within_s: float = PATIENCE_S) -> None:
    """Return as soon as `condition` holds; fail, and say what was waited for, if it never does."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"waited {within_s:g} s for: {what}"
        time.sleep(_LOOK_S)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now.

    Linux takes the ports of outgoing connections from 32768 on. This is none of them, so it
    is still free when a server that was killed comes back.
    """
    while True:
        port = 20_000 + randbelow(10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass
class Running:
    """A process that goes on until it is told to end, and what it has written."""

    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def said(self) -> str:
        """Everything that it has written so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """As the kernel kills when memory runs out: this one process, with no warning."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def end(self) -> int:
        """Ask it to end, and return how it did."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@dataclass(frozen=True)
class Machine:
    """One person's machine: a working folder, and a way to run commands there."""

    world: "World"
    folder: Path
    prefix: tuple[str, ...] = ()
    """Before every command, for example what enters a network namespace."""

    def run(self, *arguments: object, answer: str = "", expect: int = 0) -> str:
        """Run a `tacit` command to its end and return all that it said."""
        command = [*self.prefix, sys.executable, "-c", COMMAND, *map(str, arguments)]
        return self._finished(command, answer, expect)

    def shell(self, line: str, *, answer: str = "", within_s: float = PATIENCE_S) -> str:
        """Type a line into a shell that has the command `tacit`, and return all that it said."""
        typed = [*self.prefix, "bash", "-euo", "pipefail", "-c", line]
        return self._finished(typed, answer, 0, within_s)

    def start(self, *arguments: object) -> Running:
        """Start a `tacit` command that goes on."""
        return self.begin([sys.executable, "-c", COMMAND, *map(str, arguments)])

    def begin(self, command: Sequence[str]) -> Running:
        """Start any command that goes on."""
        log = self.world.folder / f"{len(self.world.running):02}-{self.folder.name}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*self.prefix, *command],
                cwd=self.folder,
                env=self.world.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        running = Running(process, log)
        self.world.running.append(running)
        return running

    def _finished(
        self, command: Sequence[str], answer: str, expect: int, within_s: float = PATIENCE_S
    ) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.world.environment,
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=within_s,
            check=False,
        )
        assert done.returncode == expect, f"{command}\n{done.stdout}"
        return done.stdout


@dataclass
class World:
    """Everything that one deployment of a test started, known by a mark in its environment."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)
    """More variables for every process."""
    running: list[Running] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    """Folders whose logs tell more than what was printed."""

    def __post_init__(self) -> None:
        commands = self.folder / "bin"
        commands.mkdir()
        shim = commands / "tacit"
        shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{COMMAND}" "$@"\n')
        shim.chmod(0o755)
        self._mark = f"{_MARK}={uuid4().hex}"
        name, _, value = self._mark.partition("=")
        extra = dict(self.extra)
        paths = [extra.pop("PYTHONPATH", ""), *sys.path]
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": ":".join(path for path in paths if path),
            "PATH": f"{commands}:{os.environ['PATH']}",
            name: value,
            **extra,
        }

    def machine(self, name: str, prefix: tuple[str, ...] = ()) -> Machine:
        """A new machine with an empty folder."""
        folder = self.folder / name
        folder.mkdir()
        return Machine(self, folder, prefix)

    def processes(self, part: str) -> list[int]:
        """The numbers of this world's processes whose command line has `part` in it."""
        return [number for number, line in self._alive() if part in line]

    def only(self, part: str) -> int:
        """The number of the one process whose command line has `part` in it.

        Between fork and exec a child has its parent's, and one that was killed is started again.
        """
        numbers: list[int] = []

        def is_one() -> bool:
            numbers[:] = self.processes(part)
            return len(numbers) == 1

        wait_for(is_one, f"one process with {part!r} in its command line")
        return numbers[0]

    @classmethod
    @contextmanager
    def open(cls, folder: Path, extra: Mapping[str, str] | None = None) -> Iterator["World"]:
        """A world in which nothing runs yet, and nothing is left to run."""
        world = cls(folder, dict(extra or {}))
        WORLDS.append(world)
        try:
            yield world
        finally:
            world.end()
            WORLDS.remove(world)

    def end(self) -> None:
        """Kill whatever is left of this world."""
        wait_for(lambda: not self._killed(), "all processes have ended")
        for one in self.running:
            one.process.wait(PATIENCE_S)

    def _killed(self) -> list[int]:
        """Kill those that are there. What one of them has just started is there the next time."""
        killed = [number for number, _ in self._alive()]
        for number in killed:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return killed

    def tails(self) -> str:
        """The ends of all logs."""
        files = [one.log for one in self.running]
        for folder in self.logs:
            files += sorted({*folder.rglob("*.log"), *folder.rglob("runs/*/log.txt")})
        parts = []
        for file in files:
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            parts += [f"===== {file.relative_to(self.folder)}", *lines[-_TAIL:]]
        return "\n".join(parts)

    def _alive(self) -> Iterator[tuple[int, str]]:
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is somebody else's
            if self._mark.encode() in environment and line:  # a zombie has no command line
                yield int(entry.name), line
