"""Who stands for a report: signatures over its canonical JSON.

    report.json   the canonical JSON of {"report": …, "signatures": […]}

A signature is Ed25519, for this one purpose, over the SHA-256 of the canonical JSON of the
report alone. It shows that no character was changed since. Who signed is shown by the
public key alone: compare it with one that you got from the signer by another way.
"""

import hashlib
import json
from typing import Self

from pydantic import Field, ValidationError, model_validator

from tacit_common.errors import UsageError
from tacit_common.identity import Identity, is_signed
from tacit_common.report.claims import Signature
from tacit_common.report.parts import Part
from tacit_common.report.schema import SCHEMA_VERSION, Report

_REPORT = "report"  # the domain of signatures over reports


class SignedReport(Part):
    """A report and the signatures under it. They may be wrong: see `is_genuine`."""

    report: Report
    signatures: tuple[Signature, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _signed_once(self) -> Self:
        if len({signature.public_key for signature in self.signatures}) < len(self.signatures):
            raise ValueError("one key signs a report once")
        return self

    def canonical_json(self) -> str:
        """Sorted keys, no spaces, ASCII: equal documents give the same bytes."""
        document = self.model_dump(mode="json")
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def is_genuine(self, signature: Signature) -> bool:
        """Whether the holder of `signature.public_key` signed this very report."""
        message = _message(self.report)
        return is_signed(signature.public_key, _REPORT, message, signature.signature)


def sign_report(report: Report, identity: Identity) -> SignedReport:
    """The report, signed by the coordinator that `identity` is the key of."""
    signature = Signature(
        signer="coordinator",
        public_key=identity.public_key,
        signature=identity.sign(_REPORT, _message(report)),
    )
    return SignedReport(report=report, signatures=(signature,))


def parse_signed_report(text: str, *, source: str = "report.json") -> SignedReport:
    """Read what `SignedReport.canonical_json` wrote. Does not check the signatures.

    Raises:
        UsageError: it is not a signed report of this version, or it contradicts itself.
    """
    try:
        return SignedReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise UsageError(
            f"{source} is not a signed report of schema version {SCHEMA_VERSION}",
            why=f"{place}: {first['msg'].removeprefix('Value error, ')}",
            fix="read it with the Tacit version that wrote it, or write the report anew",
        ) from None


def fingerprint(public_key: str) -> str:
    """The first 128 bits of the SHA-256 of a key, in groups of four, to read out aloud."""
    digest = hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]
    return " ".join(digest[i : i + 4] for i in range(0, len(digest), 4))


def _message(report: Report) -> bytes:
    return bytes.fromhex(report.digest())
