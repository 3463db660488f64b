"""A question while nodes have still to answer it, and which of them to ask again.

The SuperLink hands a message out once. If the connection breaks meanwhile, or the site's
process dies, that message is lost, and so may an answer be. Either way the site connects anew,
with nothing left to do: whoever has connected since it was asked is asked again. A site
answers from its store what it has paid for, so no question is paid for twice.
"""

import time
from collections import Counter
from collections.abc import Callable

from tacit_common.errors import LinkError
from tacit_common.messages import Request

_LOOK_S = 3.0  # between two looks who has connected; one is a query of the SuperLink's database
_MOST_TIMES = 4  # that a node is asked one question
_RETURN_S = 30.0  # in which a site that lost its connection, or was started again, is back


class Question:
    """A request, the nodes that have still to answer it, and the messages that took it there."""

    def __init__(self, request: Request, timeout_s: float) -> None:
        self.request = request
        self._deadline = time.monotonic() + timeout_s
        self._node_of: dict[str, int] = {}  # of messages that may still be replied to
        self._waiting: dict[int, set[str]] = {}  # those messages, by node
        self._asked: Counter[int] = Counter()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; not positive after it."""
        return self._deadline - time.monotonic()

    @property
    def messages(self) -> list[str]:
        """Those that may still be replied to."""
        return list(self._node_of)

    @property
    def waiting(self) -> list[int]:
        """Nodes that were asked and have not answered."""
        return list(self._waiting)

    def put(self, node: int, message: str) -> None:
        """A node is asked, perhaps once more, by a message of this name."""
        self._waiting.setdefault(node, set()).add(message)
        self._node_of[message] = node
        self._asked[node] += 1

    def may_ask(self, node: int) -> bool:
        """Whether a node has not been asked too often: each time costs a whole message."""
        return self._asked[node] < _MOST_TIMES

    def take(self, message: str) -> int | None:
        """The node that a message asked, which is replied to now; None if nobody waits for it."""
        node = self._node_of.pop(message, None)
        if node is not None:
            self._waiting[node].discard(message)
        return node

    def may_arrive(self, node: int) -> bool:
        """Whether a message to this node may still be replied to."""
        return bool(self._waiting[node])

    def settle(self, node: int) -> None:
        """Nothing more is expected of a node: later replies of its are nobody's."""
        for message in self._waiting.pop(node):
            del self._node_of[message]


class Connections:
    """Which nodes have connected anew, and which are gone.

    `look` says when each node last connected. These times are compared with each other only,
    so no clock has to be right.
    """

    def __init__(self, look: Callable[[], dict[int, str]]) -> None:
        self._look = look
        self._seen: dict[int, str] = {}
        self._next_look = 0.0
        self._away_since: dict[int, float] = {}

    def anew(self) -> set[int]:
        """Nodes that have connected since the last look.

        While the SuperLink is away these are none; they are in the first look that succeeds.
        """
        self._next_look = time.monotonic() + _LOOK_S
        try:
            now = self._look()
        except LinkError:
            return set()
        anew = {node for node, at in now.items() if self._seen.get(node) != at}
        self._seen = now
        for node in anew:
            self.back(node)
        return anew

    @property
    def is_due(self) -> bool:
        """Whether the last look was long enough ago."""
        return time.monotonic() >= self._next_look

    def away(self, node: int) -> None:
        """Flower reports that a node is not there, or what it said."""
        self._away_since.setdefault(node, time.monotonic())

    def back(self, node: int) -> None:
        """A node is there after all."""
        self._away_since.pop(node, None)

    def is_gone(self, node: int) -> bool:
        """Whether a node has been away for longer than it takes to return."""
        since = self._away_since.get(node)
        return since is not None and time.monotonic() - since >= _RETURN_S
