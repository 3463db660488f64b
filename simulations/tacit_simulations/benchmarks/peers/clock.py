"""When rounds end, as every contestant tells it."""

import os
import time

Samples = dict[str, list[float]]

SPAWNED = "TACIT_BENCH_SPAWNED_AT"
"""Environment variable: seconds since 1970 when the process of a contestant was started."""


class RoundTimes:
    """Seconds of the start-up, of the first round, and of each round after it.

    Start-up is everything from the process to the first round: imports, data, checks,
    workers. A round lasts from the end of the one before it to its own.
    """

    def __init__(self) -> None:
        self._ends: list[float] = []
        self._start_s = 0.0

    def begin(self) -> None:
        """The first round begins now."""
        self._start_s = time.time() - float(os.environ[SPAWNED])
        self._ends.append(time.perf_counter())

    def end_round(self) -> None:
        """A round ended now."""
        self._ends.append(time.perf_counter())

    @property
    def samples(self) -> Samples:
        """Seconds: one `start`, one `first round`, and `round`."""
        lasted = [end - before for before, end in zip(self._ends, self._ends[1:], strict=False)]
        return {"start": [self._start_s], "first round": lasted[:1], "round": lasted[1:]}
