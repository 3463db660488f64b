"""A site's link against a server that answers whatever it likes: HTTP and protobuf.

Whatever comes, it ends as a LinkError, within bounds of memory and time. An agent catches
those, and connects anew.
"""

import functools
import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.common.flower.malicious_case import Malicious, Send, http, make_parcel, proto

from tacit_common.certificates import Issued, make_server_certificate
from tacit_common.errors import LinkError
from tacit_common.flower import fleet
from tacit_common.flower.control import Control
from tacit_common.flower.fleet import FleetLink
from tacit_common.flower.tasks import TaskQueue
from tacit_common.flower.transport import Bounds

MEBIBYTE = 1024 * 1024
LARGEST = 16 * MEBIBYTE
ENOUGH_MEMORY = 24 * MEBIBYTE  # for a link that takes messages of 16 MB


@pytest.fixture
def connect(node_key: ec.EllipticCurvePrivateKey) -> Callable[[Malicious], FleetLink]:
    """A site's link to a server."""
    return lambda server: FleetLink(
        server.address, server.ca_certificate, node_key, largest_message=LARGEST
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Links wait half a second where they would wait a minute."""
    quick = functools.partial(Bounds, grace_s=0.5, slowest_bytes_s=1e9)
    monkeypatch.setattr(fleet, "Bounds", quick)


@contextmanager
def bounded_memory() -> Iterator[None]:
    """What the block allocates at most at one time is bounded."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < ENOUGH_MEMORY


def endlessly(*pieces: bytes) -> Callable[[str, bytes, Send], None]:
    """Send the first piece once, and the others for ever."""

    def answer(path: str, body: bytes, send: Send) -> None:
        send(pieces[0])
        while True:
            for piece in pieces[1:]:
                send(piece)

    return answer


def dripping(head: bytes, drop: bytes) -> Callable[[str, bytes, Send], None]:
    """Send a byte now and then, for ever."""

    def answer(path: str, body: bytes, send: Send) -> None:
        send(head)
        while True:
            time.sleep(0.05)
            send(drop)

    return answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_redirect_is_not_followed(
    start_malicious: Callable[..., Malicious],
    connect: Callable[[Malicious], FleetLink],
    scheme: str,
    status: int,
) -> None:
    server, elsewhere = start_malicious(), start_malicious(tls=scheme == "https")
    location = f"location: {scheme}://{elsewhere.address}/v1/fleet/activate-node"
    server.say("/activate-node", http(b"", location, status=status))
    with pytest.raises(LinkError, match="goes nowhere") as refused:
        connect(server).__enter__()
    assert refused.value.status == status
    assert elsewhere.seen == []


def test_a_cookie_is_not_brought_back(
    server: Malicious, connect: Callable[[Malicious], FleetLink]
) -> None:
    parcel = PullMessagesResponse().SerializeToString()
    server.say("/pull-messages", http(parcel, "set-cookie: followed=1; path=/"))
    with connect(server) as link:
        link.receive()
        link.receive()
    assert len(server.seen) >= 3
    assert not any(b"cookie" in head.lower() for _, head in server.seen)


OK = b"HTTP/1.1 200 X\r\n"
MUCH = bytes(0xFFFF)
ENDLESS = {
    "chunks": endlessly(OK + b"transfer-encoding: chunked\r\n\r\n", b"ffff\r\n" + MUCH + b"\r\n"),
    "a body of 100 GB": endlessly(OK + b"content-length: 99999999999\r\n\r\n", MUCH),
    "a body without a length": endlessly(OK + b"\r\n", MUCH),
    "headers": endlessly(OK, b"x: " + b"y" * 1000 + b"\r\n"),
    "one header": endlessly(OK + b"x: ", b"y" * 1000),
    "continue": endlessly(b"", b"HTTP/1.1 100 X\r\n\r\n"),
    "an error": endlessly(b"HTTP/1.1 500 X\r\n\r\n", MUCH),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_an_answer_without_end_is_given_up(
    server: Malicious, connect: Callable[[Malicious], FleetLink], kind: str
) -> None:
    server.answers["/pull-messages"] = ENDLESS[kind]
    with connect(server) as link, bounded_memory(), pytest.raises(LinkError):
        link.receive()


def test_an_answer_that_unpacks_to_gigabytes_is_not_unpacked(
    server: Malicious, connect: Callable[[Malicious], FleetLink]
) -> None:
    bomb = gzip.compress(bytes(256 * MEBIBYTE), compresslevel=1)[: 200 * 1024]
    server.say("/pull-messages", http(bomb, "content-encoding: gzip"))
    with connect(server) as link, bounded_memory(), pytest.raises(LinkError):
        link.receive()
    assert all(b"gzip" not in head for _, head in server.seen)


DRIPPING = {
    "silence": dripping(b"", b""),
    "a header": dripping(OK + b"x: ", b"y"),
    "a body": dripping(OK + b"content-length: 9999\r\n\r\n", b"y"),
    "continue": dripping(b"", b"HTTP/1.1 100 X\r\n\r\n"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", DRIPPING)
def test_an_answer_that_drips_is_given_up(
    server: Malicious, connect: Callable[[Malicious], FleetLink], kind: str
) -> None:
    server.answers["/pull-messages"] = DRIPPING[kind]
    with connect(server) as link, pytest.raises(LinkError):
        link.receive()


@pytest.mark.parametrize("status", [100, 101, 199, 204, 304, 400, 404, 418, 500, 599, 600, 999])
def test_any_status_is_an_error_that_a_site_survives(
    server: Malicious, connect: Callable[[Malicious], FleetLink], status: int
) -> None:
    server.say("/pull-messages", http(b"", status=status))
    with connect(server) as link:
        if status == 204:  # as good as an empty list
            assert link.receive() is None
            return
        with pytest.raises(LinkError):
            link.receive()


def test_a_server_that_calls_the_version_unfit_ends_nobody(
    server: Malicious, connect: Callable[[Malicious], FleetLink]
) -> None:
    said = "flwr-version-incompatibility-message: your version is too old"
    server.say("/pull-messages", http(b"", said))
    with connect(server) as link:
        assert link.receive() is None


ENDPOINTS = ["/activate-node", "/pull-messages", "/pull-object", "/push-messages", "/push-object"]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(
    "junk",
    [b"\xff" * 64, b"<html>502 Bad Gateway</html>", b"\x0a\xff\xff\xff\xff\x7f", b"\x08"],
    ids=["bytes", "a web page", "a field of 32 GB", "half a field"],
)
def test_an_answer_that_is_no_protobuf_is_an_error(
    server: Malicious,
    connect: Callable[[Malicious], FleetLink],
    endpoint: str,
    junk: bytes,
) -> None:
    server.deliver(make_parcel())

    def work() -> None:
        with connect(server) as link:
            delivery = link.receive()
            assert delivery is not None
            reply = Message(RecordDict({"a": ConfigRecord({"b": "c"})}), reply_to=delivery.envelope)
            assert link.send(reply) > 0

    work()
    server.say(endpoint, http(junk))
    with pytest.raises(LinkError, match="cannot be understood"):
        work()


def test_heartbeats_that_are_answered_with_junk_go_on(
    server: Malicious,
    connect: Callable[[Malicious], FleetLink],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_BEAT_S", 0.02)
    server.say("/send-node-heartbeat", http(b"\xff" * 64))
    with connect(server) as link:
        deadline = time.monotonic() + 60
        while sum(path.endswith("heartbeat") for path, _ in server.seen) < 3:
            assert time.monotonic() < deadline
            assert link.receive() is None
        assert link._heart.is_alive()


def test_an_answer_that_names_a_million_objects_is_not_read(
    server: Malicious, connect: Callable[[Malicious], FleetLink]
) -> None:
    parcel = make_parcel()
    # Two bytes each: a list of a million pieces without a name, in the encoding of protobuf.
    parcel.tree.MergeFromString(b"\x12\x00" * 1_000_000)
    server.deliver(parcel)
    with connect(server) as link, bounded_memory(), pytest.raises(LinkError, match="longer than"):
        link.receive()
    assert not any(path.endswith("/pull-object") for path, _ in server.seen)


def test_an_answer_that_breaks_off_is_an_error(
    server: Malicious, connect: Callable[[Malicious], FleetLink]
) -> None:
    for answer in (
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\nhalf",
        b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"220 mail.example.org ESMTP\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 X\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n12",
    ):
        server.say("/pull-messages", answer)
        with connect(server) as link, pytest.raises(LinkError):
            link.receive()


@given(answer=st.binary(max_size=200))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_server_says_is_a_message_nothing_or_an_error(
    server: Malicious, connect: Callable[[Malicious], FleetLink], answer: bytes
) -> None:
    with connect(server) as link:
        for said in (answer, http(answer)):
            server.say("/pull-messages", said)
            try:
                delivery = link.receive()
            except LinkError:
                continue
            assert delivery is None or delivery.message is None


@pytest.mark.parametrize("kind", ["", "query.x y", "nothing", "query.", "train.\x00"])
def test_a_message_of_a_type_that_cannot_be_is_none(
    server: Malicious, connect: Callable[[Malicious], FleetLink], kind: str
) -> None:
    parcel = make_parcel()
    listed = PullMessagesResponse(
        messages_list=[message_to_proto(parcel.envelope)], message_object_trees=[parcel.tree]
    )
    listed.messages_list[0].metadata.message_type = kind
    server.say("/pull-messages", proto(listed))
    with connect(server) as link:
        assert link.receive() is None


def test_an_expired_certificate_is_said_to_be_expired(
    start_malicious: Callable[..., Malicious],
    connect: Callable[[Malicious], FleetLink],
) -> None:
    past = datetime.now(UTC) - timedelta(days=30)
    old = functools.partial(make_server_certificate, now=past)
    server = start_malicious(make=old)
    with pytest.raises(LinkError, match="its certificate has expired"):
        connect(server).__enter__()
    assert server.seen == []


def test_a_certificate_for_another_address_is_not_believed(
    start_malicious: Callable[..., Malicious],
    connect: Callable[[Malicious], FleetLink],
) -> None:
    def elsewhere(ca: bytes, key: bytes, hosts: list[str], days: int) -> Issued:
        return make_server_certificate(ca, key, ["10.0.0.1"], days)

    with pytest.raises(LinkError, match="for another address"):
        connect(start_malicious(make=elsewhere)).__enter__()


def test_a_server_without_tls_is_told_nothing(
    start_malicious: Callable[..., Malicious], connect: Callable[[Malicious], FleetLink]
) -> None:
    server = start_malicious(tls=False)
    with pytest.raises(LinkError, match="does not speak TLS"):
        connect(server).__enter__()
    assert server.seen == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no.such.host.invalid:443", "[::g]:1", "a b:2"])
def test_an_address_where_nobody_is_is_an_error(
    authority: Issued, node_key: ec.EllipticCurvePrivateKey, address: str
) -> None:
    link = FleetLink(address, authority.certificate, node_key, largest_message=LARGEST)
    with pytest.raises(LinkError):
        link.__enter__()


@pytest.mark.parametrize("certificate", [b"", b"no certificate", b"\xff\xfe"])
def test_a_ca_certificate_that_cannot_be_read_is_an_error(
    node_key: ec.EllipticCurvePrivateKey, certificate: bytes
) -> None:
    with pytest.raises(LinkError, match="cannot be read"):
        FleetLink("127.0.0.1:1", certificate, node_key, largest_message=LARGEST)


def test_a_proxy_of_the_environment_is_not_used(
    start_malicious: Callable[..., Malicious],
    connect: Callable[[Malicious], FleetLink],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, proxy = start_malicious(), start_malicious(tls=False)
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{proxy.address}")
    with connect(server) as link:
        assert link.receive() is None
    assert proxy.seen == []


def test_the_coordinators_own_links_end_in_link_errors_too(server: Malicious) -> None:
    server.say("/list-nodes", http(b"\xff" * 64))
    server.say("/acquire-task", http(b"\xff" * 64))
    queue = TaskQueue(server.address, server.ca_certificate, b"0" * 32)
    with pytest.raises(LinkError):
        queue.acquire()
    queue.close()
    with Control(server.address, server.ca_certificate) as control, pytest.raises(LinkError):
        control.nodes()
