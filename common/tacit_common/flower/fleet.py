"""A site's link to a SuperLink: it asks for messages, and sends answers.

This is a SuperNode without what makes Flower's own slow and unsafe here: no process a
message, no second server on the site, no fixed wait of 3 s, and no code is ever asked for,
so none can arrive.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
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
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tacit_common.errors import LinkError, WireError
from tacit_common.flower.http import link_errors, make_client
from tacit_common.flower.packing import pack
from tacit_common.flower.pieces import LARGEST_PIECE, Pieces, in_order, most_pieces
from tacit_common.flower.transport import Bounds

_BEAT_S = HEARTBEAT_DEFAULT_INTERVAL / 3
_LAST_BEAT_S = 5.0  # that one on its way has, when the connection is given up
_NAME_BYTES = 160  # of a piece in the list of a message's pieces
_AWAIT_PIECE_S = 120.0  # for the next piece that the sender has still to send
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0
_NEVER_TAKEN = (  # said of an answer whose run is over, or that is too large
    httpx.codes.FORBIDDEN,
    httpx.codes.REQUEST_ENTITY_TOO_LARGE,
)


@dataclass(frozen=True)
class Delivery:
    """A message that arrived. `message` is None where its content cannot be understood."""

    envelope: Message  # without content
    message: Message | None
    size: int  # bytes that were received


class FleetLink:
    """The connection of one node. Use it as a context manager.

    `last_node_id` is the number that the SuperLink gave this node before, if it is known:
    with it a node that was killed is back at once, and not after a minute.

    Raises:
        LinkError: the SuperLink cannot be reached, or turns this node away.
    """

    def __init__(
        self,
        address: str,
        ca_certificate: bytes,
        node_key: EllipticCurvePrivateKey,
        *,
        largest_message: int,
        bytes_per_s: float | None = None,
        last_node_id: int | None = None,
    ) -> None:
        self._address = address
        self._last_node_id = last_node_id
        self._largest = largest_message
        self._bytes_per_s = bytes_per_s
        self._public_key = public_key_to_bytes(node_key.public_key())
        self._client = make_client(
            FleetHttpClient,
            address,
            ca_certificate,
            component="SuperNode",
            interceptors=[NodeAuthHttpInterceptor(node_key, node_key.public_key())],
            bounds=Bounds(answer=_NAME_BYTES * most_pieces(largest_message), piece=LARGEST_PIECE),
        )
        self._node = Node()
        self._lost: LinkError | None = None
        self._beside = ThreadPoolExecutor(1, "confirm")
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.last_heard = 0.0  # time.monotonic() of the last answer to a heartbeat

    def __enter__(self) -> Self:
        try:
            self._connect()
        except BaseException:
            self._client.close()
            raise
        self.last_heard = time.monotonic()
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._beside.shutdown()
        self._heart.join(_LAST_BEAT_S)
        try:
            with link_errors(self._address):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except LinkError:
            pass  # the SuperLink will notice by the missing heartbeat
        self._client.close()

    def _connect(self) -> None:
        try:
            self._activate()
        except LinkError as error:
            # After a kill, or an absence of the SuperLink, it counts the last connection as
            # alive for a minute, unless it is told that it is not.
            if error.status != httpx.codes.PRECONDITION_FAILED or self._last_node_id is None:
                raise
            with link_errors(self._address):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._last_node_id))
            self._activate()

    def _activate(self) -> None:
        request = ActivateNodeRequest(
            public_key=self._public_key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
        )
        with link_errors(self._address):
            self._node = Node(node_id=self._client.ActivateNode(request).node_id)

    @property
    def node_id(self) -> int:
        """The number by which the SuperLink knows this node."""
        return int(self._node.node_id)

    def receive(self) -> Delivery | None:
        """The next message; None if there is none.

        Raises:
            LinkError: the SuperLink cannot be reached, turns this node away, or answers with
                what nobody can understand.
        """
        if self._lost is not None:
            raise self._lost
        with link_errors(self._address):
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        try:
            metadata = metadata_from_proto(response.messages_list[0].metadata)
            envelope = make_message(metadata=metadata, content=RecordDict())
        except (ValueError, TypeError):
            return None  # what no message of Flower's can be cannot be answered either
        TaskIdentity.task_id, TaskIdentity.run_id = 1, envelope.metadata.run_id
        TaskIdentity.node_id = self.node_id
        pieces: Pieces | None = None
        try:
            pieces = self._pieces(response)
            with link_errors(self._address):
                self._fetch(pieces, envelope.metadata.run_id)
            # Beside the work that begins now: a large message is not quickly deleted.
            self._beside.submit(self._confirm, envelope.metadata.run_id, pieces.name)
            message = pieces.message()
        except WireError:
            return Delivery(envelope, None, 0 if pieces is None else pieces.size)
        return Delivery(envelope, message if message.has_content() else None, pieces.size)

    def send(self, reply: Message) -> int:
        """Send the answer to a message; returns how many bytes left.

        Raises:
            LinkError: it could not be sent whole. Unless nobody would take it at another time
                either, the connection counts as lost: whoever connects anew is asked again.
        """
        try:
            return self._send(reply)
        except LinkError as error:
            if error.status not in _NEVER_TAKEN:
                self._lost = error
            raise

    def _send(self, reply: Message) -> int:
        try:
            packed = make_message(metadata=reply.metadata, content=pack(reply.content))
        except WireError as error:
            raise LinkError(
                "an answer cannot be sent",
                why=error.why,
                fix="nothing: what was spent stays spent",
                status=httpx.codes.REQUEST_ENTITY_TOO_LARGE,
            ) from None
        with no_object_id_recompute():  # each piece is hashed once
            packed.metadata.__dict__["_message_id"] = packed.object_id
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(packed))],
                message_object_trees=[get_object_tree(packed)],
                clientapp_runtime_list=[0.0],
            )
            objects = in_order(get_all_nested_objects(packed))
            with link_errors(self._address):
                response = self._client.PushMessages(request)
                return self._push(objects, response, packed.metadata.run_id)

    def _push(
        self, objects: dict[str, InflatableObject], response: PushMessagesResponse, run_id: int
    ) -> int:
        """Send those pieces of a message that are asked for; returns how many bytes."""
        sent, lock = 0, threading.Lock()
        push = make_push_object_fn_protobuf(
            self._client.PushObject, self._node, run_id, response.session_id
        )

        def counted(name: str, content: bytes) -> None:
            nonlocal sent
            push(name, content)
            with lock:
                sent += len(content)
            self._keep_pace(len(content))

        try:
            push_objects(
                objects,
                counted,
                object_ids_to_push=set(response.objects_to_push),
                max_concurrent_pushes=self._side_by_side,
            )
        except ObjectPushError:
            raise LinkError(
                f"{self._address} does not take an answer",
                why="the run that asked for it has ended",
                fix="nothing: what was spent stays spent",
            ) from None
        return sent

    @property
    def _side_by_side(self) -> int:
        return 2 if self._bytes_per_s is None else 1

    def _keep_pace(self, size: int) -> None:
        if self._bytes_per_s is not None:
            time.sleep(size / self._bytes_per_s)

    def _pieces(self, response: PullMessagesResponse) -> Pieces:
        if not response.message_object_trees:
            raise WireError(
                "a message cannot be understood",
                why="it has no content",
                fix="run the same Tacit version on the server and on every site",
            )
        return Pieces(response.message_object_trees[0], largest=self._largest)

    def _fetch(self, pieces: Pieces, run_id: int) -> None:
        """Fetch all pieces of a message, some of which may still be on their way."""
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)

        def paced(name: str) -> bytes:
            content = pull(name)
            self._keep_pace(len(content))
            return content

        wait_s, since = _FIRST_WAIT_S, time.monotonic()
        while pieces.missing:
            before = pieces.missing
            pieces.fetch(paced, side_by_side=self._side_by_side)
            if pieces.missing < before:
                wait_s, since = _FIRST_WAIT_S, time.monotonic()
            elif time.monotonic() - since > _AWAIT_PIECE_S:
                raise WireError(
                    "a message cannot be understood",
                    why="its sender has not sent all of it",
                    fix="nothing, if the server was interrupted: it asks again",
                )
            if pieces.missing:
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _confirm(self, run_id: int, name: str) -> None:
        """Let the SuperLink forget a message that is here."""
        request = ConfirmMessageReceivedRequest(
            node=self._node, run_id=run_id, message_object_id=name
        )
        with suppress(LinkError), link_errors(self._address):
            self._client.ConfirmMessageReceived(request)

    def _beat(self) -> None:
        """Say now and then that this node lives."""
        while not self._closing.wait(_BEAT_S):
            try:
                with link_errors(self._address):
                    response = self._client.SendNodeHeartbeat(
                        SendNodeHeartbeatRequest(
                            node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL
                        )
                    )
            except LinkError as error:
                if error.status in (401, 404):
                    self._lost = error
                continue
            if response.success:
                self.last_heard = time.monotonic()
            else:
                self._lost = LinkError(
                    f"{self._address} does not know this node any more",
                    why="it does not accept its heartbeat",
                    fix="ask the coordinator whether the site is still enrolled",
                )
