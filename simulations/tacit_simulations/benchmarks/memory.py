"""How much memory a process takes together with every process that it has started."""

import os
import resource
import sys
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

_LOOK_S = 0.2
_PROC = Path("/proc")


class TreeMemory:
    """Watches the memory of this process and its descendants; a context manager.

    On Linux it looks five times a second and adds up proportional sets (PSS), in which a
    page that n processes share counts as 1/n in each, so memory handed over between processes
    counts once. Elsewhere it knows this process alone.
    """

    def __init__(self) -> None:
        self._most = 0
        self._done = Event()
        self._watch = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._watch.join()

    @property
    def peak(self) -> int:
        """The most so far, in bytes; never less than what this process alone has taken."""
        return max(self._most, peak_of_this_process())

    def _look(self) -> None:
        while not self._done.wait(_LOOK_S):
            self._most = max(self._most, sum(map(_proportional_set, _tree(os.getpid()))))


def peak_of_this_process() -> int:
    """Largest resident set of this process so far, in bytes.

    From /proc where there is one: on Linux ru_maxrss starts at the size of the process
    that started this one.
    """
    status = _PROC / "self/status"
    if status.exists():
        line = next(n for n in status.read_text().splitlines() if n.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _tree(root: int) -> list[int]:
    """This process and all below it; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for status in _PROC.glob("[0-9]*/stat"):
        try:
            # The name of the command stands in parentheses, and may hold anything.
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it has ended
        children.setdefault(parent, []).append(int(status.parent.name))
    found = [root] if children else []
    for process in found:  # grows while it is walked
        found += children.get(process, [])
    return found


def _proportional_set(process: int) -> int:
    """Bytes of one process, 0 if it has ended."""
    try:
        lines = (_PROC / str(process) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
