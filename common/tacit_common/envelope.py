"""Signed messages: who says it, to whom, in which order, and in answer to what.

Flower's node authentication signs a time of day, not a message, and whoever runs the
server's machine can put words into its mouth. So both sides sign: the coordinator every
request, with a session and a number that only grows; the site every answer, over the
request that it answers. Each side knows the other's key from before (see `enrolment`).

What is signed is the digest of the whole content: run, round, study, parameters and
ledger head (see `wire.content_sha256`).
"""

import hashlib
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import IdentityError
from tacit_common.identity import Identity, is_signed
from tacit_common.ledger_chain import Hex64, Signature

_REQUEST, _ANSWER = "request", "answer"  # domains of signatures


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sender: Hex64 = Field(description="Ed25519 key that signed.")
    content_sha256: Hex64
    signature: Signature

    def signed_part(self) -> bytes:
        """Everything but the signature, in the order of the fields."""
        return self.model_dump_json(exclude={"signature"}).encode()


class RequestEnvelope(_Envelope):
    """Around a request: from the coordinator to one site, once."""

    recipient: Hex64 = Field(description="Ed25519 key of the site that it is for.")
    session: str = Field(pattern=r"^[0-9a-f]{32}$", description="One life of the coordinator.")
    sequence: int = Field(ge=1, le=2**53, description="Grows from request to request to one site.")

    @property
    def digest(self) -> str:
        """What an answer names."""
        return hashlib.sha256(self.signed_part()).hexdigest()


class AnswerEnvelope(_Envelope):
    """Around an answer: from a site, to one request."""

    request: Hex64 = Field(description="`RequestEnvelope.digest` of what is answered.")


class RequestSeal:
    """Signs a coordinator's requests, and knows a site's answers to them."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._session = uuid4().hex
        self._sent: dict[str, int] = {}

    def seal(self, content_sha256: str, *, recipient: str) -> RequestEnvelope:
        """The envelope of the next request to a site."""
        self._sent[recipient] = self._sent.get(recipient, 0) + 1
        envelope = RequestEnvelope(
            sender=self._identity.public_key,
            content_sha256=content_sha256,
            signature="0" * 128,
            recipient=recipient,
            session=self._session,
            sequence=self._sent[recipient],
        )
        signature = self._identity.sign(_REQUEST, envelope.signed_part())
        return envelope.model_copy(update={"signature": signature})


def require_request(
    envelope: RequestEnvelope, content_sha256: str, *, coordinator: str, site: str
) -> None:
    """Raises IdentityError unless the coordinator sent exactly this content to this site.

    Whether it was sent before is the caller's to know: it needs a memory that survives.
    """
    if envelope.sender != coordinator:
        raise _untrusted("a request", "another key than the coordinator's signed it")
    if envelope.recipient != site:
        raise _untrusted("a request", "it was made for another site")
    _require_signed("a request", _REQUEST, envelope, content_sha256)


def seal_answer(
    identity: Identity, content_sha256: str, request: RequestEnvelope
) -> AnswerEnvelope:
    """The envelope of a site's answer to `request`."""
    envelope = AnswerEnvelope(
        sender=identity.public_key,
        content_sha256=content_sha256,
        signature="0" * 128,
        request=request.digest,
    )
    signature = identity.sign(_ANSWER, envelope.signed_part())
    return envelope.model_copy(update={"signature": signature})


def require_answer(
    envelope: AnswerEnvelope, content_sha256: str, *, request: RequestEnvelope
) -> None:
    """Raises IdentityError unless the site that was asked gave exactly this answer."""
    if envelope.sender != request.recipient:
        raise _untrusted("an answer", "another key than the asked site's signed it")
    if envelope.request != request.digest:
        raise _untrusted("an answer", "it answers another request")
    _require_signed("an answer", _ANSWER, envelope, content_sha256)


def _require_signed(what: str, domain: str, envelope: _Envelope, content_sha256: str) -> None:
    if envelope.content_sha256 != content_sha256:
        raise _untrusted(what, "its content is not what was signed")
    if not is_signed(envelope.sender, domain, envelope.signed_part(), envelope.signature):
        raise _untrusted(what, "its signature does not hold")


def _untrusted(what: str, why: str) -> IdentityError:
    return IdentityError(
        f"{what} cannot be trusted",
        why=why,
        fix="compare the fingerprints of both sides' keys; somebody may sit in between",
    )
