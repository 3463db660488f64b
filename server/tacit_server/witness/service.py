"""The witness as a gRPC service: who asks is known by certificate, what is said is signed.

TLS lets nobody in whose certificate is not admitted; each call is checked again, so that a
site whose card was taken away or has expired is not served on an old connection either.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Self, TypeVar

import grpc

from tacit_common.certificates import Issued, expires_at, make_server_certificate
from tacit_common.countersign import (
    GRPC_SERVICE,
    LONGEST_MESSAGE,
    Countersignature,
    CountersignRequest,
    NewestRequest,
    Objection,
    Statement,
    decoded,
    encoded,
)
from tacit_common.enrolment import SiteCard
from tacit_common.errors import LedgerError, TacitError, WireError
from tacit_common.health import LIVE, READY, HealthServer, bound_port
from tacit_server.witness.admission import Admission
from tacit_server.witness.book import Book
from tacit_server.witness.folder import WitnessFolder

_log = logging.getLogger(__name__)

_CALLS_AT_ONCE = 8
_WAITING = 56
_CERTIFICATE_DAYS = 90
_RENEWED_BEFORE = timedelta(days=30)
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is in use is an error, not shared
    ("grpc.max_receive_message_length", LONGEST_MESSAGE),
    ("grpc.server_handshake_timeout_ms", 10_000),
)
_STATUS = {
    Objection.STRANGER: grpc.StatusCode.PERMISSION_DENIED,
    Objection.FOREIGN: grpc.StatusCode.PERMISSION_DENIED,
    Objection.CONTRADICTION: grpc.StatusCode.FAILED_PRECONDITION,
    Objection.MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Objection.INTERNAL: grpc.StatusCode.INTERNAL,
}

AnswerT = TypeVar("AnswerT", Statement, Countersignature)


class _ServerTls:
    """The witness's TLS: a certificate that never gets old, and whom it trusts at the moment.

    The certificate lives in memory alone. Its authority is in the folder, and is what sites
    trust, so that it can be made anew at each start and long before it expires.
    """

    def __init__(self, folder: WitnessFolder, admission: Admission) -> None:
        self._authority = folder.ca_certificate.read_bytes(), folder.ca_key.read_bytes()
        self._host = folder.config().host
        self._admission = admission
        self._lock = threading.Lock()
        self._issued = self._issue()
        self._trusted = admission.trusted()

    def credentials(self) -> grpc.ServerCredentials:
        """What a server takes; it asks `_present` again at each connection."""
        return grpc.dynamic_ssl_server_credentials(
            self._present(), self._present, require_client_authentication=True
        )

    def _present(self) -> grpc.ServerCertificateConfiguration:
        with self._lock:
            if expires_at(self._issued.certificate) < datetime.now(UTC) + _RENEWED_BEFORE:
                self._issued = self._issue()
            try:
                self._trusted = self._admission.trusted()
            except (TacitError, OSError) as error:
                # Whom it trusted before may connect, to be told: each call reads the cards
                # again, and none is answered while they cannot be read.
                _log.error("the cards in admitted/ cannot be used: %s", error)
            pair = (self._issued.key, self._issued.certificate)
            return grpc.ssl_server_certificate_configuration(
                [pair], root_certificates=self._trusted
            )

    def _issue(self) -> Issued:
        return make_server_certificate(*self._authority, [self._host], _CERTIFICATE_DAYS)


class WitnessService:
    """Serves the sites that are admitted in a witness's folder.

    Guarantees: a head is on disk before it is countersigned; a site learns and moves no
    head but its own; a site that is admitted while this runs is served at once.

    Raises:
        UsageError: the configuration cannot be used, or an address cannot be bound.
        IdentityError: a key, a certificate or a card cannot be used.
        LedgerError: the book of heads cannot be opened.
    """

    def __init__(self, folder: WitnessFolder) -> None:
        config = folder.config()
        self._identity = folder.identity()
        self._admission = Admission(folder.admitted)
        tls = _ServerTls(folder, self._admission)
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="witness"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=_CALLS_AT_ONCE + _WAITING,
        )
        methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Newest": grpc.unary_unary_rpc_method_handler(self._served(self._newest)),
            "Countersign": grpc.unary_unary_rpc_method_handler(self._served(self._countersign)),
        }
        handler = grpc.method_handlers_generic_handler(GRPC_SERVICE, methods)
        self._server.add_generic_rpc_handlers((handler,))
        credentials = tls.credentials()
        self.port = bound_port(
            lambda address: self._server.add_secure_port(address, credentials), config.listen
        )
        self.health: HealthServer | None = None
        if config.health_address is not None:
            checks = {LIVE: lambda: True, READY: self._is_ready}
            self.health = HealthServer(config.health_address, checks)
        self._book = Book(folder.heads)

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()
        if self.health is not None:
            self.health.start()

    def stop(self, *, grace_s: float = 5.0) -> None:
        """Take no more calls, let those that run end within `grace_s`, and close the book."""
        if self.health is not None:
            self.health.stop()
        self._server.stop(grace_s).wait()
        self._book.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _newest(self, site: SiteCard, content: bytes) -> Statement:
        request = decoded(NewestRequest, content)
        seen = self._book.newest(site.site)
        return Statement.signed(self._identity, request.nonce, None if seen is None else seen.head)

    def _countersign(self, site: SiteCard, content: bytes) -> Countersignature | Objection:
        head = decoded(CountersignRequest, content).head
        of_the_caller = (head.site, head.public_key) == (site.site, site.public_key)
        if not of_the_caller or not head.is_genuine():
            _log.warning("%s: refused, a head that is not this site's", site.site)
            return Objection.FOREIGN
        self._book.observe(head)
        return Countersignature.signed(self._identity, head)

    def _served(
        self, answer: Callable[[SiteCard, bytes], AnswerT | Objection]
    ) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        """`answer`, for callers who are admitted; whatever goes wrong becomes a fixed code."""

        def serve(content: bytes, context: grpc.ServicerContext) -> bytes:
            site: SiteCard | None = None
            try:
                site = self._caller(context)
                said = Objection.STRANGER if site is None else answer(site, content)
            except WireError as error:
                said = Objection.MESSAGE
                _log.warning("%s: refused, %s", site and site.site, error)
            except LedgerError as error:
                said = Objection.CONTRADICTION
                _log.warning("%s: refused, %s", site and site.site, error)
            except Exception:
                said = Objection.INTERNAL
                _log.exception("%s: failed", site and site.site)
            if isinstance(said, Objection):
                context.abort(_STATUS[said], said.value)
            return encoded(said)

        return serve

    def _caller(self, context: grpc.ServicerContext) -> SiteCard | None:
        shown = context.auth_context().get("x509_pem_cert", b"")
        certificate = shown if isinstance(shown, bytes) else b"".join(shown)
        return self._admission.site_of(certificate) if certificate else None

    def _is_ready(self) -> bool:
        """Whether a site that asked now would be answered: its card read, its head kept."""
        self._admission.cards()
        self._book.require_writable()
        return True
