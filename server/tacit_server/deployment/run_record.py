"""What a coordinator keeps of a run beside the run's own folder: how it was asked for, and
where it stands now. Each file has one writer at a time, so that no word is lost.

    submission.json   what a person wants of it: `tacit server submit`, `stop`, `resume`
    superlink.json    its number at the SuperLink: the executor
    status.json       what it last said of itself: the run's process; while none leads it, the
                      executor, and `resume`
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import CheckpointError, TacitError
from tacit_common.files import write_atomically

Stage = Literal["submitted", "gathering", "running", "finished", "failed", "stopped"]
GOES_ON: frozenset[Stage] = frozenset({"submitted", "gathering", "running"})
"""Runs that go on by themselves; `failed` and `stopped` ones wait for a person."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            raise CheckpointError(
                f"'{path.name}' of the run '{path.parent.name}' cannot be read",
                why="it is missing or damaged",
                fix="restore the run's folder from a backup, or submit the study anew",
            ) from None

    def write(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_atomically(path, self.model_dump_json(indent=2).encode())


class Submission(_Record):
    """How a run was asked for."""

    at: datetime
    sites: int = Field(ge=1, description="Begin as soon as so many sites have joined.")
    patience_s: float = Field(ge=0, description="Begin with fewer after so long.")
    stopped: bool = Field(default=False, description="A person stopped it.")


class AtSuperlink(_Record):
    """As what the SuperLink knows a run. Any other run of its name is not ours."""

    flower_run: int

    @classmethod
    def number(cls, run: Path) -> int | None:
        """The number of the run in a folder; None before it was first begun.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = run / AT_SUPERLINK
        return cls.read(path).flower_run if path.is_file() else None


class Trouble(BaseModel):
    """Why a run ended early: an error's three parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    why: str
    fix: str

    @classmethod
    def of(cls, error: Exception) -> Self:
        """What an operator is told of an error."""
        if isinstance(error, TacitError):
            return cls(what=error.what, why=error.why, fix=error.fix)
        return cls(
            what=f"Tacit failed unexpectedly ({type(error).__name__})",
            why="this is a fault in Tacit, not in the study",
            fix="look at the run's log.txt, then: tacit server resume",
        )


class Status(_Record):
    """Where a run stands."""

    stage: Stage
    at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    doing: str = Field(default="", description="What it is doing: 'round 3', 'probe before'.")
    done: int = 0
    total: int = 0
    joined: tuple[str, ...] = ()
    refused: dict[str, str] = Field(default={}, description="Site to code.")
    begun: int = Field(default=0, description="How often a process has taken it up.")
    trouble: Trouble | None = None


SUBMISSION, AT_SUPERLINK, STATUS = "submission.json", "superlink.json", "status.json"
