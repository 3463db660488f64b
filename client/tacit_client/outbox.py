"""The answers that a site gave, so that a repeated question gets the same answer.

A reply is written here, durably, before it may leave. If the server asks again, because
it or the site was killed in between, the stored reply is sent once more: no second
noise, no second payment. Only the newest few are kept: a server that asks for the next
round has the last one, or its checkpoint from one round before.
"""

import io
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import LedgerError, RefusalCode
from tacit_common.files import write_atomically
from tacit_common.messages import ProbeReply, Refusal, TrainReply

PaidAnswer = TrainReply | ProbeReply | Refusal
"""What a request that was paid for may be answered: a failure is an answer too."""

_KEPT = 4  # a round, and the probes that may follow it
_SUFFIXES = {
    TrainReply: ".update.npy",
    ProbeReply: ".statistics.npy",
    Refusal: ".refusal.npy",
}


class Outbox:
    """Stored replies of one site, in a folder of their own."""

    def __init__(self, directory: Path, *, survive_power_loss: bool = True) -> None:
        self._directory = directory
        self._survive_power_loss = survive_power_loss

    def find(self, key: str) -> PaidAnswer | None:
        """The reply that was stored for a request, or None.

        Raises:
            LedgerError: there is one, but it cannot be read.
        """
        endings = {f"-{key}{suffix}": kind for kind, suffix in _SUFFIXES.items()}
        try:
            stored = self._stored()
        except OSError as error:
            raise LedgerError(
                "stored replies cannot be read",
                why=error.strerror or type(error).__name__,
                fix="check that the site's outbox is a folder that it may read",
            ) from None
        for name in stored:
            reply_type = endings.get(name[name.find("-") :])
            if reply_type is None:
                continue
            try:
                array = np.load(self._directory / name, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                raise LedgerError(
                    "a stored reply cannot be read",
                    why=f"'{name}' in the outbox is damaged",
                    fix="restore the site's folder from a backup",
                ) from None
            if reply_type is Refusal:
                return Refusal(code=RefusalCode(str(array.item())))
            return TrainReply(array) if reply_type is TrainReply else ProbeReply(array)
        return None

    def store(self, key: str, reply: PaidAnswer) -> None:
        """Write a reply durably and forget all but the newest few.

        Raises:
            LedgerError: it cannot be written.
        """
        match reply:
            case TrainReply():
                array: NDArray[np.generic] = reply.update
            case ProbeReply():
                array = reply.statistics
            case Refusal():
                array = np.array(reply.code.value)
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            kept = self._stored()
            number = int(kept[-1].partition("-")[0]) + 1 if kept else 0
            path = self._directory / f"{number:08d}-{key}{_SUFFIXES[type(reply)]}"
            stale = [self._directory / name for name in kept[: 1 - _KEPT]]
            # After a power cut a file may be back under its old name, with what is new in it.
            over = stale.pop() if stale and not self._survive_power_loss else None
            write_atomically(
                path, *_npy_parts(array), survive_power_loss=self._survive_power_loss, over=over
            )
            for one in stale:
                one.unlink()
        except OSError as error:
            raise LedgerError(
                "a reply cannot be stored",
                why=error.strerror or type(error).__name__,
                fix="check that the site's folder is writable and has space",
            ) from None

    def _stored(self) -> list[str]:
        """Names of the stored replies, the oldest first."""
        try:
            names = os.listdir(self._directory)
        except (FileNotFoundError, NotADirectoryError):  # nothing was ever stored
            return []
        return sorted(name for name in names if name.endswith(".npy") and name[0] != ".")


def _npy_parts(array: NDArray[np.generic]) -> tuple[bytes, memoryview]:
    """An array as a .npy file: its header, and its bytes without a copy."""
    whole = np.ascontiguousarray(array)
    header = io.BytesIO()
    description = np.lib.format.header_data_from_array_1_0(whole)
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue(), whole.data
