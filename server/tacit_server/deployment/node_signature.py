"""Whether a request comes from a node whose key is enrolled, before its body is read.

A node of Flower signs the time with its key and sends key, time and signature as headers.
Flower's SuperLink checks them too, but only after it has read and parsed the whole body.
"""

from base64 import b64decode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

IsEnrolled = Callable[[str], bool]
"""Whether a `flwr-public-key` header, Base64 of a PEM key, is that of an enrolled site."""

# The same window as Flower's: five minutes, and five seconds for clocks that differ.
_OLDEST = timedelta(seconds=305)
_NEWEST = timedelta(seconds=5)


def is_signed_now(public_key: str, timestamp: str, signature: str, *, now: datetime) -> bool:
    """Whether `signature` is that of `public_key` under `timestamp`, and the time is now.

    Guarantees: true only for an ECDSA signature (SHA-256) over the very text of the
    timestamp, at most 305 s old and 5 s early. Whatever cannot be parsed is signed by nobody.
    """
    try:
        key = load_pem_public_key(b64decode(public_key, validate=True))
        if not isinstance(key, EllipticCurvePublicKey):
            return False
        signed_at = datetime.fromisoformat(timestamp)
        if signed_at.tzinfo is None or not -_NEWEST < now.astimezone(UTC) - signed_at < _OLDEST:
            return False
        key.verify(b64decode(signature, validate=True), timestamp.encode("ascii"), ECDSA(SHA256()))
    except (ValueError, OverflowError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True
