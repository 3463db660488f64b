"""A gateway on loopback before a stand-in for the SuperLink, both with real TLS."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.protobuf.client import ProtobufRequestContext
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.empty_pb2 import Empty
from starlette.types import Receive, Scope, Send

from tacit_common.certificates import Issued, make_ca, make_server_certificate
from tacit_server.deployment.fleet_proxy import FleetProxy, Patience
from tacit_server.deployment.listener import Certificate, Limits, Listener
from tacit_server.deployment.loopback import to_superlink

PULL = "/v1/fleet/pull-messages"
PUSH_OBJECT = "/v1/fleet/push-object"


@dataclass
class Authority:
    """A CA, and a server's certificate for loopback under it."""

    folder: Path
    ca: Issued

    def issue(self, age_days: int = 0) -> None:
        """Put a new certificate, good for two days from its issue, in the present one's place."""
        issued = make_server_certificate(
            *(self.ca.certificate, self.ca.key, ["127.0.0.1"], 2),
            now=datetime.now(UTC) - timedelta(days=age_days),
        )
        self.certificate.write_bytes(issued.certificate)
        self.key.write_bytes(issued.key)

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        return self.folder / "server.key"


@dataclass
class Seen:
    """A request as the stand-in for the SuperLink saw it."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    size: int


@dataclass
class SuperLink:
    """Stands in for the SuperLink: it remembers what it was asked, and answers as told."""

    seen: list[Seen] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)
    status: int = 200
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    answer: bytes = b"an answer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            self.began.set()
            size, more = size + len(event["body"]), event["more_body"]
        self.seen.append(Seen(scope["method"], scope["path"], scope["headers"], size))
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.answer})


class Node:
    """A site's key, and Flower's own way of signing with it."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP384R1())
        self._interceptor = NodeAuthHttpInterceptor(key, key.public_key())

    @property
    def headers(self) -> dict[str, str]:
        """The headers of a request signed now."""
        request = httpx.Request("POST", "https://127.0.0.1/")
        before = set(request.headers)
        self._interceptor.intercept(
            ProtobufRequestContext("", Empty(), request), lambda _: httpx.Response(200)
        )
        return {name: value for name, value in request.headers.items() if name not in before}


@dataclass
class Gateway:
    """A running gateway, the node that it knows, and the lines that it wrote."""

    port: int
    superlink: SuperLink
    superlink_port: int
    node: Node
    lines: list[str]
    authority: Authority

    @property
    def context(self) -> ssl.SSLContext:
        """Trusts the gateway's authority alone."""
        return ssl.create_default_context(cafile=self.authority.ca_certificate)

    def client(self) -> httpx.Client:
        """A client as a site has one."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=self.context, trust_env=False
        )

    def post(
        self, path: str = PULL, content: bytes = b"x", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """One request of the enrolled node."""
        with self.client() as client:
            return client.post(path, content=content, headers=self.node.headers | (headers or {}))

    def status_behind(
        self,
        is_enrolled: Callable[[str], bool] = lambda _: True,
        superlink_port: int | None = None,
        ca_certificate: Path | None = None,
    ) -> int:
        """The status of the node's request to another proxy, called without a listener."""

        async def ask() -> int:
            upstream = to_superlink(
                superlink_port or self.superlink_port,
                ca_certificate or self.authority.ca_certificate,
            )
            proxy = FleetProxy(
                upstream=upstream, is_enrolled=is_enrolled, largest_body=10, refused=print
            )
            transport = httpx.ASGITransport(proxy)
            async with upstream, httpx.AsyncClient(transport=transport) as client:
                answer = await client.post(f"http://x{PULL}", headers=self.node.headers)
                return answer.status_code

        return asyncio.run(ask())

    def connect(self) -> ssl.SSLSocket:
        """A connection for bytes that no HTTP client would send."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        return self.context.wrap_socket(plain, server_hostname="127.0.0.1")

    def send_raw(self, request: bytes) -> bytes:
        """What comes back for these bytes until the gateway closes the connection."""
        with self.connect() as connection:
            connection.sendall(request)
            return read_all(connection)

    def head(self, target: str = PULL, *lines: str, method: str = "POST") -> bytes:
        """The head of a request of the enrolled node, with further header lines."""
        signed = [f"{name}: {value}" for name, value in self.node.headers.items()]
        first = [f"{method} {target} HTTP/1.1", "host: 127.0.0.1"]
        return "\r\n".join([*first, *signed, *lines, "", ""]).encode()


def read_all(connection: ssl.SSLSocket) -> bytes:
    """Everything until the other side closes, politely or not."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except (ConnectionError, ssl.SSLError):
        pass
    return received


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition; these machines are slow at times, so a minute is not long."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.02)


@contextmanager
def _running(server: uvicorn.Server) -> Iterator[int]:
    """The port of a server that runs in a thread."""
    bound = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    assert server.started
    yield int(bound.getsockname()[1])
    server.should_exit = True
    thread.join(60)
    bound.close()


def make_authority(folder: Path) -> Authority:
    made = Authority(folder, make_ca("test"))
    made.ca_certificate.write_bytes(made.ca.certificate)
    made.issue()
    return made


def start_gateway_in(
    stack: ExitStack,
    authority: Authority,
    limits: Limits | None = None,
    patience: Patience | None = None,
    largest_body: int = 300_000,
) -> Gateway:
    superlink, node, lines = SuperLink(), Node(), list[str]()
    config = uvicorn.Config(
        superlink,
        lifespan="off",
        ws="none",
        log_config=None,
        ssl_certfile=authority.certificate,
        ssl_keyfile=authority.key,
    )
    superlink_port = stack.enter_context(_running(uvicorn.Server(config)))
    public_key = node.headers["flwr-public-key"]
    proxy = FleetProxy(
        upstream=to_superlink(superlink_port, authority.ca_certificate),
        is_enrolled=lambda key: key == public_key,
        largest_body=largest_body,
        refused=lines.append,
        patience=patience,
    )
    certificate = Certificate(authority.certificate, authority.key)
    listener = Listener(proxy, certificate, say=lines.append, limits=limits)
    port = stack.enter_context(_running(listener))
    return Gateway(port, superlink, superlink_port, node, lines, authority)
