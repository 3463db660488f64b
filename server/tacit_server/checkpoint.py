"""The checkpoint: everything that a run needs to go on after being killed at any moment.

One file a checkpoint, written whole or not at all, with a checksum. The newest two are
kept. What never changes, the parameters before the first round, stands in a file of its own.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tacit_common.errors import CheckpointError
from tacit_common.files import write_atomically
from tacit_common.ledger_chain import Hex64, SignedHead
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_server.run_log import LoggedEvent

_FORMAT = 3
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


class _Format(BaseModel):
    format: int


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    run: str
    study_digest: str
    round: int
    initial_sha256: Hex64
    events: list[LoggedEvent]
    heads: dict[str, SignedHead]
    sha256: Hex64


class _Texts:
    """Events and heads as JSON. What a checkpoint before held already is not written out anew."""

    def __init__(self) -> None:
        self._events: list[tuple[LoggedEvent, bytes]] = []
        self._heads: dict[str, tuple[SignedHead, bytes]] = {}

    def of_events(self, events: list[LoggedEvent]) -> bytes:
        """A list of them."""
        known = self._events
        same = 0
        while same < min(len(known), len(events)) and known[same][0] is events[same]:
            same += 1
        known[same:] = [(event, event.model_dump_json().encode()) for event in events[same:]]
        return b"[" + b",".join(text for _, text in known) + b"]"

    def of_heads(self, heads: Mapping[str, SignedHead]) -> bytes:
        """An object of them, by site."""
        known = self._heads
        for site, head in heads.items():
            if site not in known or known[site][0] is not head:
                text = f"{json.dumps(site)}:{head.model_dump_json()}"
                known[site] = (head, text.encode())
        return b"{" + b",".join(known[site][1] for site in heads) + b"}"


class CheckpointStore:
    """Checkpoints of one run, in a folder of their own."""

    def __init__(self, directory: Path, *, survive_power_loss: bool = True) -> None:
        self._directory = directory
        self._survive_power_loss = survive_power_loss
        self._initial: tuple[ParameterVector, str] | None = None  # as it stands in its file
        self._texts = _Texts()

    def write(self, state: RunState) -> None:
        """Make `state` the newest checkpoint, durably and atomically."""
        initial_sha256 = self._with_initial(state.initial)
        tensors = {_PARAMETERS: state.strategy.parameters}
        tensors |= {_MOMENT + name: value for name, value in state.strategy.moments.items()}
        body = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
        fields = {
            "format": _FORMAT,
            "run": state.run,
            "study_digest": state.study_digest,
            "round": state.round,
            "initial_sha256": initial_sha256,
        }
        start = b"".join(
            [
                json.dumps(fields).removesuffix("}").encode(),
                b', "events":',
                self._texts.of_events(state.events),
                b', "heads":',
                self._texts.of_heads(state.heads),
                b', "sha256":"',
            ]
        )
        checksum = _checksum([start, b'"}'], body)
        path = self._directory / f"round-{state.round:06d}.ckpt"
        self._write(path, start, checksum.encode(), b'"}\n', body)
        for stale in self._paths()[:-2]:
            stale.unlink()

    def _with_initial(self, initial: ParameterVector) -> str:
        """Have a file with the initial parameters; returns its checksum."""
        if self._initial is None or self._initial[0] is not initial:
            content = save({_INITIAL: np.ascontiguousarray(initial)})
            sha256 = hashlib.sha256(content).hexdigest()
            self._write(self._directory / _initial_name(sha256), content)
            self._initial = (initial, sha256)
        return self._initial[1]

    def _write(self, path: Path, *parts: bytes) -> None:
        try:
            write_atomically(path, *parts, survive_power_loss=self._survive_power_loss)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint '{path.name}' cannot be written",
                why=error.strerror or type(error).__name__,
                fix="make room in the run's folder, then resume: nothing is lost",
            ) from None

    def read_newest(self, *, study_digest: str) -> RunState | None:
        """The newest checkpoint, or None if there is none yet.

        Raises:
            CheckpointError: it is damaged, or of another study.
        """
        paths = self._paths()
        if not paths:
            return None
        state, initial_sha256 = _read(paths[-1])
        if state.study_digest != study_digest:
            raise CheckpointError(
                f"checkpoint '{paths[-1].name}' is of another study",
                why="the study in the run's folder has changed since it was written",
                fix="restore study.toml, or start a new run",
            )
        self._initial = (state.initial, initial_sha256)
        return state

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("round-*.ckpt"))


def _read(path: Path) -> tuple[RunState, str]:
    """The state in a checkpoint, and the checksum of its initial parameters' file."""
    head, _, body = _content(path).partition(b"\n")
    try:
        found = _Format.model_validate_json(head).format
        if found != _FORMAT:
            raise CheckpointError(
                f"checkpoint '{path.name}' is of another version",
                why=f"it has format {found}, this version reads {_FORMAT}",
                fix="resume with the version of Tacit that wrote it: the file is sound",
            )
        header = _Header.model_validate_json(head)
    except ValidationError:
        raise _damaged(path, "its header cannot be read") from None
    before, _, after = head.rpartition(header.sha256.encode())
    if _checksum([before, after], body) != header.sha256:
        raise _damaged(path, "its content does not match its checksum")
    beside = path.with_name(_initial_name(header.initial_sha256))
    initial = _content(beside)
    if hashlib.sha256(initial).hexdigest() != header.initial_sha256:
        raise CheckpointError(
            f"'{beside.name}' is damaged",
            why="its content does not match its checksum",
            fix=f"restore it in {path.parent.name}/ from a backup, or start anew",
        )
    try:
        tensors = load(body) | load(initial)
    except SafetensorError:
        raise _damaged(path, "its tensors cannot be read") from None
    moments = {
        name.removeprefix(_MOMENT): value
        for name, value in tensors.items()
        if name.startswith(_MOMENT)
    }
    state = RunState(
        run=header.run,
        study_digest=header.study_digest,
        strategy=StrategyState(tensors[_PARAMETERS], header.round, moments),
        heads=header.heads,
        initial=tensors[_INITIAL],
        events=header.events,
    )
    return state, header.initial_sha256


def _initial_name(sha256: str) -> str:
    return f"initial-{sha256[:16]}.safetensors"


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint '{path.name}' cannot be read",
            why=error.strerror or type(error).__name__,
            fix="make the file readable, then resume again",
        ) from None


def _checksum(blank_header: list[bytes], body: bytes) -> str:
    """SHA-256 of the file as it is with an empty checksum in its header, given in parts."""
    digest = hashlib.sha256()
    for part in (*blank_header, b"\n", body):
        digest.update(part)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint '{path.name}' is damaged",
        why=why,
        fix=f"delete it to go on from the one before it in {path.parent.name}/, or start anew",
    )
