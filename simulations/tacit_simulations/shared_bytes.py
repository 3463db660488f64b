"""Messages between this program's own processes: texts through a pipe, arrays through memory.

Nothing is pickled. A record is described in JSON; the bytes of its arrays stand in memory
that both processes see, one after the other.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from tacit_common.errors import WireError

Record = ConfigRecord | ArrayRecord
Described = dict[str, Any]
"""A record as JSON."""


class SharedBytes:
    """Memory that processes share: an open file without a name, so it ends with the last of them.

    Not even kill -9 can leave it behind. Whoever writes says when others may read.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> "SharedBytes":
        """New memory, empty."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("tacit"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def close(self) -> None:
        """Let go of it in this process."""
        os.close(self.descriptor)

    def write(self, parts: Iterable[bytes]) -> None:
        """Write these parts, one after the other, over what was there."""
        offset = 0
        for part in parts:
            left = memoryview(part)
            while left:
                written = os.pwrite(self.descriptor, left, offset)
                offset, left = offset + written, left[written:]

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes from `offset`.

        Raises:
            WireError: there are not so many.
        """
        whole = os.pread(self.descriptor, size, offset)
        while len(whole) < size:  # one call moves 2 GiB at most
            more = os.pread(self.descriptor, size - len(whole), offset + len(whole))
            if not more:
                raise WireError(
                    "a message between processes cannot be read",
                    why="its arrays are longer than what was written",
                    fix="report this: it is a fault in Tacit",
                )
            whole += more
        return whole


def size_of(records: Iterable[Record]) -> int:
    """Bytes of their arrays."""
    arrays = (record for record in records if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in arrays for array in record.values())


def describe(records: Iterable[Record], memory: SharedBytes) -> list[Described]:
    """Records as JSON, in their order, with the bytes of their arrays in `memory`."""
    described: list[Described] = []
    parts: list[bytes] = []
    offset = 0
    for record in records:
        if isinstance(record, ConfigRecord):
            described.append({"texts": dict(record)})
            continue
        arrays: Described = {}
        for name, array in record.items():
            place = [array.dtype, list(array.shape), array.stype, offset, len(array.data)]
            arrays[name] = place
            parts.append(array.data)
            offset += len(array.data)
        described.append({"arrays": arrays})
    memory.write(parts)
    return described


def restore(described: Iterable[Described], memory: SharedBytes) -> list[Record]:
    """The records that were described, their arrays copied out of `memory`.

    Raises:
        WireError: `memory` is shorter than they say.
    """
    return [
        ArrayRecord(
            {
                name: Array(dtype, tuple(shape), stype, memory.read(offset, size))
                for name, (dtype, shape, stype, offset, size) in record["arrays"].items()
            }
        )
        if "arrays" in record
        else ConfigRecord(record["texts"])
        for record in described
    ]


def apart(content: RecordDict) -> dict[str, Record]:
    """The records of a message, by name.

    Raises:
        TypeError: it holds one that no message of Tacit holds.
    """
    records: dict[str, Record] = {}
    for name, record in content.items():
        if not isinstance(record, ConfigRecord | ArrayRecord):
            raise TypeError(f"record '{name}' holds neither texts nor arrays")
        records[name] = record
    return records


def together(records: Mapping[str, Record]) -> RecordDict:
    """A message's content, from its records."""
    return RecordDict(dict(records))
