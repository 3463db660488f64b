"""What happened in a run: the event log on disk, and whoever watches.

`events.jsonl` grows by one line an event. It is written after the checkpoint that holds
the same events, so after a kill the checkpoint knows at least as much as the log, and
the log is mended from it.
"""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from tacit_common.files import write_atomically
from tacit_common.probes.contract import Interval
from tacit_common.report.account import SiteAccount


class _Event(BaseModel):
    # JSON has no infinity: it would be written as a null, which cannot be read again.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    at: datetime = Field(default_factory=lambda: datetime.now(UTC))


class RunStarted(_Event):
    """The study is checked, calibrated, and about to begin."""

    event: Literal["run_started"] = "run_started"
    run: str
    study_digest: str
    rounds: int
    parameters: int
    noise_multiplier: float | None
    sites: dict[str, int] = Field(description="Site to declared units.")
    refused: dict[str, str] = Field(default={}, description="Site to code: did not join.")


class RunResumed(_Event):
    """The run goes on from its checkpoint."""

    event: Literal["run_resumed"] = "run_resumed"
    after_round: int


class WarmStarted(_Event):
    """Pretraining on public procedural images is done."""

    event: Literal["warm_started"] = "warm_started"
    steps: int
    seconds: float
    public_loss: float = Field(description="Loss on public procedural images, after it.")


class RoundFinished(_Event):
    """A round is done and in the checkpoint."""

    event: Literal["round_finished"] = "round_finished"
    round: int
    asked: list[str]
    answered: list[str]
    failed: dict[str, str] = Field(description="Site to code: refused, silent or unusable.")
    seconds: float
    update_norm: float = Field(description="L2 norm of the mean update, after the noise.")
    epsilon: float | None = Field(description="ε of a site that joined every round so far.")
    public_loss: float = Field(description="Loss on public procedural images.")
    train_loss: float | None = Field(description="Mean over sites; mode none only.")


class ProbeFinished(_Event):
    """A probe was solved from the sites' statistics."""

    event: Literal["probe_finished"] = "probe_finished"
    when: Literal["before", "after"]
    after_round: int
    probe: int
    kind: str
    answered: list[str]
    failed: dict[str, str]
    noise_multiplier: float | None
    epsilon: float | None
    accuracy: Interval | None = Field(description="On the coordinator's public labelled data.")


class AccountsCollected(_Event):
    """The sites have said what the run cost their data, for the report."""

    event: Literal["accounts_collected"] = "accounts_collected"
    sites: dict[str, int] = Field(description="Site to declared units: who was asked.")
    accounts: dict[str, SiteAccount] = Field(description="Site to its account.")
    missing: dict[str, str] = Field(description="Site to code: refused, silent or unusable.")


class RunFinished(_Event):
    """All rounds and probes are done and the encoder is written."""

    event: Literal["run_finished"] = "run_finished"
    rounds: int


LoggedEvent = Annotated[
    RunStarted
    | RunResumed
    | WarmStarted
    | RoundFinished
    | ProbeFinished
    | AccountsCollected
    | RunFinished,
    Field(discriminator="event"),
]
LOGGED_EVENT: TypeAdapter[LoggedEvent] = TypeAdapter(LoggedEvent)


Stage = Literal["warm start", "round", "probe"]


class Progress(BaseModel):
    """How far the present stage is: for a display, not for the log."""

    stage: Stage
    label: str
    done: int
    total: int


class Gathering(BaseModel):
    """Who has joined so far, and who has not and why: for a display, not for the log."""

    joined: list[str]
    refused: dict[str, str] = Field(description="Site to code.")


Passing = Progress | Gathering
Watcher = Callable[[LoggedEvent | Passing], None]


class RunLog:
    """The event log of one run.

    `watchers` see every event and all progress, in the thread that runs the study.
    """

    def __init__(self, path: Path, watchers: Sequence[Watcher] = ()) -> None:
        self._path = path
        self._watchers = watchers

    def mend(self, known: list[LoggedEvent]) -> None:
        """Make the log hold exactly `known`, what the checkpoint says has happened."""
        write_atomically(self._path, *(_line(event) for event in known))
        for event in known:
            self._tell(event)

    def publish(self, event: LoggedEvent) -> None:
        """Append an event that the checkpoint holds, and tell the watchers."""
        with self._path.open("ab") as file:
            file.write(_line(event))
        self._tell(event)

    def progress(self, stage: Stage, label: str, done: int, total: int) -> None:
        """Tell the watchers how far the present stage is."""
        self._tell(Progress(stage=stage, label=label, done=done, total=total))

    def gathering(self, joined: list[str], refused: dict[str, str]) -> None:
        """Tell the watchers who would take part."""
        self._tell(Gathering(joined=joined, refused=refused))

    def _tell(self, event: LoggedEvent | Passing) -> None:
        for watcher in self._watchers:
            watcher(event)


def read_events(path: Path) -> list[LoggedEvent]:
    """All whole events of a log; a last line that a kill cut short is left out."""
    lines = path.read_bytes().split(b"\n")
    return [LOGGED_EVENT.validate_json(line) for line in lines[:-1]]


def _line(event: LoggedEvent) -> bytes:
    return json.dumps(event.model_dump(mode="json"), sort_keys=True).encode() + b"\n"
