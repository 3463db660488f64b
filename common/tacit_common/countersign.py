"""A witness: an independent party that countersigns where a site's ledger stands.

    site ── NewestRequest ──────► witness ── Statement ─────────► site   before any work
    site ── CountersignRequest ─► witness ── Countersignature ──► site   before a reply leaves

A ledger that is behind the witnessed head was restored from a backup, and what it had spent
since would be spent again: `Ledger.require_not_behind` refuses. Everything that a witness
says is signed with the key on its card. A site that cannot ask its witness does no work.

The messages are JSON over gRPC with mutual TLS. A witness learns a site's name, its keys,
how many rows its ledger has and when; nothing of what they say. It sees heads, not the rows
between two of them: that a ledger never parted there is the word of the site's own agent,
which asks before every request.
"""

import secrets
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import grpc
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tacit_common.enrolment import Address, HandedFile, Pem, SiteName, fingerprint, read_handed
from tacit_common.errors import LedgerError, WireError
from tacit_common.identity import Identity, is_signed
from tacit_common.ledger_chain import Hex64, Signature, SignedHead

GRPC_SERVICE = "tacit.witness.v1.Witness"
LONGEST_MESSAGE = 16 * 1024

_COUNTERSIGNATURE, _STATEMENT = "witness countersignature", "witness statement"  # domains
_UNSIGNED = "0" * 128
_LARGEST_SEQ = 2**53  # beyond it JSON readers disagree


# --- the file that a witness hands to sites ------------------------------------------------


class WitnessCard(HandedFile):
    """What a site needs to know of a witness: `witness.json`."""

    witness: SiteName = Field(description="The witness's name, for people.")
    address: Address = Field(description="host:port of the witness.")
    public_key: Hex64 = Field(description="Ed25519 key that signs everything it says.")
    ca_certificate: Pem = Field(description="Signs its TLS certificate; trust no other.")

    @property
    def fingerprint(self) -> str:
        """What two people compare: it covers the key, the address and the certificate."""
        return fingerprint(self.model_dump_json().encode())


def read_witness_card(path: Path) -> WitnessCard:
    """The card in a file.

    Raises:
        UsageError: there is no such file, or it is no card of a witness.
    """
    return read_handed(WitnessCard, path, "a witness's card", "witness.json from the witness")


# --- messages ------------------------------------------------------------------------------


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1


class NewestRequest(_Message):
    """Where does my ledger stand, as far as you have seen?"""

    nonce: Hex64 = Field(description="New for each question, so that no old answer fits.")


def _storable(head: SignedHead) -> SignedHead:
    if head.seq > _LARGEST_SEQ:
        raise ValueError("no ledger has so many rows")
    return head


class CountersignRequest(_Message):
    """My ledger stands here: sign that you have seen it."""

    head: Annotated[SignedHead, AfterValidator(_storable)]


class _Signed(_Message):
    witness: Hex64 = Field(description="Ed25519 key of the witness.")
    signature: Signature

    def _signed_part(self) -> bytes:
        return self.model_dump_json(exclude={"signature"}).encode()


class Statement(_Signed):
    """The newest head that the witness has seen of one site, in answer to one question."""

    nonce: Hex64
    head: SignedHead | None

    @classmethod
    def signed(cls, identity: Identity, nonce: str, head: SignedHead | None) -> Self:
        """The statement of the witness whose identity this is."""
        said = cls(witness=identity.public_key, signature=_UNSIGNED, nonce=nonce, head=head)
        return said.model_copy(update={"signature": identity.sign(_STATEMENT, said._signed_part())})

    def answers(self, nonce: str, *, witness: str) -> bool:
        """Whether the witness with this public key gave it in answer to this question."""
        return (self.witness, self.nonce) == (witness, nonce) and is_signed(
            witness, _STATEMENT, self._signed_part(), self.signature
        )


class Countersignature(_Signed):
    """The witness has seen this head, and none of that ledger that contradicts it."""

    head: SignedHead

    @classmethod
    def signed(cls, identity: Identity, head: SignedHead) -> Self:
        """The countersignature of the witness whose identity this is."""
        said = cls(witness=identity.public_key, signature=_UNSIGNED, head=head)
        signature = identity.sign(_COUNTERSIGNATURE, said._signed_part())
        return said.model_copy(update={"signature": signature})

    def is_of(self, head: SignedHead, *, witness: str) -> bool:
        """Whether the witness with this public key countersigned exactly this head."""
        return (self.witness, self.head) == (witness, head) and is_signed(
            witness, _COUNTERSIGNATURE, self._signed_part(), self.signature
        )


class Objection(StrEnum):
    """Why a witness did not do what it was asked: all that it says about it."""

    STRANGER = "stranger"  # nobody admitted the caller's certificate, or it has expired
    FOREIGN = "foreign"  # the head is another site's, or not signed with the admitted key
    CONTRADICTION = "contradiction"  # the ledger was rolled back or forked
    MESSAGE = "message"  # the message is malformed or of another version
    INTERNAL = "internal"  # anything else; details stay with the witness


