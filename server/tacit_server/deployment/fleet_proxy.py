"""What of Flower's API a stranger can reach: eight endpoints, for enrolled nodes only.

    site ── TLS ──► FleetProxy ── TLS on loopback ──► SuperLink

The SuperLink serves three APIs on one port. Two of them start runs and hand out tasks, and
are not authenticated; the third lets nodes register themselves. So nothing passes but POST
to the exact paths below, with the signature of an enrolled key, a declared length and known
headers. The path that goes on is the constant from this file, never what the peer wrote.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import httpx
from starlette.types import Receive, Scope, Send

from tacit_common.errors import TacitError
from tacit_server.deployment.node_signature import IsEnrolled, is_signed_now

Refused = Callable[[str], None]
"""Takes one line about a refused request."""

_SMALL: Final = 64 * 1024  # a node's name and a few hashes
_LARGEST_HEAD: Final = 16 * 1024

# Not among them: register-node and unregister-node (the coordinator enrols), get-fab (sites
# run installed code only) and get-run (which would hand out a run's configuration).
SMALL_ENDPOINTS: Final = frozenset(
    {
        "/v1/fleet/activate-node",
        "/v1/fleet/deactivate-node",
        "/v1/fleet/send-node-heartbeat",
        "/v1/fleet/pull-messages",
        "/v1/fleet/pull-object",
        "/v1/fleet/confirm-message-received",
    }
)
LARGE_ENDPOINTS: Final = frozenset({"/v1/fleet/push-messages", "/v1/fleet/push-object"})
_PATHS: Final[Mapping[bytes, str]] = {
    path.encode(): path for path in SMALL_ENDPOINTS | LARGE_ENDPOINTS
}

_KEY: Final = b"flwr-public-key"
_TIMESTAMP: Final = b"flwr-timestamp"
_SIGNATURE: Final = b"flwr-signature"
_CREDENTIALS: Final = (_KEY, _TIMESTAMP, _SIGNATURE)
_TO_SUPERLINK: Final = frozenset(
    {
        *_CREDENTIALS,
        b"accept",
        b"content-type",
        b"content-length",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
_TO_SITE: Final = frozenset(
    {b"content-type", b"content-length", b"flwr-version-incompatibility-message"}
)

# A body of zeros that unpacks to gigabytes costs a peer nothing.
_NEVER: Final = (b"transfer-encoding", b"content-encoding", b"upgrade")


@dataclass(frozen=True)
class Patience:
    """How slow a peer may be. Seconds, and bytes a second."""

    idle_s: float = 30.0  # without one byte in either direction
    grace_s: float = 30.0  # for the whole body, before its length counts
    slowest_bytes_s: float = 8_000.0  # 5 MB, Flower's chunk, in eleven minutes


class _Refusal(Exception):  # noqa: N818 - an answer, not a mishap
    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


class _BrokenOffError(Exception):
    """One side went away in the middle: all that is left is to cut the other."""


class FleetProxy:
    """An ASGI application that passes on what an enrolled node may ask, and refuses the rest.

    Guarantees: no request reaches `upstream` unless it is a POST to one of the paths above,
    carries one valid signature of a key for which `is_enrolled` is true, and declares a
    length within the limit. Bodies are passed on as they come, never kept.
    """

    def __init__(
        self,
        *,
        upstream: httpx.AsyncClient,
        is_enrolled: IsEnrolled,
        largest_body: int,
        refused: Refused,
        patience: Patience | None = None,
    ) -> None:
        self._upstream = upstream
        self._is_enrolled = is_enrolled
        self._largest_body = largest_body
        self._refused = refused
        self._patience = patience or Patience()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; at the end of the server, let go of the SuperLink."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError("the gateway speaks HTTP only")
        try:
            await self._answer(scope, receive, send)
        except _Refusal as refusal:
            self._refused(_line(scope, refusal))
            await _send_refusal(send, refusal.status)
        except _BrokenOffError:
            pass  # uvicorn closes a connection whose answer is not complete

    async def _live(self, receive: Receive, send: Send) -> None:
        while (event := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{event['type']}.complete"})
        await self._upstream.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _permitted_path(scope)
        headers = _single_headers(scope)
        self._require_enrolled(headers)
        length = self._permitted_length(path, headers)
        request = self._upstream.build_request(
            "POST",
            path,
            headers=[(name, value) for name, value in headers.items() if name in _TO_SUPERLINK]
            + [(b"accept-encoding", b"identity")],
            content=self._body(receive, length),
        )
        try:
            response = await self._upstream.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            raise _Refusal(503, "the SuperLink is not up") from None
        except httpx.TimeoutException:
            raise _Refusal(504, "the SuperLink is too slow") from None
        except httpx.TransportError:
            raise _Refusal(502, "the SuperLink broke off") from None
        try:
            await self._pass_back(response, send)
        finally:
            await response.aclose()

    def _require_enrolled(self, headers: Mapping[bytes, bytes]) -> None:
        try:
            key, timestamp, signature = (headers[name].decode("ascii") for name in _CREDENTIALS)
        except (KeyError, UnicodeDecodeError):
            raise _Refusal(401, "no node's signature") from None
        try:
            enrolled = self._is_enrolled(key)
        except TacitError:
            raise _Refusal(503, "the roster cannot be trusted") from None
        if not enrolled:
            raise _Refusal(401, "the node is not enrolled")
        if not is_signed_now(key, timestamp, signature, now=datetime.now(UTC)):
            raise _Refusal(401, "the signature or its time is wrong")

    def _permitted_length(self, path: str, headers: Mapping[bytes, bytes]) -> int:
        try:
            length = int(headers[b"content-length"])  # h11 has checked that these are digits
        except (KeyError, ValueError):
            raise _Refusal(411, "no declared length") from None
        if length > (_SMALL if path in SMALL_ENDPOINTS else self._largest_body):
            raise _Refusal(413, "the body is too large")
        return length

    async def _body(self, receive: Receive, length: int) -> AsyncIterator[bytes]:
        """The body in the pieces in which it comes; h11 holds it to the declared length."""
        patience, now = self._patience, asyncio.get_running_loop().time
        end = now() + patience.grace_s + length / patience.slowest_bytes_s
        more = True
        while more:
            try:
                async with asyncio.timeout(min(patience.idle_s, end - now())):
                    event = await receive()
            except TimeoutError:
                raise _Refusal(408, "the body is too slow") from None
            if event["type"] == "http.disconnect":
                raise _BrokenOffError
            more = event.get("more_body", False)
            if event["body"]:
                yield event["body"]

    async def _pass_back(self, response: httpx.Response, send: Send) -> None:
        if not 200 <= response.status_code < 600 or response.is_redirect:
            raise _Refusal(502, "the SuperLink's answer makes no sense")
        headers = [
            (name.lower(), value)
            for name, value in response.headers.raw
            if name.lower() in _TO_SITE
        ]
        await self._send(
            send,
            {"type": "http.response.start", "status": response.status_code, "headers": headers},
        )
        try:
            async for piece in response.aiter_raw():
                body = {"type": "http.response.body", "body": piece, "more_body": True}
                await self._send(send, body)
        except httpx.TransportError:
            raise _BrokenOffError from None
        await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, event: dict[str, object]) -> None:
        try:
            async with asyncio.timeout(self._patience.idle_s):
                await send(event)
        except TimeoutError:
            raise _BrokenOffError from None


def _permitted_path(scope: Scope) -> str:
    # `raw_path` is what stood on the wire: nothing is decoded, joined or cleaned up here.
    path = _PATHS.get(scope["raw_path"])
    if path is None or scope["query_string"]:
        raise _Refusal(403, "not an endpoint for sites")
    if scope["method"] != "POST":
        raise _Refusal(403, "not a method for sites")
    if scope["http_version"] != "1.1":
        raise _Refusal(400, "not HTTP/1.1")
    return path


def _single_headers(scope: Scope) -> dict[bytes, bytes]:
    """The headers by name; what could be read in two ways is refused."""
    if sum(len(name) + len(value) for name, value in scope["headers"]) > _LARGEST_HEAD:
        raise _Refusal(431, "the headers are too large")
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in headers and name in _TO_SUPERLINK:
            raise _Refusal(400, "a header stands twice")
        headers[name] = value
    if any(name in headers for name in _NEVER):
        raise _Refusal(400, "the body's encoding is not one for sites")
    return headers


async def _send_refusal(send: Send, status: int) -> None:
    """The same few bytes for everybody. The rest of the request is not read."""
    body = b"refused\n"
    headers = [
        (b"content-type", b"text/plain"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _line(scope: Scope, refusal: _Refusal) -> str:
    peer = scope["client"][0] if scope["client"] else "?"
    method, path = printable(scope["method"].encode(), 16), printable(scope["raw_path"], 80)
    return f"{refusal.status} {peer} {method} {path} ({refusal.why})"


def printable(text: bytes, longest: int) -> str:
    """A peer's words for a log: printable ASCII without quotes or spaces, and not long."""
    escaped = "".join(
        chr(byte) if 0x21 <= byte <= 0x7E and byte not in b"\\\"'" else f"\\x{byte:02x}"
        for byte in text[:longest]
    )
    return escaped + ("…" if len(text) > longest else "")
