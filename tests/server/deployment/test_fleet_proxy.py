"""Attacks on the gateway: nothing but an enrolled node's own endpoints reaches the SuperLink."""

import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.supernode import fleet_http_client
from tests.server.deployment.gateway_case import PULL, PUSH_OBJECT, Gateway, Node

from tacit_common.certificates import make_ca
from tacit_common.errors import IdentityError
from tacit_server.deployment.fleet_proxy import (
    LARGE_ENDPOINTS,
    SMALL_ENDPOINTS,
    Patience,
    printable,
)
from tacit_server.deployment.node_signature import is_signed_now

StartGateway = Callable[..., Gateway]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_an_enrolled_node_reaches_every_endpoint_that_it_needs(gateway: Gateway) -> None:
    for path in sorted(SMALL_ENDPOINTS | LARGE_ENDPOINTS):
        answer = gateway.post(path)
        assert (answer.status_code, answer.content) == (200, b"an answer")
    assert {seen.path for seen in gateway.superlink.seen} == SMALL_ENDPOINTS | LARGE_ENDPOINTS
    assert gateway.lines == []


def test_the_endpoints_are_those_of_flowers_own_client() -> None:
    source = Path(fleet_http_client.__file__).read_text()
    for path in SMALL_ENDPOINTS | LARGE_ENDPOINTS:
        assert f'path="{path}"' in source


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet/register-node",
        "/v1/fleet/unregister-node",
        "/v1/fleet/get-fab",
        "/v1/fleet/get-run",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/pull-messages/../../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet%2Fpull-messages",
        "/v1/fleet/pull%2Dmessages",
        "//v1/fleet/pull-messages",
        "/v1//fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages%20",
        "/v1/fleet/pull-messages?x=/v1/control/start-run",
        "/v1/fleet/pull-messages#x",
        "/V1/fleet/pull-messages",
        "\\v1\\fleet\\pull-messages",
        "v1/fleet/pull-messages",
        "https://127.0.0.1/v1/fleet/pull-messages",
        "http://127.0.0.1:9092/v1/control/start-run",
        "*",
        "/",
        "/health",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_other_path_passes_however_it_is_written(gateway: Gateway, target: str) -> None:
    answer = gateway.send_raw(gateway.head(target, "content-length: 1") + b"x")
    assert status_of(answer) == 403
    assert answer.endswith(b"\r\n\r\nrefused\n")
    assert gateway.superlink.seen == []
    assert len(gateway.lines) == 1


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "post"])
def test_no_other_method_passes(gateway: Gateway, method: str) -> None:
    answer = gateway.send_raw(gateway.head(PULL, "content-length: 0", method=method))
    assert status_of(answer) == 403
    assert gateway.superlink.seen == []


