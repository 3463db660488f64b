"""What one peer, or many, can take up of the gateway, and which certificate it shows."""

import socket
import ssl
from collections.abc import Callable

import pytest
from tests.server.deployment.gateway_case import (
    PULL,
    Authority,
    Gateway,
    read_all,
    wait_until,
)

from tacit_common.certificates import make_ca, make_server_certificate
from tacit_server.deployment.listener import Certificate, Limits

StartGateway = Callable[..., Gateway]


def answers(gateway: Gateway) -> bool:
    return gateway.post().status_code == 200


def serial_number(gateway: Gateway) -> str:
    with gateway.connect() as connection:
        certificate = connection.getpeercert()
    return str(certificate["serialNumber"]) if certificate else ""


def test_a_peer_that_says_nothing_is_dropped(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(head_s=0.3))
    with gateway.connect() as silent:
        assert read_all(silent) == b""
    assert gateway.lines == ["dropped 127.0.0.1 (no request in time)"]
    assert answers(gateway)


def test_a_peer_that_drips_its_headers_is_dropped(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(head_s=0.5))
    with gateway.connect() as slow:
        slow.sendall(f"POST {PULL} HTTP/1.1\r\n".encode())

        def dropped() -> bool:
            try:
                slow.sendall(b"x: y\r\n")
            except OSError:
                return True
            return False

        wait_until(dropped)
    assert gateway.lines == ["dropped 127.0.0.1 (no request in time)"]


def test_a_second_request_that_never_ends_is_dropped_too(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(head_s=0.3))
    with gateway.connect() as slow:
        slow.sendall(gateway.head(PULL, "content-length: 1") + b"x")
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):  # the stand-in declares no length
            received += slow.recv(65536)
        slow.sendall(b"POST /v1")
        assert read_all(slow) == b""
    assert gateway.lines == ["dropped 127.0.0.1 (no request in time)"]


def test_a_handshake_that_does_not_come_is_given_up(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(handshake_s=0.3))
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as silent:
        assert silent.recv(1) == b""
    assert answers(gateway)


def test_a_peer_has_so_many_connections_and_no_more(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(connections_per_peer=2))
    first, second = gateway.connect(), gateway.connect()
    with gateway.connect() as third:
        assert read_all(third) == b""
    assert gateway.lines == ["dropped 127.0.0.1 (too many connections of this peer)"]
    first.close()
    second.close()

    def free_again() -> bool:
        with gateway.connect() as connection:
            connection.sendall(gateway.head(PULL, "content-length: 1") + b"x")
            try:
                return b"200 OK" in connection.recv(65536)
            except OSError:
                return False

    wait_until(free_again)


def test_all_peers_together_have_so_many_connections(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(connections=1))
    with gateway.connect(), gateway.connect() as second:
        assert read_all(second) == b""
    assert gateway.lines == ["dropped 127.0.0.1 (too many connections)"]


def test_headers_that_are_too_large_are_refused(gateway: Gateway) -> None:
    # Whole at once, and without an end.
    whole = gateway.head(PULL, "x: " + "y" * 20_000, "content-length: 0")
    assert gateway.send_raw(whole).split(b" ")[1] == b"431"
    assert gateway.send_raw(whole[:18_000]).split(b" ")[1] == b"400"
    assert gateway.lines[1] == "400 127.0.0.1 (not HTTP)"
    assert gateway.superlink.seen == []


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"POST\r\n\r\n", b"\r\n\r\n"]
)
def test_what_is_not_http_is_refused(gateway: Gateway, garbage: bytes) -> None:
    answer = gateway.send_raw(garbage)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.split(b" ")[1] in {b"400", b"403"}
    assert gateway.superlink.seen == []


def test_garbage_behind_a_request_is_no_second_answer(gateway: Gateway) -> None:
    request = gateway.head(PULL, "content-length: 1") + b"x"
    answer = gateway.send_raw(request + b"\x00" * 100)
    assert answer.count(b"HTTP/1.1") <= 2
    assert [seen.path for seen in gateway.superlink.seen] in ([], [PULL])
    assert answers(gateway)


def test_a_plain_text_client_gets_nothing(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as plain:
        plain.sendall(gateway.head(PULL, "content-length: 1") + b"x")
        try:
            received = plain.recv(65536)
        except ConnectionResetError:
            received = b""
    assert b"HTTP" not in received
    assert gateway.superlink.seen == []


def test_old_versions_of_tls_are_refused(gateway: Gateway) -> None:
    context = gateway.context
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as plain,
        pytest.raises(OSError, match=r"(?i)ssl|reset|version|protocol"),
    ):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_a_renewed_certificate_is_used_without_a_restart(start_gateway: StartGateway) -> None:
    gateway = start_gateway(limits=Limits(certificate_check_s=0.05))
    before = serial_number(gateway)
    gateway.authority.issue()
    wait_until(lambda: serial_number(gateway) != before)
    assert gateway.lines == ["the renewed certificate is in use"]


def test_a_pair_that_does_not_fit_is_never_used(authority: Authority) -> None:
    certificate = Certificate(authority.certificate, authority.key)
    other = make_ca("another")
    stray = make_server_certificate(other.certificate, other.key, ["127.0.0.1"], 1)
    authority.key.write_bytes(stray.key)
    assert not certificate.reload_if_renewed()
    authority.key.unlink()
    assert not certificate.reload_if_renewed()
    authority.issue()
    assert certificate.reload_if_renewed()
    assert not certificate.reload_if_renewed()
