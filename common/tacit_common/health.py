"""Standard gRPC health checking (grpc.health.v1) that tells the truth.

Two services are asked about: `live`, whether the process should be left running, and
`ready`, whether it can do its work now. The empty name means all of them. Each check is
evaluated when it is asked for; nothing is remembered, so nothing can be out of date.

The port is plain text, as probes of Kubernetes need it, and says nothing but a status.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Self

import grpc
from grpc_health.v1 import health_pb2 as protocol

from tacit_common.errors import LinkError, UsageError

LIVE = "live"
READY = "ready"

_SERVICE = "grpc.health.v1.Health"
_CHECKS_AT_ONCE = 4
_WATCHES_AT_ONCE = 8  # each holds a thread; the next one is refused
_WAITING = 32
_WATCH_INTERVAL_S = 1.0
_LONGEST_MESSAGE = 4096
_LAST_PORT = 65535
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is in use is an error, not shared
    ("grpc.max_receive_message_length", _LONGEST_MESSAGE),
)


class HealthStatus(StrEnum):
    """What a health check says."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    UNKNOWN = "unknown"  # there is no service of that name


_CODES: dict[HealthStatus, protocol.HealthCheckResponse.ServingStatus.ValueType] = {
    HealthStatus.SERVING: protocol.HealthCheckResponse.SERVING,
    HealthStatus.NOT_SERVING: protocol.HealthCheckResponse.NOT_SERVING,
    HealthStatus.UNKNOWN: protocol.HealthCheckResponse.SERVICE_UNKNOWN,
}


class HealthServer:
    """Answers health checks on a port of its own.

    Guarantees: a check that returns False, or raises, is NOT_SERVING; the empty name is
    SERVING only if every check is; a name that is not there is NOT_FOUND (Check) or
    SERVICE_UNKNOWN (Watch). At most 8 watches run at once, and they never keep a Check
    from being answered.

    Raises:
        UsageError: the address cannot be bound.
    """

    def __init__(self, address: str, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._checks = dict(checks)
        self._free_watches = threading.BoundedSemaphore(_WATCHES_AT_ONCE)
        self._server = grpc.server(
            ThreadPoolExecutor(_CHECKS_AT_ONCE + _WATCHES_AT_ONCE, thread_name_prefix="health"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=_WATCHES_AT_ONCE + _WAITING,
        )
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check,
                request_deserializer=protocol.HealthCheckRequest.FromString,
                response_serializer=protocol.HealthCheckResponse.SerializeToString,
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch,
                request_deserializer=protocol.HealthCheckRequest.FromString,
                response_serializer=protocol.HealthCheckResponse.SerializeToString,
            ),
        }
        handler = grpc.method_handlers_generic_handler(_SERVICE, methods)
        self._server.add_generic_rpc_handlers((handler,))
        self.port = bound_port(self._server.add_insecure_port, address)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """End all watches and free the port."""
        self._server.stop(grace=None).wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _status(self, service: str) -> HealthStatus:
        if service and service not in self._checks:
            return HealthStatus.UNKNOWN
        asked = [self._checks[service]] if service else self._checks.values()
        return HealthStatus.SERVING if all(map(_holds, asked)) else HealthStatus.NOT_SERVING

    def _check(
        self, request: protocol.HealthCheckRequest, context: grpc.ServicerContext
    ) -> protocol.HealthCheckResponse:
        status = self._status(request.service)
        if status is HealthStatus.UNKNOWN:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return _response(status)

    def _watch(
        self, request: protocol.HealthCheckRequest, context: grpc.ServicerContext
    ) -> Iterator[protocol.HealthCheckResponse]:
        """The status now, and again whenever it has changed, until the caller leaves."""
        if not self._free_watches.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
        left = threading.Event()

        def leave() -> None:
            self._free_watches.release()
            left.set()

        if not context.add_callback(leave):
            leave()  # the caller had left before the watch began
        sent: HealthStatus | None = None
        while not left.is_set():
            status = self._status(request.service)
            if status is not sent:
                sent = status
                yield _response(status)
            left.wait(_WATCH_INTERVAL_S)


def check_health(address: str, service: str, *, timeout_s: float) -> HealthStatus:
    """What the service at `address` says of itself; the empty name asks for all of it.

    Raises:
        LinkError: nothing there answers health checks within `timeout_s` seconds.
    """
    # A proxy from the environment is an address that nobody configured here.
    options = (
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", _LONGEST_MESSAGE),
    )
    with grpc.insecure_channel(address, options) as channel:
        check = channel.unary_unary(
            f"/{_SERVICE}/Check",
            request_serializer=protocol.HealthCheckRequest.SerializeToString,
            response_deserializer=protocol.HealthCheckResponse.FromString,
        )
        try:
            answer = check(protocol.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return HealthStatus.UNKNOWN
            raise LinkError(
                f"{address} answers no health check",
                why=f"gRPC says {error.code().name} within {timeout_s:g} s",
                fix="start the service, and give the address of its health checks",
            ) from None
    serving = answer.status == protocol.HealthCheckResponse.SERVING
    return HealthStatus.SERVING if serving else HealthStatus.NOT_SERVING


def bound_port(bind: Callable[[str], int], address: str) -> int:
    """The port that a gRPC server gets when `bind` is called with `address`, host:port.

    Raises:
        UsageError: the address cannot be bound.
    """
    try:
        # gRPC would take 70000 for 4464.
        port = bind(address) if 0 <= int(address.rpartition(":")[2]) <= _LAST_PORT else 0
    except (RuntimeError, ValueError):
        port = 0
    if not port:
        raise UsageError(
            f"the address {address} cannot be listened on",
            why="another process uses it, or this machine does not have it",
            fix="end the other process, or configure another host:port",
        )
    return port


def _holds(check: Callable[[], bool]) -> bool:
    try:
        return check() is True
    except Exception:  # whatever it is, the service is not well
        return False


def _response(status: HealthStatus) -> protocol.HealthCheckResponse:
    return protocol.HealthCheckResponse(status=_CODES[status])
