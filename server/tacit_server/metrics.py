"""The run's curves for other tools: metrics.jsonl and TensorBoard events.

Both follow from the event log, so they are written anew when a run is resumed.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from tacit_server.run_log import LoggedEvent, Passing, ProbeFinished, RoundFinished, RunStarted


class MetricsWriter:
    """A watcher of a run that keeps `metrics.jsonl` and `tensorboard/` in its folder."""

    def __init__(self, folder: Path) -> None:
        self._jsonl = folder / "metrics.jsonl"
        self._tensorboard = folder / "tensorboard"
        self._writer: SummaryWriter | None = None

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Write the event's scalars; the first event of a run starts both files afresh."""
        if isinstance(event, RunStarted):
            self._start_afresh()
        if isinstance(event, RoundFinished | ProbeFinished):
            self._write(event)

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _start_afresh(self) -> None:
        self.close()
        self._jsonl.write_bytes(b"")
        shutil.rmtree(self._tensorboard, ignore_errors=True)
        self._writer = SummaryWriter(log_dir=str(self._tensorboard))

    def _write(self, event: RoundFinished | ProbeFinished) -> None:
        step, scalars = _step_of(event), dict(_scalars(event))
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": event.at.isoformat(), "step": step, **scalars}) + "\n")
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step, walltime=event.at.timestamp())
            self._writer.flush()


def _step_of(event: RoundFinished | ProbeFinished) -> int:
    """The round; probes stand at the round that they follow: 0, or the last one."""
    if isinstance(event, RoundFinished):
        return event.round
    return event.after_round


def _scalars(event: RoundFinished | ProbeFinished) -> Iterator[tuple[str, float]]:
    if isinstance(event, ProbeFinished):
        if event.accuracy is not None:
            yield f"probe/{event.kind}/accuracy", event.accuracy.value
        return
    yield "round/seconds", event.seconds
    yield "round/sites_answered", len(event.answered)
    yield "round/update_norm", event.update_norm
    yield "loss/public", event.public_loss
    if event.train_loss is not None:
        yield "loss/training", event.train_loss
    if event.epsilon is not None:
        yield "privacy/epsilon", event.epsilon
