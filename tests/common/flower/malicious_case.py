"""A coordinator's address behind which somebody else sits: TLS is right, nothing else is.

It has the coordinator's own certificate, so what it answers is read. How it answers is up to
each test: `answer(path, body, send)` sends raw bytes, and the connection is then closed.
"""

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import Message as Proto

from tacit_common.flower.apps import begin_task
from tacit_common.flower.packing import pack

Send = Callable[[bytes], None]
Answer = Callable[[str, bytes, Send], None]

NODE = 7


def http(body: bytes, *headers: str, status: int = 200) -> bytes:
    """An ordinary answer."""
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def proto(message: Proto) -> bytes:
    """An ordinary answer of Flower's."""
    return http(message.SerializeToString())


@dataclass
class Malicious:
    """A server that answers as Flower would, except where a test says otherwise."""

    address: str
    ca_certificate: bytes
    answers: dict[str, Answer] = field(default_factory=dict)
    seen: list[tuple[str, bytes]] = field(default_factory=list)  # path and head of requests

    def say(self, path: str, answer: bytes) -> None:
        """Answer the requests whose path ends so with these bytes."""
        self.answers[path] = lambda _, __, send: send(answer)

    def deliver(self, parcel: "Parcel") -> None:
        """Have one message waiting for the node."""
        listed = PullMessagesResponse(
            messages_list=[message_to_proto(parcel.envelope)], message_object_trees=[parcel.tree]
        )
        self.say("/pull-messages", proto(listed))
        self.answers["/pull-object"] = lambda _, body, send: send(proto(parcel.answer(body)))

    def _answer(self, path: str, body: bytes, send: Send) -> None:
        for ending, answer in self.answers.items():
            if path.endswith(ending):
                answer(path, body, send)
                return
        if path.endswith("/push-messages"):  # all of it is wanted
            (tree,) = PushMessagesRequest.FromString(body).message_object_trees
            names = [part.object_id for part in iterate_object_tree(tree)]
            send(proto(PushMessagesResponse(session_id="session", objects_to_push=names)))
        else:
            send(proto(_HONEST[path.rpartition("/")[2]]))


_HONEST: dict[str, Proto] = {
    "activate-node": ActivateNodeResponse(node_id=NODE),
    "deactivate-node": DeactivateNodeResponse(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
    "pull-messages": PullMessagesResponse(),
    "confirm-message-received": ConfirmMessageReceivedResponse(),
    "push-object": PushObjectResponse(stored=True),
}


@dataclass
class Parcel:
    """A message in its pieces, any of which a test may change."""

    envelope: Message
    tree: ObjectTree
    contents: dict[str, bytes]

    def answer(self, body: bytes) -> PullObjectResponse:
        """What is said to whoever asks for a piece."""
        for name, content in self.contents.items():
            if name.encode() in body:
                return PullObjectResponse(
                    object_found=True, object_available=True, object_content=content
                )
        return PullObjectResponse(object_found=False)

    def put(self, content: bytes) -> str:
        """Add a piece under its proper name, which is returned."""
        name = hashlib.sha256(content).hexdigest()
        self.contents[name] = content
        return name


def piece(kind: str, children: list[str], body: bytes = b"") -> bytes:
    """A piece as Flower writes it."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def make_content() -> RecordDict:
    """Content that is in order: a text and an array of 4 KB."""
    array = Array(dtype="<f4", shape=(1024,), stype="tacit.raw", data=bytes(4096))
    return RecordDict(
        {"tacit": ConfigRecord({"kind": "x"}), "arrays": ArrayRecord({"parameters": array})}
    )


def make_parcel(packed: RecordDict | None = None) -> Parcel:
    """A message in its pieces; one that is in order, unless it is given what it shall hold."""
    begin_task(run_id=5, node_id=1)
    content = pack(make_content()) if packed is None else packed
    message = Message(content, dst_node_id=NODE, message_type="train", ttl=60.0)
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = get_all_nested_objects(message)
        tree = get_object_tree(message)
        contents = {name: part.deflate() for name, part in objects.items()}
    return Parcel(remove_content_from_message(message), tree, contents)


@contextmanager
def malicious(
    certificate: Path, key: Path, ca_certificate: bytes, *, tls: bool = True
) -> Iterator[Malicious]:
    """A server on loopback, with a thread for each connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Malicious(f"127.0.0.1:{listener.getsockname()[1]}", ca_certificate)
    closing = threading.Event()
    threads: list[threading.Thread] = []

    def serve(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(60)
            stream = context.wrap_socket(connection, server_side=True) if tls else connection
            with stream:
                received = _some(stream)
                if received.startswith(b"\x16\x03"):  # TLS, with one that has none
                    stream.sendall(http(b"", status=400))
                    return
                while b"\r\n\r\n" not in received:
                    received += _some(stream)
                head, _, body = received.partition(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next(
                    (int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0
                )
                while len(body) < length:
                    body += _some(stream)
                path = head.split(b" ")[1].decode("ascii", "replace")
                server.seen.append((path, head))

                def send(answer: bytes) -> None:
                    if closing.is_set():
                        raise ConnectionAbortedError
                    stream.sendall(answer)

                server._answer(path, body, send)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        closing.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(60)
        for thread in threads:
            thread.join(60)


def _some(stream: socket.socket) -> bytes:
    received = stream.recv(65536)
    if not received:
        raise ConnectionAbortedError
    return received
