"""The checkpoint: everything that a run needs to go on after being killed at any moment.

One file a checkpoint, written whole or not at all, with a checksum. The newest two are
kept.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tacit_common.errors import CheckpointError
from tacit_common.files import write_atomically
from tacit_common.ledger_chain import SignedHead
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_server.run_log import LoggedEvent

_FORMAT = 2
_PARAMETERS, _INITIAL = "parameters", "initial"
_MOMENT = "moment."


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    `initial` [P] are the parameters before the first round (after the warm start): the
    baseline that the result is measured against. `events` is the run's event log up to
    here: the log on disk is mended from it after a kill. `heads` are the newest ledger
    heads of the sites that were seen, by site.
    """

    run: str
    study_digest: str
    strategy: StrategyState
    initial: ParameterVector
    events: list[LoggedEvent] = field(default_factory=list)
    heads: dict[str, SignedHead] = field(default_factory=dict)

    @property
    def round(self) -> int:
        """The last finished round."""
        return self.strategy.round


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    run: str
    study_digest: str
    round: int
    events: list[LoggedEvent]
    heads: dict[str, SignedHead]
    sha256: str


class CheckpointStore:
    """Checkpoints of one run, in a folder of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, state: RunState) -> None:
        """Make `state` the newest checkpoint, durably and atomically."""
        tensors = {_PARAMETERS: state.strategy.parameters, _INITIAL: state.initial}
        tensors |= {_MOMENT + name: value for name, value in state.strategy.moments.items()}
        body = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        header = _Header(
            format=_FORMAT,
            run=state.run,
            study_digest=state.study_digest,
            round=state.round,
            events=state.events,
            heads=state.heads,
            sha256="",
        )
        blank = header.model_dump_json().encode()
        header = header.model_copy(update={"sha256": _checksum(blank, body)})
        path = self._directory / f"round-{state.round:06d}.ckpt"
        try:
            write_atomically(path, header.model_dump_json().encode(), b"\n", body)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint '{path.name}' cannot be written",
                why=error.strerror or type(error).__name__,
                fix="make room in the run's folder, then resume: nothing is lost",
            ) from None
        for stale in self._paths()[:-2]:
            stale.unlink()

    def read_newest(self, *, study_digest: str) -> RunState | None:
        """The newest checkpoint, or None if there is none yet.

        Raises:
            CheckpointError: it is damaged, or of another study.
        """
        paths = self._paths()
        if not paths:
            return None
        state = _read(paths[-1])
        if state.study_digest != study_digest:
            raise CheckpointError(
                f"checkpoint '{paths[-1].name}' is of another study",
                why="the study in the run's folder has changed since it was written",
                fix="restore study.toml, or start a new run",
            )
        return state

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("round-*.ckpt"))


def _read(path: Path) -> RunState:
    try:
        head, _, body = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{path.name}' cannot be read",
            why=error.strerror or type(error).__name__,
            fix="make the file readable, then resume again",
        ) from None
    try:
        header = _Header.model_validate_json(head)
    except ValidationError:
        raise _damaged(path, "its header cannot be read") from None
    if header.format != _FORMAT:
        raise _damaged(path, f"it has format {header.format}, this version reads {_FORMAT}")
    blank = head.replace(header.sha256.encode(), b"", 1)
    if _checksum(blank, body) != header.sha256:
        raise _damaged(path, "its content does not match its checksum")
    try:
        tensors = load(body)
    except SafetensorError:
        raise _damaged(path, "its tensors cannot be read") from None
    moments = {
        name.removeprefix(_MOMENT): value
        for name, value in tensors.items()
        if name.startswith(_MOMENT)
    }
    return RunState(
        run=header.run,
        study_digest=header.study_digest,
        strategy=StrategyState(tensors[_PARAMETERS], header.round, moments),
        heads=header.heads,
        initial=tensors[_INITIAL],
        events=header.events,
    )


def _checksum(blank_header: bytes, body: bytes) -> str:
    """SHA-256 of the file as it is with an empty checksum in its header."""
    return hashlib.sha256(blank_header + b"\n" + body).hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint '{path.name}' is damaged",
        why=why,
        fix=f"delete it to go on from the one before it in {path.parent.name}/, or start anew",
    )