MessageT = TypeVar("MessageT", bound=_Message)


def encoded(message: _Message) -> bytes:
    """A message as it travels."""
    return message.model_dump_json().encode()


def decoded(kind: type[MessageT], content: bytes) -> MessageT:
    """The message that these bytes are.

    Raises:
        WireError: they are none of that kind and version.
    """
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        raise WireError(
            f"a message of {len(content)} bytes is not understood",
            why=f"it is no {kind.__name__} of this version",
            fix="use the same version of Tacit at the site and at its witness",
        ) from None


# --- the site's side -----------------------------------------------------------------------


class WitnessClient:
    """Asks a witness. Every call is a connection of its own, so none can be stale.

    Args:
        address: host:port of the witness.
        ca_certificate: PEM of the authority that signs the witness's certificate.
        client_certificate: PEM of the site's own certificate, on its card.
        client_key: PEM of that certificate's key.
        witness_public_key: The key that has to sign every answer.
        timeout_s: How long to wait. A witness that is started again meanwhile answers.
    """

    def __init__(
        self,
        address: str,
        ca_certificate: bytes,
        client_certificate: bytes,
        client_key: bytes,
        witness_public_key: str,
        timeout_s: float = 10.0,
    ) -> None:
        self._address = address
        self._credentials = grpc.ssl_channel_credentials(
            ca_certificate, client_key, client_certificate
        )
        self._witness = witness_public_key
        self._timeout_s = timeout_s

    def newest(self) -> SignedHead | None:
        """The newest head that the witness has seen of this site; None if it saw none.

        Raises:
            LedgerError: it cannot be reached, objects, or its answer is not signed.
        """
        nonce = secrets.token_hex(32)
        said = self._ask("Newest", NewestRequest(nonce=nonce), Statement)
        if not said.answers(nonce, witness=self._witness):
            raise _untrusted("its statement is not signed by the key on its card")
        return said.head

    def countersign(self, head: SignedHead) -> Countersignature:
        """The witness's signature under a head, which it then remembers.

        Raises:
            LedgerError: it cannot be reached, objects, or its answer is not signed.
        """
        said = self._ask("Countersign", CountersignRequest(head=head), Countersignature)
        if not said.is_of(head, witness=self._witness):
            raise _untrusted("its countersignature is not that of the key on its card")
        return said

    def _ask(self, method: str, request: _Message, answer: type[MessageT]) -> MessageT:
        with grpc.secure_channel(self._address, self._credentials, _CHANNEL_OPTIONS) as channel:
            call = channel.unary_unary(f"/{GRPC_SERVICE}/{method}", encoded, bytes)
            try:
                content = call(request, timeout=self._timeout_s, wait_for_ready=True)
            except grpc.RpcError as error:
                raise self._refusal(error.code(), error.details() or "") from None
        try:
            return decoded(answer, content)
        except WireError as error:
            raise LedgerError(_NO_WORD, why=error.why, fix=error.fix) from None

    def _refusal(self, code: grpc.StatusCode, details: str) -> LedgerError:
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return LedgerError(
                "the witness of the ledger cannot be asked",
                why=f"no witness at {self._address} took this site's certificate and answered "
                f"within {self._timeout_s:g} s",
                fix="start the witness, check its address and the dates of both certificates, "
                "and let its operator admit this site's card",
            )
        why, fix = _OBJECTIONS.get(details, _OBJECTIONS[Objection.INTERNAL])
        return LedgerError("the witness of the ledger objects", why=why, fix=fix)


_NO_WORD = "the witness of the ledger cannot be believed"

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a proxy from the environment is nobody's configuration
    ("grpc.service_config_disable_resolution", 1),  # no question to DNS but the address
    ("grpc.use_local_subchannel_pool", 1),  # nothing is shared with an earlier connection
    ("grpc.max_receive_message_length", LONGEST_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
)

_OBJECTIONS: dict[str, tuple[str, str]] = {
    Objection.STRANGER: (
        "the witness has not admitted this site's certificate, or it has expired",
        "send this site's card to the witness's operator: tacit witness admit DIR CARD",
    ),
    Objection.FOREIGN: (
        "the witness knows this site by another name or key",
        "use the site's own key and ledger, or let the witness admit its present card",
    ),
    Objection.CONTRADICTION: (
        "the witness has seen a newer or another row of this ledger: it was rolled back or forked",
        "restore the newest ledger; `tacit witness log DIR` shows the witness's operator more",
    ),
    Objection.MESSAGE: (
        "the witness does not understand the message",
        "use the same version of Tacit at the site and at its witness",
    ),
    Objection.INTERNAL: (
        "the witness failed",
        "ask the witness's operator for what its log says",
    ),
}


def _untrusted(why: str) -> LedgerError:
    return LedgerError(
        _NO_WORD,
        why=why,
        fix="compare the fingerprint of witness.json with the witness's operator by telephone",
    )
