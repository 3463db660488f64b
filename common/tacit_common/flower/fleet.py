"""A site's link to a SuperLink: it asks for messages, and sends answers.

This is a SuperNode without what makes Flower's own slow and unsafe here: no process a
message, no second server on the site, no fixed wait of 3 s, and no code is ever asked for,
so none can arrive.
"""

import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tacit_common.errors import LinkError, TacitError, WireError
from tacit_common.flower.http import link_errors, make_client

_CHUNK = 5 * 1024 * 1024  # Flower cuts arrays into such pieces
_OTHER_OBJECTS = 64  # records, arrays and the message itself; ours has fewer
_ROOM = 1024 * 1024  # for what Flower writes around the content
_AWAIT_OBJECT_S = 120.0  # until the sender's pieces are all there


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
            largest_answer=min(largest_message, 2 * _CHUNK) + _ROOM,
        )
        self._node = Node()
        self._lost: LinkError | None = None
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.last_heard = 0.0  # time.monotonic() of the last answer to a heartbeat

    def __enter__(self) -> Self:
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
        self._heart.join()
        try:
            with link_errors(self._address):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except LinkError:
            pass  # the SuperLink will notice by the missing heartbeat
        self._client.close()

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
        """The next message; None if there is none."""
        if self._lost is not None:
            raise self._lost
        with link_errors(self._address):
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            envelope = message_from_proto(response.messages_list[0])
            TaskIdentity.run_id, TaskIdentity.node_id = envelope.metadata.run_id, self.node_id
            TaskIdentity.task_id = 1
            try:
                message, size = self._content(envelope, response.message_object_trees[0])
            except (ObjectPullError, WireError, ValueError, KeyError, TypeError, RecursionError):
                return Delivery(envelope, None, 0)
        return Delivery(envelope, message, size)

    def send(self, reply: Message) -> int:
        """Send the answer to a message; returns how many bytes left.

        Raises:
            LinkError: it could not be sent whole. The run may have ended meanwhile.
        """
        sent = 0
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with link_errors(self._address), no_object_id_recompute():
            response = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                )
            )
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, reply.metadata.run_id, response.session_id
            )

            def counted(object_id: str, content: bytes) -> None:
                nonlocal sent
                push(object_id, content)
                sent += len(content)
                self._keep_pace(len(content))

            try:
                push_objects(
                    get_all_nested_objects(reply),
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

    def _content(self, envelope: Message, tree: ObjectTree) -> tuple[Message, int]:
        """Fetch and put together a message, within its bounds."""
        run_id, received, lock = envelope.metadata.run_id, 0, threading.Lock()
        names = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        if len(names) > _OTHER_OBJECTS + self._largest // _CHUNK:
            raise _too_large()
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run_id)

        def counted(object_id: str) -> bytes:
            nonlocal received
            content = pull(object_id)
            with lock:
                received += len(content)
            if received > self._largest + _ROOM:
                raise _too_large()
            self._keep_pace(len(content))
            return content

        contents = pull_objects(
            names,
            counted,
            max_concurrent_pulls=self._side_by_side,
            max_time=_AWAIT_OBJECT_S,
            initial_backoff=0.05,
            backoff_cap=1.0,
        )
        make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, run_id
        )(tree.object_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        if not isinstance(message, Message) or not message.has_content():
            raise WireError(
                "a message cannot be understood",
                why="it has no content",
                fix="run the same Tacit version on the server and on every site",
            )
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message, received

    def _beat(self) -> None:
        """Say now and then that this node lives."""
        while not self._closing.wait(HEARTBEAT_DEFAULT_INTERVAL / 3):
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
            except (TacitError, ValueError):
                continue
            if response.success:
                self.last_heard = time.monotonic()
            else:
                self._lost = LinkError(
                    f"{self._address} does not know this node any more",
                    why="it does not accept its heartbeat",
                    fix="ask the coordinator whether the site is still enrolled",
                )


def _too_large() -> WireError:
    return WireError(
        "a message is too large",
        why="it has more bytes or parts than the site's policy takes",
        fix="raise largest_message_mb in policy.toml, if the study is worth it",
    )