@pytest.mark.parametrize(
    "lines",
    [
        ("content-length: 1", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 1"),
        ("transfer-encoding: chunked",),
        ("transfer-encoding: identity", "content-length: 1"),
        ("transfer-encoding: xchunked", "content-length: 1"),
        ("transfer-encoding : chunked", "content-length: 1"),
        ("content-length: 1", "content-length: 40"),
        ("content-length: 1, 40",),
        ("content-length: +1",),
        ("content-length: -1",),
        ("content-length: 0x1",),
        (" folded: header", "content-length: 1"),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_smuggles_nothing(
    gateway: Gateway, lines: tuple[str, ...]
) -> None:
    smuggled = gateway.head("/v1/fleet/push-object", "content-length: 0")
    answer = gateway.send_raw(gateway.head(PULL, *lines) + b"0\r\n\r\n" + smuggled)
    assert answer.count(b"HTTP/1.1") == 1
    assert status_of(answer) in {400, 401, 403, 501}
    assert gateway.superlink.seen == []


def test_a_head_that_ends_early_moves_no_boundary(gateway: Gateway) -> None:
    smuggled = gateway.head(PUSH_OBJECT, "content-length: 0")
    gateway.send_raw(gateway.head(PULL, "content-length: 1\n", "x: y") + smuggled)
    assert [(seen.path, seen.size) for seen in gateway.superlink.seen] == [(PULL, 1)]


def test_a_second_request_behind_a_refused_one_is_not_answered(gateway: Gateway) -> None:
    refused = gateway.head("/v1/control/start-run", "content-length: 0")
    answer = gateway.send_raw(refused + gateway.head(PULL, "content-length: 0"))
    assert answer.count(b"HTTP/1.1") == 1
    assert gateway.superlink.seen == []


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_a_header_of_the_signature_may_not_stand_twice(gateway: Gateway, name: str) -> None:
    again = f"{name}: {gateway.node.headers[name]}"
    answer = gateway.send_raw(gateway.head(PULL, again, "content-length: 1") + b"x")
    assert status_of(answer) == 400
    assert gateway.superlink.seen == []


def test_a_stranger_with_a_key_of_his_own_is_turned_away(gateway: Gateway) -> None:
    stranger = Node()
    answer = gateway.post(headers=stranger.headers)
    assert answer.status_code == 401
    assert gateway.superlink.seen == []


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-timestamp", "flwr-signature"])
def test_a_request_without_a_whole_signature_is_turned_away(gateway: Gateway, name: str) -> None:
    headers = {key: value for key, value in gateway.node.headers.items() if key != name}
    with gateway.client() as client:
        assert client.post(PULL, content=b"x", headers=headers).status_code == 401
    assert gateway.superlink.seen == []


def test_knowing_an_enrolled_public_key_is_not_enough(gateway: Gateway) -> None:
    stranger = Node()
    public = {"flwr-public-key": gateway.node.headers["flwr-public-key"]}
    assert gateway.post(headers=stranger.headers | public).status_code == 401
    assert gateway.superlink.seen == []


def test_a_stranger_is_turned_away_before_his_body_is_read(gateway: Gateway) -> None:
    head = f"POST {PUSH_OBJECT} HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n"
    assert status_of(gateway.send_raw(head.encode())) == 401  # without one byte of the body


@pytest.mark.parametrize("age_s", [400, -60])
def test_a_signature_of_another_time_is_nobodys(gateway: Gateway, age_s: int) -> None:
    headers = gateway.node.headers
    signed = (headers["flwr-public-key"], headers["flwr-timestamp"], headers["flwr-signature"])
    now = datetime.now(UTC)
    assert is_signed_now(*signed, now=now)
    assert not is_signed_now(*signed, now=now + timedelta(seconds=age_s))


@pytest.mark.parametrize(
    "wrong",
    [
        {"flwr-public-key": "not base64!"},
        {"flwr-public-key": "AAAA"},
        {"flwr-signature": "AAAA"},
        {"flwr-signature": ""},
        {"flwr-timestamp": "now"},
        {"flwr-timestamp": "2025-01-01T00:00:00"},  # of no time zone
        {"flwr-timestamp": "9999-12-31T23:59:59+00:00"},
    ],
)
def test_what_cannot_be_parsed_is_signed_by_nobody(gateway: Gateway, wrong: dict[str, str]) -> None:
    headers = gateway.node.headers | wrong
    signed = (headers["flwr-public-key"], headers["flwr-timestamp"], headers["flwr-signature"])
    assert not is_signed_now(*signed, now=datetime.now(UTC))


def test_a_roster_that_cannot_be_trusted_lets_nobody_in(gateway: Gateway) -> None:
    def damaged(_: str) -> bool:
        raise IdentityError("the roster cannot be read", why="x", fix="y")

    with pytest.raises(IdentityError):
        damaged("")
    assert gateway.status_behind(is_enrolled=damaged) == 503
    assert gateway.status_behind() == 200
    assert len(gateway.superlink.seen) == 1


def test_only_known_headers_pass_in_either_direction(gateway: Gateway) -> None:
    gateway.superlink.headers = [
        (b"server", b"uvicorn"),
        (b"set-cookie", b"a=b"),
        (b"location", b"https://elsewhere.example"),
        (b"content-type", b"application/protobuf"),
        (b"flwr-version-incompatibility-message", b"too old"),
    ]
    answer = gateway.post(
        headers={
            "flwr-task-token": "stolen",
            "flwr-superexec-signature": "x",
            "x-forwarded-for": "127.0.0.1",
            "cookie": "a=b",
            "flwr-component-name": "SuperNode",
        }
    )
    passed = {name.decode() for name, _ in gateway.superlink.seen[0].headers}
    assert passed == {
        *("host", "connection", "user-agent", "accept", "accept-encoding", "content-length"),
        *("flwr-public-key", "flwr-timestamp", "flwr-signature", "flwr-component-name"),
    }
    assert set(answer.headers) == {
        *("content-type", "flwr-version-incompatibility-message", "transfer-encoding"),
        "date",  # by which a site's doctor compares clocks
    }


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirection_is_never_passed_on(gateway: Gateway, status: int) -> None:
    gateway.superlink.status = status
    gateway.superlink.headers = [(b"location", b"https://elsewhere.example/")]
    assert gateway.post().status_code == 502


@pytest.mark.parametrize(("path", "limit"), [(PULL, 64 * 1024), (PUSH_OBJECT, 300_000)])
def test_a_body_over_the_limit_is_refused_before_it_is_read(
    gateway: Gateway, path: str, limit: int
) -> None:
    assert gateway.post(path, content=b"x" * limit).status_code == 200
    answer = gateway.send_raw(gateway.head(path, f"content-length: {limit + 1}"))
    assert status_of(answer) == 413
    assert [seen.size for seen in gateway.superlink.seen] == [limit]


def test_a_compressed_body_is_refused(gateway: Gateway) -> None:
    assert gateway.post(headers={"content-encoding": "gzip"}).status_code == 400


def test_bodies_are_passed_on_as_they_come(gateway: Gateway) -> None:
    with gateway.connect() as connection:
        connection.sendall(gateway.head(PUSH_OBJECT, "content-length: 300000") + b"x" * 100_000)
        assert gateway.superlink.began.wait(60)  # while most of the body is still to come
        connection.sendall(b"x" * 200_000)
        answer = connection.recv(65536)
    assert status_of(answer) == 200
    assert gateway.superlink.seen[0].size == 300_000


def test_large_answers_come_back_whole(gateway: Gateway) -> None:
    gateway.superlink.answer = bytes(range(256)) * 20_000
    assert gateway.post().content == gateway.superlink.answer


@pytest.mark.parametrize(
    "patience",
    [Patience(idle_s=0.3), Patience(grace_s=0.3, slowest_bytes_s=1e9)],
    ids=["silent", "slow"],
)
def test_a_body_that_does_not_come_is_given_up(
    start_gateway: StartGateway, patience: Patience
) -> None:
    gateway = start_gateway(patience=patience)
    answer = gateway.send_raw(gateway.head(PUSH_OBJECT, "content-length: 1000") + b"x")
    assert status_of(answer) == 408
    assert gateway.superlink.seen == []


def test_a_superlink_that_is_down_is_said_to_be(gateway: Gateway) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert gateway.status_behind(superlink_port=port) == 503


def test_another_process_on_the_superlinks_port_gets_nothing(
    gateway: Gateway, tmp_path: Path
) -> None:
    other = tmp_path / "other.crt"
    other.write_bytes(make_ca("another").certificate)
    assert gateway.status_behind(ca_certificate=other) == 503
    assert gateway.superlink.seen == []


def test_a_refusal_is_one_line_without_the_peers_own_formatting(gateway: Gateway) -> None:
    target = "/\"'\\" + "a" * 500
    gateway.send_raw(gateway.head(target, "content-length: 0"))
    assert len(gateway.lines) == 1
    assert gateway.lines[0].startswith("403 127.0.0.1 POST /\\x22\\x27\\x5caaa")
    assert len(gateway.lines[0]) < 200


def test_control_characters_do_not_reach_the_log() -> None:
    assert printable(b"a\x1b[2J\n\xff b", 80) == "a\\x1b[2J\\x0a\\xff\\x20b"
