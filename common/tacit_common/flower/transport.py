"""Answers of bounded size and time: what the HTTP client stands on.

httpx alone reads an answer of any length, unpacks it to any size, waits for ever as long as
a byte comes now and then, and keeps whatever cookies it is given.
"""

import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import httpcore
import httpx

TOO_LONG = "the answer is longer than it may be"

_PULL_OBJECT = "/pull-object"
_HEAD = 64 * 1024  # of an answer, before and around its body
_PIECE = 256 * 1024
_MOST_CONNECTIONS, _KEPT_CONNECTIONS, _KEPT_FOR_S = 32, 8, 5.0


@dataclass(frozen=True)
class Bounds:
    """How long an answer may be, and how slow a request."""

    answer: int  # bytes
    piece: int = 0  # bytes of an answer that brings a piece of a message
    grace_s: float = 60.0  # for the whole of a request, before its bytes count
    slowest_bytes_s: float = 8_000.0  # beyond it; 5 MB, Flower's chunk, in eleven minutes

    def of(self, request: httpx.Request) -> int:
        """Bytes that the answer to a request may have, its head included."""
        return _HEAD + (self.piece if request.url.path.endswith(_PULL_OBJECT) else self.answer)


class BoundedTransport(httpx.BaseTransport):
    """TLS to whom `context` trusts, within `bounds`.

    Guarantees: an answer that is too long ends with RemoteProtocolError, a request that is
    too slow with a timeout, whether it is silent or drips. Status and body of an answer get
    through, and no header: nobody is redirected, no cookie is kept, nothing is unpacked.
    """

    def __init__(self, context: ssl.SSLContext, bounds: Bounds) -> None:
        self._bounds = bounds
        self._meter = _Meter(bounds)
        self._transport = httpx.HTTPTransport(verify=context, trust_env=False)
        self._transport.close()
        # httpx offers no other way to a network of one's own.
        self._transport._pool = httpcore.ConnectionPool(
            ssl_context=context,
            max_connections=_MOST_CONNECTIONS,
            max_keepalive_connections=_KEPT_CONNECTIONS,
            keepalive_expiry=_KEPT_FOR_S,
            network_backend=_MeteredBackend(self._meter),
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        self._meter.begin(self._bounds.of(request))
        response = self._transport.handle_request(request)
        return httpx.Response(
            response.status_code, stream=response.stream, extensions=response.extensions
        )

    def close(self) -> None:
        """Close all connections."""
        self._transport.close()


class _Meter(threading.local):
    """What the request at work in this thread has used of its bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._begun = 0.0
        self._moved = 0
        self._may_receive = 0

    def begin(self, may_receive: int) -> None:
        self._begun, self._moved, self._may_receive = time.monotonic(), 0, may_receive

    def received(self, size: int) -> None:
        self._moved += size
        self._may_receive -= size
        if self._may_receive < 0:
            raise httpcore.RemoteProtocolError(TOO_LONG)

    def sent(self, size: int) -> None:
        self._moved += size

    def left_s(self, timeout: float | None) -> float:
        """Seconds that may still be waited for the next byte; not positive if there are none."""
        allowed = self._bounds.grace_s + self._moved / self._bounds.slowest_bytes_s
        left = self._begun + allowed - time.monotonic()
        return left if timeout is None else min(left, timeout)


class _MeteredStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, meter: _Meter) -> None:
        self._inner = inner
        self._meter = meter

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        left = self._meter.left_s(timeout)
        if left <= 0:
            raise httpcore.ReadTimeout("the answer is too slow")
        data = self._inner.read(max_bytes, left)
        self._meter.received(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In pieces, so that one sees while it is sent how slowly it is taken.
        view = memoryview(buffer)
        for start in range(0, len(view), _PIECE):
            left = self._meter.left_s(timeout)
            if left <= 0:
                raise httpcore.WriteTimeout("the request is taken too slowly")
            piece = bytes(view[start : start + _PIECE])
            self._inner.write(piece, left)
            self._meter.sent(len(piece))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.start_tls(ssl_context, server_hostname, timeout)
        return _MeteredStream(stream, self._meter)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


class _MeteredBackend(httpcore.NetworkBackend):
    def __init__(self, meter: _Meter) -> None:
        self._inner = httpcore.SyncBackend()
        self._meter = meter

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, timeout, local_address, socket_options)
        return _MeteredStream(stream, self._meter)
