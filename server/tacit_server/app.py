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
from tacit_common.messages import Refusal, Reply, Request, message_type
from tacit_common.wire import decode_head, decode_reply, encode, with_head
from tacit_common.witness import HeadBook
from tacit_server.exchange import Answer, Exchange, Failure
from tacit_server.question import Connections, Question

# Between two looks for replies: often at first, and less so the longer a round takes.
# Flower's own send_and_receive looks every 3 s.
_SHORTEST_POLL_S, _LONGEST_POLL_S, _LONGER = 0.1, 0.5, 1.15
_TOO_LATE_S = 5.0  # before the deadline: a question that is put now is answered after it


class Channel(Protocol):
    """What makes messages between this coordinator and its sites trustworthy."""

    def site_of(self, node: int) -> str | None:
        """The site that a node was registered for; None for a stranger."""
        ...

    def connected(self) -> dict[int, str]:
        """When each node last connected, to be compared with each other.

        Raises:
            LinkError: this cannot be known now.
        """
        ...

    def seal(self, node: int, request: RecordDict, *, again: bool) -> RecordDict:
        """The request as it is sent to a node.

        `again`: it is the question that the node was last sent. It may answer either message.

        Raises:
            IdentityError: the node is no enrolled site's, perhaps no more.
        """
        ...

    def unseal(self, node: int, answer: RecordDict) -> RecordDict:
        """The answer of a node.

        Raises:
            IdentityError: it is not the answer of that node's site to the last question.
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
        # In a simulation no connection can be lost.
        self._connections = None if channel is None else Connections(channel.connected)

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
        """One answer a node, in the order of `nodes`; early arrivals wait for their turn.

        With a channel, a node that connects anew meanwhile is asked again; whichever message
        it answers first counts.
        """
        if self._connections is not None:
            self._connections.anew()  # before asking: so whoever connects from now on is seen
        question = Question(request, timeout_s)
        arrived: dict[int, Reply | Failure] = {**self._put(question, nodes)}
        turn, poll_s = 0, _SHORTEST_POLL_S
        while turn < len(nodes):
            if nodes[turn] in arrived:
                yield Answer(nodes[turn], arrived.pop(nodes[turn]))
                turn += 1
                continue
            messages = question.messages
            replies = list(self._grid.pull_messages(messages)) if messages else []
            for reply in replies:
                arrived |= self._heard(question, reply)
            if replies:
                poll_s = _SHORTEST_POLL_S
                continue
            ended = self._given_up(question) or self._asked_again(question)
            arrived |= ended
            if not ended:
                time.sleep(poll_s)
                poll_s = min(poll_s * _LONGER, _LONGEST_POLL_S)

    def _put(
        self, question: Question, nodes: Sequence[int], *, again: bool = False
    ) -> dict[int, Failure]:
        """Put a question to nodes; those that cannot be asked, and why.

        Replies are matched by message, since an error reply does not name its node.
        """
        content = encode(question.request)  # once: every node is asked the same
        kind = message_type(question.request)
        failed: dict[int, Failure] = {}
        messages = []
        for node in nodes:
            try:
                sealed = self._sealed(node, content, again=again)
            except IdentityError:  # its site was shut out after it had joined
                failed[node] = Failure.NOT_ENROLLED
                continue
            ttl = question.left_s
            messages.append(Message(sealed, dst_node_id=node, message_type=kind, ttl=ttl))
        asked = [node for node in nodes if node not in failed]
        for node, sent in zip(asked, self._grid.push_messages(messages), strict=True):
            if sent:
                question.put(node, sent)
            else:  # Flower names no message that it could not take for a node
                failed[node] = Failure.NODE_ERROR
        return failed

    def _asked_again(self, question: Question) -> dict[int, Failure]:
        """Put a question once more to those that have connected since; who cannot be asked."""
        if self._connections is None or not self._connections.is_due:
            return {}
        anew = self._connections.anew()
        nodes = [node for node in question.waiting if node in anew and question.may_ask(node)]
        if not nodes or question.left_s < _TOO_LATE_S:
            return {}
        failed = {}
        for node, failure in self._put(question, nodes, again=True).items():
            if failure is Failure.NOT_ENROLLED or not question.may_arrive(node):
                question.settle(node)
                failed[node] = failure
        return failed

    def _heard(self, question: Question, message: Message) -> dict[int, Reply | Failure]:
        """What a node answers by this message, unless that is nothing, or something may follow."""
        node = question.take(message.metadata.reply_to_message_id)
        if node is None:
            return {}
        reply = self._decode(node, message)
        if isinstance(reply, Failure) and question.may_arrive(node):
            return {}
        if self._connections is not None:
            if reply is Failure.NODE_ERROR:  # it may connect anew, and be asked again
                self._connections.away(node)
                return {}
            self._connections.back(node)
        question.settle(node)
        return {node: reply}

    def _given_up(self, question: Question) -> dict[int, Failure]:
        """Nodes of which nothing is expected any more, and why."""
        given_up = {}
        overdue = question.left_s <= 0
        for node in question.waiting:
            if self._channel is not None and self._channel.site_of(node) is None:
                given_up[node] = Failure.NOT_ENROLLED  # shut out while it was at work
            elif overdue:
                given_up[node] = Failure.NO_ANSWER
            elif self._is_gone(node) and not question.may_arrive(node):
                given_up[node] = Failure.NODE_ERROR
            else:
                continue
            question.settle(node)
        return given_up

    def _is_gone(self, node: int) -> bool:
        return self._connections is not None and self._connections.is_gone(node)

    def _sealed(self, node: int, content: RecordDict, *, again: bool) -> RecordDict:
        request = with_head(content, self._heads.newest(self.site_of(node) or ""))
        if self._channel is None:
            return request
        return self._channel.seal(node, request, again=again)

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
