"""A TLS listener for one ASGI application that strangers can reach.

uvicorn parses HTTP (with h11, its strict parser). What it does not limit is limited here:
how many connections there are, how many a peer has, and how long a handshake or the head
of a request may take. A certificate that was renewed on disk is used from then on.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

Say = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """What one peer, and all of them, may take up."""

    connections: int = 512
    connections_per_peer: int = 64  # sites behind one address translation share them
    head_bytes: int = 16 * 1024
    head_s: float = 10.0  # from the first byte, or the handshake, to the end of the headers
    handshake_s: float = 10.0
    keep_alive_s: float = 15.0  # longer than the site's own 5 s, so that the site closes first
    closing_s: float = 3.0
    certificate_check_s: float = 2.0


class Certificate:
    """A server's certificate and key on disk, TLS 1.2 or later, read again when renewed."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_RENEGOTIATION
        self.context.load_cert_chain(certificate, key)
        self._seen = self._state()

    def reload_if_renewed(self) -> bool:
        """Use the files' present content for new connections, if it changed and fits together.

        Guarantees: until both files form a pair, the old certificate stays in use.
        """
        state = self._state()
        if state == self._seen:
            return False
        try:
            # Tried elsewhere first: a half-written pair must not end up in the real context.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
            self.context.load_cert_chain(self._certificate, self._key)
        except OSError:  # ssl.SSLError is one
            return False
        self._seen = state
        return True

    def _state(self) -> tuple[tuple[int, int], ...]:
        try:
            found = (self._certificate.stat(), self._key.stat())
        except OSError:
            return ()
        return tuple((file.st_mtime_ns, file.st_ino) for file in found)


class _Connection(H11Protocol):
    """uvicorn's connection, with an end to its patience."""

    def __init__(
        self,
        config: uvicorn.Config,
        state: ServerState,
        limits: Limits,
        peers: Counter[str],
        say: Say,
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._limits = limits
        self._peers = peers
        self._say = say
        self._peer = "?"
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._peer = self.client[0] if self.client else "?"
        self._peers[self._peer] += 1
        if self._peers[self._peer] > self._limits.connections_per_peer:
            self._drop("too many connections of this peer")
        elif len(self.connections) > self._limits.connections:
            self._drop("too many connections")
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._peers[self._peer] -= 1
        if not self._peers[self._peer]:
            del self._peers[self._peer]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()  # the application watches the body
        else:
            self._await_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        # An answer to an earlier request may be under way, into which no other may be mixed.
        if self.cycle is not None and not self.cycle.response_complete:
            self._drop("not HTTP, behind a request")
            return
        self._say(f"400 {self._peer} (not HTTP)")
        super().send_400_response("refused")

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(
                self._limits.head_s, self._drop, "no request in time"
            )

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _drop(self, why: str) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self._say(f"dropped {self._peer} ({why})")
            self.transport.abort()


class Listener(uvicorn.Server):
    """Serves `app` on a bound socket until SIGTERM or SIGINT."""

    def __init__(
        self, app: ASGIApp, certificate: Certificate, *, say: Say, limits: Limits | None = None
    ) -> None:
        self._limits = limits or Limits()
        super().__init__(
            uvicorn.Config(
                app,
                http=H11Protocol,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,  # a peer is who connects, not whom it names
                server_header=False,
                date_header=True,
                h11_max_incomplete_event_size=self._limits.head_bytes,
                timeout_keep_alive=int(self._limits.keep_alive_s),
                timeout_graceful_shutdown=int(self._limits.closing_s),
            )
        )
        self._certificate = certificate
        self._say = say
        self._peers: Counter[str] = Counter()
        self._renewal: asyncio.Task[None] | None = None

    def run(self, sockets: list[socket] | None = None) -> None:
        """Serve on `sockets`, each bound already."""
        super().run(sockets)

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Listen. uvicorn's own would let a handshake last a minute."""
        await self.lifespan.startup()
        self.should_exit = self.lifespan.should_exit
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                self._connection,
                sock=bound,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._limits.handshake_s,
                ssl_shutdown_timeout=self._limits.closing_s,
                backlog=256,
            )
            for bound in sockets or []
        ]
        self._renewal = loop.create_task(self._follow_certificate())
        self.started = True

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Finish the requests under way, within a few seconds."""
        if self._renewal is not None:
            self._renewal.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewal
        await super().shutdown(sockets)

    def _connection(self) -> _Connection:
        return _Connection(self.config, self.server_state, self._limits, self._peers, self._say)

    async def _follow_certificate(self) -> None:
        while True:
            await asyncio.sleep(self._limits.certificate_check_s)
            if self._certificate.reload_if_renewed():
                self._say("the renewed certificate is in use")
