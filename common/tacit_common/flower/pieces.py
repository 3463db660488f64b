"""A message that arrives in pieces: fetched within bounds, checked, and put together.

    Message → RecordDict → ArrayRecord → Array → ArrayChunk
                         → ConfigRecord

Flower sends each of these as an object, named by the SHA-256 of its content, which names its
children. Flower's own way of putting them together believes whatever it is sent: it checks no
hash, and an array may name one chunk a million times.
"""

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from tacit_common.errors import WireError

CHUNK: Final = 5 * 1024 * 1024
"""Bytes into which Flower cuts arrays."""

LARGEST_PIECE: Final = CHUNK + 64 * 1024
"""Bytes of an answer that brings one piece, with what Flower writes around a chunk."""

_OTHER_PIECES: Final = 64  # records, arrays and the message itself; ours has fewer
_OTHER_BYTES: Final = 16 * 1024 * 1024  # of all pieces that are no chunks of arrays
_NAME = re.compile(r"[0-9a-f]{64}")

# What may stand below what. Nothing stands below a chunk or a text.
_KINDS: Final[dict[str, tuple[type[InflatableObject], set[str]]]] = {
    "Message": (Message, {"RecordDict"}),
    "RecordDict": (RecordDict, {"ArrayRecord", "ConfigRecord"}),
    "ArrayRecord": (ArrayRecord, {"Array"}),
    "ConfigRecord": (ConfigRecord, set()),
    "Array": (Array, {"ArrayChunk"}),
    "ArrayChunk": (ArrayChunk, set()),
}

Pull = Callable[[str], bytes]
"""Fetches a piece by its name; raises what Flower's own functions of this kind raise."""


def most_pieces(largest: int) -> int:
    """How many pieces a message of at most `largest` bytes of arrays may have."""
    return _OTHER_PIECES + largest // CHUNK


class Pieces:
    """The pieces of one message of at most `largest` bytes of arrays.

    Guarantees: no more is ever kept than `largest` and 16 MiB; every piece is what its name
    says; a message is whole, and of no other shape than above, or there is none.

    Raises:
        WireError: the message has too many pieces, or pieces without a proper name.
    """

    def __init__(self, tree: ObjectTree, *, largest: int) -> None:
        self._root = tree.object_id
        self._largest = largest
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._missing: dict[str, None] = {}  # in the order in which they are sent
        self.size = 0  # bytes that have arrived
        self._arrays = 0  # bytes of arrays, put together
        self._others = 0  # bytes of all other pieces
        try:
            for part in iterate_object_tree(tree):
                self._missing[part.object_id] = None
                if len(self._missing) > most_pieces(largest):
                    raise _too_large()
        except RecursionError:
            raise _not_understood("its parts are nested too deeply") from None
        if not all(_NAME.fullmatch(name) for name in self._missing):
            raise _not_understood("its parts have no proper names")

    @property
    def name(self) -> str:
        """The name of the message itself, its root."""
        return self._root

    @property
    def missing(self) -> int:
        """How many have not arrived."""
        return len(self._missing)

    def fetch(self, pull: Pull, *, side_by_side: int) -> None:
        """Fetch what is there. Stops at the first piece that its sender has still to send.

        Raises:
            WireError: a piece will never be there, is not what its name says, or is too much.
        """
        waiting, stop = deque(self._missing), threading.Event()

        def work() -> None:
            while not stop.is_set():
                try:
                    name = waiting.popleft()
                except IndexError:
                    return
                try:
                    self._add(name, pull(name))
                except ObjectUnavailableError:
                    stop.set()
                except ObjectPullError:
                    stop.set()
                    raise _not_understood("a part of it is gone") from None
                except BaseException:
                    stop.set()
                    raise

        with ThreadPoolExecutor(min(side_by_side, len(waiting)) or 1) as pool:
            workers = [pool.submit(work) for _ in range(min(side_by_side, len(waiting)))]
            try:
                for worker in workers:
                    worker.result()
            finally:
                stop.set()

    def message(self) -> Message:
        """The message, put together from its pieces, which are given up.

        Raises:
            WireError: it is not such a message.
        """
        try:
            built = self._build(self._root, {"Message"}, {})
        except WireError:
            raise
        except Exception:
            # Whatever it is: Flower reads here what anybody may have sent.
            raise _not_understood("a part of it is malformed") from None
        finally:
            self._contents.clear()
        if not isinstance(built, Message):
            raise _not_understood("it is no message")
        built.metadata.__dict__["_message_id"] = self._root
        return built

    def _add(self, name: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != name:
            raise _not_understood("a part of it is not what its name says")
        with self._lock:
            self.size += len(content)
            if self.size > self._largest + _OTHER_BYTES:
                raise _too_large()
            self._contents[name] = content
            self._missing.pop(name, None)

    def _build(
        self, name: str, expected: set[str], built: dict[str, InflatableObject]
    ) -> InflatableObject:
        if name in built:
            if type(built[name]).__name__ not in expected:
                raise _not_understood("its parts do not belong together")
            return built[name]
        content = self._contents.pop(name)
        kind, child_names, _ = get_object_head_values_from_object_content(content)
        if kind not in expected:
            raise _not_understood("its parts do not belong together")
        piece_type, below = _KINDS[kind]
        children = {child: self._build(child, below, built) for child in child_names}
        if kind == "Array":
            self._arrays += _array_bytes(content, child_names, children)
        if kind != "ArrayChunk":
            self._others += len(content)
        if self._arrays > self._largest or self._others > _OTHER_BYTES:
            raise _too_large()
        built[name] = piece_type.inflate(content, children=children)
        return built[name]


def _array_bytes(content: bytes, names: list[str], children: dict[str, InflatableObject]) -> int:
    """How long an array will be, which names its chunks by number and may repeat them."""
    numbers = json.loads(get_object_body(content, Array))["arraychunk_ids"]
    lengths = [
        len(chunk.data) for chunk in map(children.get, names) if isinstance(chunk, ArrayChunk)
    ]
    return sum(lengths[number] for number in numbers)


def _too_large() -> WireError:
    return WireError(
        "a message is too large",
        why="it has more bytes or parts than this side takes",
        fix="raise largest_message_mb in the site's policy.toml, if the study is worth it",
    )


def _not_understood(why: str) -> WireError:
    return WireError(
        "a message cannot be understood",
        why=why,
        fix="run the same Tacit version on the server and on every site",
    )
