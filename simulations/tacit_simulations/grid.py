"""What the grids of one machine have in common: all sites are always connected."""

from collections.abc import Iterable

from flwr.app import Context, Error, Message, UserConfig
from flwr.clientapp import ClientApp

from tacit_common.flower.apps import Run, make_context
from tacit_common.flower.run_grid import RunGrid

RUN, SERVER_NODE = 1, 1
_FIRST_NODE = SERVER_NODE + 1
_CLIENT_FAILED = 1  # Flower's ErrorCode for a ClientApp that raised


class LocalGrid(RunGrid):
    """The part of Flower's interface that does not depend on where the sites work."""

    def __init__(self, sites: int) -> None:
        super().__init__(Run.create_empty(run_id=RUN))
        self._sites = sites
        self._sent = 0

    def get_node_ids(self) -> list[int]:
        """All sites."""
        return list(range(_FIRST_NODE, _FIRST_NODE + self._sites))

    def send_and_receive(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,  # noqa: ARG002 - nothing travels, so nothing is late
    ) -> list[Message]:
        """All replies at once."""
        return [
            reply for name in self.push_messages(messages) for reply in self.pull_messages([name])
        ]

    def _name(self, message: Message) -> str:
        """Give a message the name by which its reply is asked for."""
        self._sent += 1
        return named(message, str(self._sent))


def named(message: Message, name: str) -> str:
    """Set the name of a message, which Flower leaves to the SuperLink; returns it."""
    message.metadata.__dict__["_message_id"] = name
    return name


def index_of(node: int) -> int:
    """The number of the site behind a node."""
    return node - _FIRST_NODE


def context_of(node: int, sites: int) -> Context:
    """What a ClientApp is told of the site that it answers for. It keeps no state there."""
    config: UserConfig = {"partition-id": index_of(node), "num-partitions": sites}
    return make_context(run_id=RUN, node_id=node, node_config=config)


def answer_of(client_app: ClientApp, message: Message, sites: int) -> Message:
    """The ClientApp's reply, or an error in its place."""
    try:
        return client_app(message, context_of(message.metadata.dst_node_id, sites))
    except Exception:  # what Flower does for a ClientApp that raises
        return failed(message, "the ClientApp raised")


def failed(message: Message, reason: str) -> Message:
    """An error in the place of a reply."""
    return Message(Error(_CLIENT_FAILED, reason), reply_to=message)
