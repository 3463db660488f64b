"""How long each part of a run takes, told by the events that it publishes."""

import time

from tacit_server.run_log import LoggedEvent, Passing, RoundFinished, RunStarted
from tacit_simulations.benchmarks.measure import Samples, Stages

START, FIRST, ROUND, END = "start", "first round", "round", "end"
STAGE = "stage "


class RoundClock:
    """Watches a run: its start, the first round, each later round and its stages, the end.

    A round lasts from the event that ends the one before it to the event that ends it, so
    nothing between two rounds is missed.
    """

    def __init__(self, stages: Stages | None = None) -> None:
        self.samples: Samples = {ROUND: []}
        self._stages = stages
        self._since = time.perf_counter()

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Called by the run for every event."""
        if not isinstance(event, RoundFinished | RunStarted):
            return
        seconds = self._passed()
        split = {} if self._stages is None else self._stages.take()
        match event:
            case RunStarted():
                self.samples[START] = [seconds]
                self.samples["parameters"] = [event.parameters]
            case RoundFinished(failed=failed) if failed:
                raise RuntimeError(f"sites failed in a benchmark: {failed}")
            case RoundFinished(round=1):
                self.samples[FIRST] = [seconds]
            case RoundFinished():
                self.samples[ROUND].append(seconds)
                for stage, spent in split.items():
                    self.samples.setdefault(f"{STAGE}{stage}", []).append(spent)

    def end(self) -> None:
        """Called when all is done that follows the last round."""
        self.samples[END] = [self._passed()]

    def _passed(self) -> float:
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
