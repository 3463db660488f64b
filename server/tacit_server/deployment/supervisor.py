"""`tacit server run`: three processes that are kept up, and ended together.

    superlink   Flower's, on loopback          dies: back within seconds, runs go on
    executor    starts the coordinator of each run
    gateway     what sites reach

The supervisor itself speaks to nobody but these three, and holds no key.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tacit_common.errors import TacitError
from tacit_common.health import LIVE, READY, HealthServer
from tacit_server.deployment.child import Child, ChildLog
from tacit_server.deployment.claim import claimed, end_leftovers, require_free
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.parts import NO_ANSWER, Part, environment_of, parts_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Pace:
    """How soon things are tried again. Seconds."""

    look_s: float = 5.0  # between two looks at a part
    first_look_s: float = 0.2  # while it starts
    first_delay_s: float = 0.5  # before it is started again; doubles each time
    # Flower gives a run up when the SuperLink is away for 60 s: never wait long for it.
    longest_delay_s: float = 10.0
    steady_s: float = 60.0  # a part that worked so long starts again without delay
    start_s: float = 180.0  # Flower imports for 20 s where its bytecode is not compiled
    silence_s: float = 60.0  # a part that does not answer for so long is ended
    first_starts: int = 5  # before it is given up, if it never worked


class Supervisor:
    """Keeps parts running until it is told to stop.

    Guarantees: a part starts only once those before it have answered; one that ends, or
    answers nothing for a minute, is started again; at the end they are stopped in the
    opposite order, and none is left.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        folder: Path,
        logs: Path,
        environment: Mapping[str, str],
        say: Say,
        pace: Pace | None = None,
    ) -> None:
        self._parts = parts
        self._folder = folder
        self._logs = {part.name: ChildLog(logs / f"{part.name}.log") for part in parts}
        self._environment = environment
        self._say = say
        self._pace = pace or Pace()
        self._working: dict[str, bool] = {part.name: False for part in parts}
        self._children: dict[str, Child] = {}
        self._stop = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether every part answered when it was last asked."""
        return all(self._working.values())

    def stop(self) -> None:
        """End all parts, and `run`."""
        self._stop.set()

    async def run(self) -> None:
        """Start the parts, keep them up, and stop them after `stop`.

        Raises:
            TacitError: a part ends again and again before it has worked once.
        """
        keeping: list[asyncio.Task[None]] = []
        stopped = asyncio.create_task(self._stop.wait())
        try:
            for part in self._parts:
                works = asyncio.Event()
                keeping.append(asyncio.create_task(self._keep(part, works)))
                up = asyncio.create_task(works.wait())
                await asyncio.wait({stopped, up, *keeping}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                if not works.is_set():
                    break
            else:
                self._say("the server is ready")
                await asyncio.wait({stopped, *keeping}, return_when=asyncio.FIRST_COMPLETED)
            for task in keeping:
                if task.done():
                    task.result()
        finally:
            stopped.cancel()
            await self._end(keeping)

    async def _end(self, keeping: Sequence[asyncio.Task[None]]) -> None:
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        for part in reversed(self._parts):
            self._working[part.name] = False
            if (child := self._children.pop(part.name, None)) is not None:
                await child.stop(part.stop_grace_s)
                self._say(f"{part.name} has ended")
        for log in self._logs.values():
            log.close()

    async def _keep(self, part: Part, works: asyncio.Event) -> None:
        """Start a part, again and again."""
        loop, pace = asyncio.get_running_loop(), self._pace
        delay, starts = pace.first_delay_s, 0
        log = self._logs[part.name]
        while True:
            began, starts = loop.time(), starts + 1
            for file in part.forgets:
                file.unlink(missing_ok=True)
            child = await Child.start(
                part.command, environment=self._environment, folder=self._folder, log=log
            )
            self._children[part.name] = child
            self._say(f"{part.name} starts (process {child.number})")
            why = await self._watch(part, child, works)
            self._working[part.name] = False
            await child.stop(part.stop_grace_s)
            del self._children[part.name]
            if not works.is_set() and starts >= pace.first_starts:
                raise TacitError(
                    f"the {part.name} does not start",
                    why=f"it {why}, {starts} times in a row",
                    fix=f"read the end of {log.file}",
                )
            if loop.time() - began > pace.steady_s:
                delay = pace.first_delay_s
            self._say(f"{part.name} {why}; it starts again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, pace.longest_delay_s)

    def _works_before(self, part: Part) -> bool:
        names = [one.name for one in self._parts]
        return all(self._working[name] for name in names[: names.index(part.name)])

    async def _watch(self, part: Part, child: Child, works: asyncio.Event) -> str:
        """Look at a part until it has to be started again; returns why, in words."""
        loop, pace = asyncio.get_running_loop(), self._pace
        files = _states(part.restarts_with)
        said: str | None = NO_ANSWER
        answered, patience_s = loop.time(), pace.start_s
        while True:
            look_s = pace.look_s if self._working[part.name] else pace.first_look_s
            if await child.has_ended(look_s):
                return child.ending or "ended"
            trouble = await part.trouble()
            if child.ending is not None:
                continue  # another process may have answered at its address
            self._working[part.name] = trouble is None
            if trouble != said:
                self._say(f"{part.name} {trouble or 'works'}")
                said = trouble
            if trouble is None:
                works.set()
            if trouble != NO_ANSWER:
                answered, patience_s = loop.time(), pace.silence_s
            elif not self._works_before(part):
                answered = loop.time()  # without a SuperLink, the executor cannot be at work
            elif loop.time() - answered > patience_s:
                return f"did not answer for {patience_s:g} s"
            if _states(part.restarts_with) != files:
                return "takes up renewed certificates"


def run_server(path: Path) -> None:
    """Run the server in a folder until SIGTERM or SIGINT.

    Raises:
        TacitError: the folder is not one, another server runs on it, an address is taken, or
            a part of it does not start.
    """
    os.umask(0o077)
    folder = ServerFolder.open(path)
    config = folder.config()
    parts = parts_of(folder, config)
    with claimed(folder), ExitStack() as stack:
        if ended := end_leftovers(folder):
            _say(f"ended {len(ended)} processes that an earlier server had left")
        require_free({"superlink_port": config.superlink_address, "listen": config.listen})

        async def supervise() -> None:
            supervisor = Supervisor(
                parts,
                folder=folder.path,
                logs=folder.logs,
                environment=environment_of(folder, os.environ),
                say=_say,
            )
            loop = asyncio.get_running_loop()
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(name, supervisor.stop)
            if config.health_address is not None:
                checks = {LIVE: lambda: True, READY: lambda: supervisor.is_ready}
                stack.enter_context(HealthServer(config.health_address, checks))
            await supervisor.run()

        asyncio.run(supervise())
    _say("the server has ended")


def _states(files: Sequence[Path]) -> list[tuple[int, int] | None]:
    states: list[tuple[int, int] | None] = []
    for file in files:
        try:
            found = file.stat()
        except OSError:
            states.append(None)
        else:
            states.append((found.st_mtime_ns, found.st_ino))
    return states


def _say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", flush=True)
