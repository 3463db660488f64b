"""The coordinator as a Flower ServerApp, and Flower's grid as an exchange.

Flower's own loop always begins at round 1, waits for ever for missing nodes and calls
a round without answers completed, so only its messages are used.
"""

import time
from collections.abc import Callable, Iterator, Sequence

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from tacit_common.errors import LedgerError, WireError
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

_POLL_S = 0.2  # Flower's own send_and_receive polls every 3 s


def make_server_app(run: Callable[[Exchange], object]) -> ServerApp:
    """A ServerApp whose main hands the connected nodes to `run`."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        run(GridExchange(grid))

    return app


class GridExchange:
    """Asks nodes through a Flower grid."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._site_of: dict[int, str] = {}  # node to site, as its heads say
        self._heads = HeadBook()

    @property
    def heads(self) -> HeadBook:
        """Where the ledgers of the sites stood when they last answered."""
        return self._heads

    def node_ids(self) -> list[int]:
        """Nodes that are connected now, ascending."""
        return sorted(self._grid.get_node_ids())

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        """One answer a node, in the order of `nodes`; early arrivals wait for their turn."""
        deadline = time.monotonic() + timeout_s
        content = encode(request)  # once: every node is asked the same
        kind = message_type(request)
        messages = [
            Message(
                with_head(content, self._heads.newest(self._site_of.get(node, ""))),
                dst_node_id=node,
                message_type=kind,
                ttl=timeout_s,
            )
            for node in nodes
        ]
        # Replies are matched by message, since an error reply does not name its node.
        node_of = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        arrived: dict[int, Reply | Failure] = {}
        turn = 0
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
                continue
            if time.monotonic() >= deadline:
                arrived |= dict.fromkeys(node_of.values(), Failure.NO_ANSWER)
                node_of.clear()
            else:
                time.sleep(_POLL_S)

    def _decode(self, node: int, message: Message) -> Reply | Failure:
        if message.has_error():
            return Failure.NODE_ERROR
        try:
            reply, head = decode_reply(message.content), decode_head(message.content)
        except WireError:
            return Failure.UNUSABLE_REPLY
        if head is None:  # a site may refuse because its ledger cannot be read
            return reply if isinstance(reply, Refusal) else Failure.UNTRUSTED_LEDGER
        if self._site_of.setdefault(node, head.site) != head.site:
            return Failure.UNTRUSTED_LEDGER
        try:
            self._heads.observe(head)
        except LedgerError:
            return Failure.UNTRUSTED_LEDGER
        return reply
