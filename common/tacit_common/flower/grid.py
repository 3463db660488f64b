"""A run's nodes as a Flower grid that waits for nobody.

Flower's own grid blocks, up to two hours, until the sender of a reply has sent all of its
pieces, looks for a missing piece once a second at best, and ends the run with whatever
error a malformed reply raises.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from flwr.app import Message, Metadata
from flwr.app.error import Error
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PushAppMessagesRequest,
)
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, push_objects
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient

from tacit_common.errors import LinkError, WireError
from tacit_common.flower.http import link_errors
from tacit_common.flower.packing import CHUNK, pack
from tacit_common.flower.pieces import Pieces, in_order
from tacit_common.flower.run_grid import RunGrid

_SIDE_BY_SIDE = 2
_MOMENT_S, _MOMENTS = 0.03, 10  # to wait for the next piece of a reply, and how often in vain
_BEYOND_REQUEST = 256 * 1024 * 1024  # by which a reply may be longer than what was asked


@dataclass
class _Arrival:
    """A reply whose pieces are arriving."""

    node: int
    pieces: Pieces | None  # None if it is not worth fetching


class SuperLinkGrid(RunGrid):
    """Messages to and from the nodes of one run, through its SuperLink.

    `client` waits for a SuperLink that is away; `brisk`, for what need not be done, does not.

    Guarantees: a reply is handed over once, whole, and as its sender made it, or as an error
    in its place; no reply keeps another waiting.
    """

    def __init__(
        self, address: str, client: RuntimeHttpClient, brisk: RuntimeHttpClient, run: Run
    ) -> None:
        super().__init__(run)
        self._address = address
        self._client = client
        self._brisk = brisk
        self._beside = ThreadPoolExecutor(1, "confirm")
        self._node = Node(node_id=SUPERLINK_NODE_ID)
        self._arriving: dict[str, _Arrival] = {}  # by the message that it replies to
        self._largest = _BEYOND_REQUEST

    def get_node_ids(self) -> list[int]:
        """Nodes that are connected now."""
        with link_errors(self._address):
            response = self._client.GetNodes(GetNodesRequest())
        return [node.node_id for node in response.nodes]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Send messages; their names in the same order, empty where one is not taken.

        What several messages share is sent once.
        """
        protos, trees = [], []
        objects: dict[str, InflatableObject] = {}
        with no_object_id_recompute():
            for message in map(_packed, messages):
                message.metadata.__dict__["_message_id"] = message.object_id
                protos.append(message_to_proto(remove_content_from_message(message)))
                trees.append(get_object_tree(message))
                objects.update(get_all_nested_objects(message))
                self._largest = max(self._largest, _BEYOND_REQUEST + _most_bytes(message))
            if not protos:
                return []
            with link_errors(self._address):
                response = self._client.PushMessages(
                    PushAppMessagesRequest(messages_list=protos, message_object_trees=trees)
                )
                push = make_push_object_fn_protobuf(
                    self._client.PushObject, self._node, self._run.run_id, response.session_id
                )
                try:
                    push_objects(
                        in_order(objects),
                        push,
                        object_ids_to_push=set(response.objects_to_push),
                        max_concurrent_pushes=_SIDE_BY_SIDE,
                    )
                except ObjectPushError:
                    raise LinkError(
                        f"{self._address} does not take a request to the sites",
                        why="it was away for too long while the request was sent",
                        fix="nothing: the run goes on from its last checkpoint",
                    ) from None
        return list(response.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies to these messages that are wholly here.

        Waits a moment for more of a reply that has begun to arrive, and not for one to begin.
        """
        wanted = set(message_ids)
        self._arriving = {sent: one for sent, one in self._arriving.items() if sent in wanted}
        self._look(wanted - self._arriving.keys())
        ready: list[Message] = []
        left = _MOMENTS
        while self._arriving and not ready and left:
            before = self._missing()
            for sent, arrival in list(self._arriving.items()):
                message = self._completed(sent, arrival)
                if message is not None:
                    ready.append(message)
                    del self._arriving[sent]
            left = _MOMENTS if self._missing() < before else left - 1
            if not ready:
                time.sleep(_MOMENT_S)
        return ready

    def close(self) -> None:
        """Finish what is done beside the work. The clients stay open."""
        self._beside.shutdown()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Flower's interface. Tacit asks by `push_messages` and `pull_messages`."""
        raise NotImplementedError

    def _look(self, unheard: set[str]) -> None:
        """Ask which replies there are."""
        if not unheard:
            return
        with link_errors(self._address):
            response = self._client.PullMessages(PullAppMessagesRequest(message_ids=unheard))
        for envelope, tree in zip(
            response.messages_list, response.message_object_trees, strict=True
        ):
            try:
                pieces = Pieces(tree, largest=self._largest)
            except WireError:
                pieces = None
            self._arriving[envelope.metadata.reply_to_message_id] = _Arrival(
                envelope.metadata.src_node_id, pieces
            )

    def _missing(self) -> int:
        """Pieces that have still to come."""
        return sum(one.pieces.missing for one in self._arriving.values() if one.pieces is not None)

    def _completed(self, sent: str, arrival: _Arrival) -> Message | None:
        """The reply to `sent`, or an error in its place; None while pieces are missing."""
        pieces, run_id = arrival.pieces, self._run.run_id
        # The SuperLink says what a reply replies to. In the reply itself its sender does.
        metadata = Metadata(
            run_id=run_id,
            message_id="",
            src_node_id=arrival.node,
            dst_node_id=SUPERLINK_NODE_ID,
            reply_to_message_id=sent,
            group_id="",
            created_at=time.time(),
            ttl=0,
            message_type=SYSTEM_MESSAGE_TYPE,
        )
        unusable = make_message(metadata, error=Error(code=ErrorCode.MESSAGE_UNAVAILABLE))
        if pieces is None:
            return unusable
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)
        try:
            with link_errors(self._address):
                pieces.fetch(pull, side_by_side=_SIDE_BY_SIDE)
            if pieces.missing:
                return None
            self._beside.submit(self._confirm, pieces.name)
            message = pieces.message()
        except WireError:
            return unusable
        return (
            make_message(metadata, content=message.content) if message.has_content() else unusable
        )

    def _confirm(self, name: str) -> None:
        """Let the SuperLink forget a reply that is here."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=self._run.run_id, message_object_id=name
        )
        with suppress(LinkError), link_errors(self._address):
            self._brisk.ConfirmMessageReceived(request)


def _packed(message: Message) -> Message:
    return make_message(metadata=message.metadata, content=pack(message.content))


def _most_bytes(packed: Message) -> int:
    """No fewer than its arrays have."""
    return CHUNK * len(packed.content)
