"""A message that arrives in pieces: fetched within bounds, checked, and put together.

    Message → RecordDict → ConfigRecord …      (what is in the records: see `packing`)

Flower sends each of these as an object, named by the SHA-256 of its content, which names its
children. Flower's own way of putting them together believes whatever it is sent, and checks
no hash.
"""

import hashlib
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from tacit_common.errors import WireError
from tacit_common.flower.packing import CHUNK, LARGEST_TEXTS, unpack

LARGEST_PIECE: Final = CHUNK + 64 * 1024
"""Bytes of an answer that brings one piece, with what Flower writes around a chunk."""

_ROOM: Final = LARGEST_TEXTS + 1024 * 1024  # for texts, and what Flower writes around them
_OTHER_PIECES: Final = 64  # besides those that are full; ours has fewer
_NAME = re.compile(r"[0-9a-f]{64}")

# What may stand below what. Nothing stands below a record.
_KINDS: Final[dict[str, tuple[type[InflatableObject], set[str]]]] = {
    "Message": (Message, {"RecordDict"}),
    "RecordDict": (RecordDict, {"ConfigRecord"}),
    "ConfigRecord": (ConfigRecord, set()),
}

Pull = Callable[[str], bytes]
"""Fetches a piece by its name; raises what Flower's own functions of this kind raise."""


def most_pieces(largest: int) -> int:
    """How many pieces a message of at most `largest` bytes of arrays may have."""
    return _OTHER_PIECES + largest // CHUNK


def in_order(objects: dict[str, InflatableObject]) -> dict[str, InflatableObject]:
    """The objects of messages as they are best sent: records first, by name.

    Whoever fetches them while they are being sent asks in the same order.
    """
    return dict(sorted(objects.items(), key=lambda item: (bool(item[1].children), item[0])))


class Pieces:
    """The pieces of one message of at most `largest` bytes of arrays.

    Guarantees: no more is ever fetched than `largest` and what texts may have; every piece is
    what its name says; a message is whole, and of no other shape than above, or there is none.

    Raises:
        WireError: the message has too many pieces, or pieces without a proper name.
    """

    def __init__(self, tree: ObjectTree, *, largest: int) -> None:
        self._root = tree.object_id
        self._largest = largest
        self._contents: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.size = 0  # bytes that have arrived
        records: set[str] = set()
        others: dict[str, None] = {}
        try:
            for part in iterate_object_tree(tree):
                if part.children:
                    others[part.object_id] = None
                else:
                    records.add(part.object_id)
                if len(records) + len(others) > most_pieces(largest):
                    raise _too_large()
        except RecursionError:
            raise _not_understood("its parts are nested too deeply") from None
        # In the order in which they are sent, since the SuperLink keeps none.
        self._missing = dict.fromkeys([*sorted(records), *others])
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
            message = self._put_together()
        except WireError:
            raise
        except Exception:
            # Whatever it is: Flower reads here what anybody may have sent.
            raise _not_understood("a part of it is malformed") from None
        finally:
            self._contents.clear()
        message.metadata.__dict__["_message_id"] = self._root
        return message

    def _put_together(self) -> Message:
        message = self._build(self._root, {"Message"}, {})
        if not isinstance(message, Message):
            raise _not_understood("it is no message")
        if message.has_content():
            message.content = unpack(message.content, largest=self._largest)
        return message

    def _add(self, name: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != name:
            raise _not_understood("a part of it is not what its name says")
        with self._lock:
            self.size += len(content)
            if self.size > self._largest + _ROOM:
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
        built[name] = piece_type.inflate(content, children=children)
        return built[name]


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
