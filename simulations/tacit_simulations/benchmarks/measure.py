"""How things are measured: in a fresh process, and split into stages.

A fresh process because caches, allocators and high-water marks of memory remember what
ran before. `in_fresh_process` runs a function of this package there:

    python -m tacit_simulations.benchmarks.child MODULE:FUNCTION ARGUMENTS RESULT
"""

import functools
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from pydantic import TypeAdapter
from rich.console import Console

from tacit_common.errors import TacitError

Samples = dict[str, list[float]]
"""What a measurement gives back: name to values, in seconds or bytes."""

SAMPLES: TypeAdapter[Samples] = TypeAdapter(Samples)

_TIMEOUT_S = 1800.0
_TIME_TO_END_S = 10.0  # for a child that was interrupted too, and is cleaning up
_LINES_SHOWN = 20
_RUNS = Path("runs")

P = ParamSpec("P")
R = TypeVar("R")


class Stages:
    """Where the time of one thread goes: seconds of each stage, without the stages inside it.

    A context manager that puts back every function that it watched.
    """

    REST = "rest"

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._stack = [self.REST]
        self._since = time.perf_counter()
        self._watched: list[tuple[object, str, object]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for owner, name, original in reversed(self._watched):
            setattr(owner, name, original)

    def watch(self, stage: str, owner: object, *names: str) -> None:
        """Count the time in these functions, methods or properties of `owner` as `stage`."""
        for name in names:
            original = vars(owner).get(name)
            if original is None:
                raise RuntimeError(f"{owner} has no '{name}' any more: mend the benchmark's stages")
            self._watched.append((owner, name, original))
            if isinstance(original, property) and original.fget is not None:
                setattr(owner, name, property(self._timed(stage, original.fget)))
            elif inspect.isgeneratorfunction(original):
                setattr(owner, name, self._timed_items(stage, original))
            else:
                setattr(owner, name, self._timed(stage, original))

    def take(self) -> dict[str, float]:
        """Seconds of each stage since the last call."""
        self._count()
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _timed(self, stage: str, original: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(original)
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            with self._in(stage):
                return original(*args, **kwargs)

        return timed

    def _timed_items(
        self, stage: str, original: Callable[P, Iterator[R]]
    ) -> Callable[P, Iterator[R]]:
        """A generator works while it is asked for an item, not when it is called."""

        @functools.wraps(original)
        def timed(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
            items = original(*args, **kwargs)
            while True:
                try:
                    with self._in(stage):
                        item = next(items)
                except StopIteration:
                    return
                yield item

        return timed

    @contextmanager
    def _in(self, stage: str) -> Iterator[None]:
        self._count()
        self._stack.append(stage)
        try:
            yield
        finally:
            self._count()
            self._stack.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        self._seconds[self._stack[-1]] += now - self._since
        self._since = now


class Track:
    """Says what is being measured, and how long each measurement took."""

    def __init__(self, benchmark: str, console: Console) -> None:
        self._benchmark = benchmark
        self._console = console

    @contextmanager
    def measuring(self, what: str) -> Iterator[None]:
        """For the time of one measurement."""
        started = time.monotonic()
        with self._console.status(f"{self._benchmark}: {what}"):
            yield
        seconds = time.monotonic() - started
        self._console.print(f"{self._benchmark}: {what} [dim]({seconds:.1f} s)[/]")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder beside real runs, so that the disk is the same, that is gone afterwards."""
    _RUNS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=_RUNS) as folder:
        yield Path(folder)


def in_fresh_process(case: str, **arguments: str | int) -> Samples:
    """What `case`, "module:function" of this package, returns for `arguments`.

    Raises:
        TacitError: it failed; the message ends with what it printed last.
    """
    with tempfile.TemporaryDirectory(prefix="tacit-bench-") as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        command = [sys.executable, "-m", f"{__package__}.child", case, json.dumps(arguments)]
        with log.open("wb") as output:
            code = _run([*command, str(result)], output.fileno())
        if code == 0:
            return SAMPLES.validate_json(result.read_bytes())
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LINES_SHOWN:]
    raise TacitError(
        f"the measurement {case} failed",
        why="\n".join([f"exit code {code}", *last]),
        fix=f"run: python -m {__package__}.child {case} '{json.dumps(arguments)}' out.json",
    )


def _run(command: list[str], output: int) -> int:
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(command, stdout=output, stderr=output, env=one_thread)  # noqa: S603 - our own module
    try:
        return child.wait(_TIMEOUT_S)
    except KeyboardInterrupt:
        # The terminal interrupted the child as well: let it stop what it started.
        try:
            child.wait(_TIME_TO_END_S)
        except subprocess.TimeoutExpired:
            child.terminate()
        raise
    except subprocess.TimeoutExpired:
        return os.EX_TEMPFAIL
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
