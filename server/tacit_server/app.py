"""The coordinator as a Flower ServerApp, and Flower's grid as an exchange.

Flower's own loop always begins at round 1, waits for ever for missing nodes and calls
a round without answers completed, so only its messages are used.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from tacit_common.errors import IdentityError, LedgerError, WireError
from tacit_common.wire import (
    Refusal,
    Reply,
    Request,
    decode_head,
    decode_reply,
    encode,
    message_type,
    with_head,
)
from tacit_common.witness import HeadBook
from tacit_server.exchange import Answer, Exchange, Failure

# Between two looks for replies: often at first, and less so the longer a round takes.
# Flower's own send_and_receive looks every 3 s.
_SHORTEST_POLL_S, _LONGEST_POLL_S, _LONGER = 0.1, 0.5, 1.15


class Channel(Protocol):
    """What makes messages between this coordinator and its sites trustworthy."""

    def site_of(self, node: int) -> str | None:
        """The site that a node was registered for; None for a stranger."""
        ...

    def seal(self, node: int, request: RecordDict) -> RecordDict:
        """The request as it is sent to a node."""
        ...

    def unseal(self, node: int, answer: RecordDict) -> RecordDict:
        """The answer of a node.

        Raises:
            IdentityError: it is not the answer of that node's site to what it was last sent.
            WireError: it cannot be understood.
        """
        ...


def make_server_app(run: Callable[[Exchange], object], channel: Channel | None = None) -> ServerApp:
    """A ServerApp whose main hands the connected nodes to `run`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        run(GridExchange(grid, channel))

    return app


class GridExchange:
    """Asks nodes through a Flower grid.

    Without a `channel` every connected node is believed, as in a simulation, where all of
    them are this program. With one, strangers are not spoken to.
    """

    def __init__(self, grid: Grid, channel: Channel | None = None) -> None:
        self._grid = grid
        self._channel = channel
        self._site_of: dict[int, str] = {}  # node to site, as its heads say
        self._heads = HeadBook()

    @property
    def heads(self) -> HeadBook:
        """Where the ledgers of the sites stood when they last answered."""
        return self._heads

    def node_ids(self) -> list[int]:
        """Nodes that are connected now, ascending."""
        connected = sorted(self._grid.get_node_ids())
        if self._channel is None:
            return connected
        return [node for node in connected if self._channel.site_of(node) is not None]

    def site_of(self, node: int) -> str | None:
        """The site behind a node: as it is registered, or else as its ledger's head says."""
        return self._site_of.get(node) if self._channel is None else self._channel.site_of(node)

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        """One answer a node, in the order of `nodes`; early arrivals wait for their turn."""
        deadline = time.monotonic() + timeout_s
        arrived: dict[int, Reply | Failure] = {}
        node_of = self._sent(nodes, request, timeout_s, arrived)
        turn, poll_s = 0, _SHORTEST_POLL_S
        while turn < len(nodes):
            if nodes[turn] in arrived:
                yield Answer(nodes[turn], arrived.pop(nodes[turn]))
                turn += 1
                continue
            replies = list(self._grid.pull_messages(list(node_of))) if node_of else []
            for reply in replies:
                node = node_of.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    arrived[node] = self._decode(node, reply)
            if replies:
                poll_s = _SHORTEST_POLL_S
                continue
            given_up = self._given_up(node_of, overdue=time.monotonic() >= deadline)
            arrived |= given_up
            if not given_up:
                time.sleep(poll_s)
                poll_s = min(poll_s * _LONGER, _LONGEST_POLL_S)

    def _sent(
        self,
        nodes: Sequence[int],
        request: Request,
        timeout_s: float,
        arrived: dict[int, Reply | Failure],
    ) -> dict[str, int]:
        """Send a request; message to node, of those that took it. The others fail at once.

        Replies are matched by message, since an error reply does not name its node.
        """
        content = encode(request)  # once: every node is asked the same
        kind = message_type(request)
        messages = []
        for node in nodes:
            try:
                sealed = self._sealed(node, content)
            except IdentityError:  # its site was shut out after it had joined
                arrived[node] = Failure.NOT_ENROLLED
                continue
            messages.append(Message(sealed, dst_node_id=node, message_type=kind, ttl=timeout_s))
        asked = [node for node in nodes if node not in arrived]
        node_of = {}
        for node, sent in zip(asked, self._grid.push_messages(messages), strict=True):
            if sent:
                node_of[sent] = node
            else:  # Flower names no message that it could not take for a node
                arrived[node] = Failure.NODE_ERROR
        return node_of

    def _given_up(self, node_of: dict[str, int], *, overdue: bool) -> dict[int, Failure]:
        """Nodes of which nothing is expected any more: taken out of `node_of`, and why."""
        given_up = {}
        for message, node in list(node_of.items()):
            if self._channel is not None and self._channel.site_of(node) is None:
                given_up[node] = Failure.NOT_ENROLLED  # shut out while it was at work
            elif overdue:
                given_up[node] = Failure.NO_ANSWER
            else:
                continue
            del node_of[message]
        return given_up

    def _sealed(self, node: int, content: RecordDict) -> RecordDict:
        request = with_head(content, self._heads.newest(self.site_of(node) or ""))
        return request if self._channel is None else self._channel.seal(node, request)

    def _decode(self, node: int, message: Message) -> Reply | Failure:
        if message.has_error():
            return Failure.NODE_ERROR
        content = message.content
        try:
            if self._channel is not None:
                content = self._channel.unseal(node, content)
            reply, head = decode_reply(content), decode_head(content)
        except IdentityError:
            return Failure.UNTRUSTED_SENDER
        except WireError:
            return Failure.UNUSABLE_REPLY
        if head is None:  # a site may refuse because its ledger cannot be read
            return reply if isinstance(reply, Refusal) else Failure.UNTRUSTED_LEDGER
        if (self.site_of(node) or head.site) != head.site:
            return Failure.UNTRUSTED_LEDGER
        self._site_of[node] = head.site
        try:
            self._heads.observe(head)
        except LedgerError:
            return Failure.UNTRUSTED_LEDGER
        return reply
