"""A health check says what is so at the moment it is asked, to anybody who speaks gRPC."""

import threading
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2 as protocol
from grpc_health.v1 import health_pb2_grpc

from tacit_common.errors import LinkError, UsageError
from tacit_common.health import HealthServer, HealthStatus, check_health

WAIT_S = 60.0
Serve = Callable[..., HealthServer]


class Switch:
    """A check that a test turns on and off."""

    def __init__(self, on: bool = True) -> None:
        self.on = on

    def __call__(self) -> bool:
        return self.on


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers: list[HealthServer] = []

    def make(**checks: Callable[[], bool]) -> HealthServer:
        server = HealthServer("127.0.0.1:0", checks)
        server.start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.stop()


def status(server: HealthServer, service: str = "") -> HealthStatus:
    return check_health(f"127.0.0.1:{server.port}", service, timeout_s=WAIT_S)


def watch(channel: grpc.Channel, service: str) -> Iterator[protocol.HealthCheckResponse]:
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Watch(protocol.HealthCheckRequest(service=service), timeout=WAIT_S)


def test_every_check_is_asked_anew(serve: Serve) -> None:
    ready = Switch()
    server = serve(live=lambda: True, ready=ready)
    assert status(server, "ready") is HealthStatus.SERVING
    assert status(server) is HealthStatus.SERVING
    ready.on = False
    assert status(server, "ready") is HealthStatus.NOT_SERVING
    assert status(server) is HealthStatus.NOT_SERVING
    assert status(server, "live") is HealthStatus.SERVING


def test_a_check_that_fails_or_says_something_else_than_true_is_not_serving(serve: Serve) -> None:
    def fails() -> bool:
        raise RuntimeError

    server = serve(live=fails, ready=lambda: "yes")
    assert status(server, "live") is HealthStatus.NOT_SERVING
    assert status(server, "ready") is HealthStatus.NOT_SERVING


def test_a_service_that_is_not_there_is_unknown_and_never_serving(serve: Serve) -> None:
    server = serve(live=lambda: True)
    assert status(server, "ready") is HealthStatus.UNKNOWN
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        first = next(iter(watch(channel, "ready")))
    assert first.status == protocol.HealthCheckResponse.SERVICE_UNKNOWN


def test_another_client_of_the_protocol_understands_it(serve: Serve) -> None:
    server = serve(live=lambda: True)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(protocol.HealthCheckRequest(service="live"), timeout=WAIT_S)
        assert answer.status == protocol.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            stub.Check(protocol.HealthCheckRequest(service="x"), timeout=WAIT_S)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_tells_each_change_once(serve: Serve) -> None:
    ready = Switch()
    server = serve(ready=ready)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        seen = watch(channel, "ready")
        assert next(seen).status == protocol.HealthCheckResponse.SERVING
        ready.on = False
        assert next(seen).status == protocol.HealthCheckResponse.NOT_SERVING
        ready.on = True
        assert next(seen).status == protocol.HealthCheckResponse.SERVING


def test_watches_are_bounded_and_never_keep_a_check_waiting(serve: Serve) -> None:
    server = serve(live=lambda: True)
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        watches = [watch(channel, "live") for _ in range(8)]
        for seen in watches:
            next(seen)
        with pytest.raises(grpc.RpcError) as raised:
            next(watch(channel, "live"))
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status(server, "live") is HealthStatus.SERVING
        assert threading.active_count() < 40

        watches[0].cancel()  # one who leaves makes room for another
        freed = threading.Event()
        for _ in range(600):
            try:
                next(watch(channel, "live"))
            except grpc.RpcError:
                freed.wait(0.1)
            else:
                freed.set()
                break
        assert freed.is_set()


def test_stopping_ends_watches_and_frees_the_port() -> None:
    server = HealthServer("127.0.0.1:0", {"live": lambda: True})
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        seen = watch(channel, "live")
        next(seen)
        server.stop()
        with pytest.raises(grpc.RpcError):
            next(seen)
    with HealthServer(f"127.0.0.1:{server.port}", {"live": lambda: True}) as again:
        assert status(again) is HealthStatus.SERVING


@pytest.mark.parametrize("address", ["192.0.2.1:9444", "127.0.0.1:99999", "127.0.0.1", "nowhere:x"])
def test_an_address_that_cannot_be_bound_is_a_request_that_has_to_change(address: str) -> None:
    with pytest.raises(UsageError, match="cannot be listened on"):
        HealthServer(address, {})


def test_a_port_is_not_shared_with_another_process(serve: Serve) -> None:
    taken = serve(live=lambda: True)
    with pytest.raises(UsageError, match="another process uses it"):
        HealthServer(f"127.0.0.1:{taken.port}", {})


def test_nobody_there_is_an_error_that_says_so() -> None:
    with HealthServer("127.0.0.1:0", {}) as server:
        port = server.port
    with pytest.raises(LinkError, match="answers no health check") as raised:
        check_health(f"127.0.0.1:{port}", "", timeout_s=WAIT_S)
    assert raised.value.exit_code == 1


def test_a_proxy_from_the_environment_is_not_used(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(live=lambda: True)
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert status(server) is HealthStatus.SERVING
