"""One child process of the supervisor: its start, its log and its end."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from logging import INFO, Formatter, LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path

from tacit_server.deployment.lifeline import tied_to_this_process

_LOG_BYTES = 10_000_000
_LOGS_KEPT = 5
_PIECE = 64 * 1024
_STEP_S = 0.2
_LAST_WORDS_S = 2.0


class ChildLog:
    """What a process writes, in a file that is put aside and begun anew at 10 MB.

    Guarantees: at most six files of about that size, readable by their owner alone.
    """

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.file = file
        self._handler = RotatingFileHandler(
            file, maxBytes=_LOG_BYTES, backupCount=_LOGS_KEPT, encoding="utf-8"
        )
        self._handler.setFormatter(Formatter("%(message)s"))

    def write(self, text: str) -> None:
        """Add some lines."""
        self._handler.handle(LogRecord(self.file.stem, INFO, "", 0, text, None, None))

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


class Child:
    """A process in a session of its own, tied to this one's life."""

    def __init__(self, process: asyncio.subprocess.Process, log: ChildLog) -> None:
        self._process = process
        self._reading = asyncio.create_task(_copy(process.stdout, log))

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: ChildLog
    ) -> "Child":
        """Start `command` in `folder`. Call it from the main thread (see lifeline.py)."""
        process = await asyncio.create_subprocess_exec(
            *tied_to_this_process(command),
            env=dict(environment),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            # Ctrl-C at a terminal reaches the supervisor alone, which ends all in order; and
            # whatever a child starts can be ended with it.
            start_new_session=True,
        )
        return cls(process, log)

    @property
    def number(self) -> int:
        """Its process number."""
        return self._process.pid

    @property
    def ending(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self._process.returncode
        if code is None:
            return None
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was ended by {signal.Signals(-code).name}"

    async def has_ended(self, within_s: float) -> bool:
        """Whether it ends within some seconds."""
        now = asyncio.get_running_loop().time
        end = now() + within_s
        while self._process.returncode is None and now() < end:
            # asyncio's `wait` returns only when the output is closed too, and whatever this
            # process has started may hold that open.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_STEP_S, end - now())):
                    await self._process.wait()
        return self._process.returncode is not None

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, SIGKILL after `grace_s`.

        Guarantees: nothing that it started in its session is left, even if it had ended.
        """
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self.has_ended(grace_s)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        while not await self.has_ended(_STEP_S):
            pass  # SIGKILL is on its way
        # A process that left the session may hold the output open for ever.
        await asyncio.wait({self._reading}, timeout=_LAST_WORDS_S)
        self._reading.cancel()
        with suppress(asyncio.CancelledError):
            await self._reading


async def _copy(output: asyncio.StreamReader | None, log: ChildLog) -> None:
    """Whole lines to the log; a line without an end is cut into pieces."""
    if output is None:
        return
    rest = b""
    while piece := await output.read(_PIECE):
        lines, newline, rest = (rest + piece).rpartition(b"\n")
        if not newline and len(rest) >= _PIECE:
            lines, newline, rest = rest, b"\n", b""
        if newline:
            log.write(lines.decode("utf-8", "replace"))
    if rest:
        log.write(rest.decode("utf-8", "replace"))
