"""Signatures of reports: what is signed, by whom, and for what purpose alone."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from tacit_common.errors import UsageError
from tacit_common.identity import Identity
from tacit_common.report.schema import Report
from tacit_common.report.signing import (
    SignedReport,
    fingerprint,
    parse_signed_report,
    sign_report,
)


@pytest.fixture
def signed(example_report: Callable[..., Report]) -> SignedReport:
    return sign_report(example_report(), Identity.create())


def test_a_signature_is_ed25519_over_the_domain_and_the_hash_of_the_canonical_report(
    example_report: Callable[..., Report],
) -> None:
    identity = Identity.create()
    signature = sign_report(example_report(), identity).signatures[0]
    text = json.dumps(
        example_report().model_dump(mode="json"), sort_keys=True, separators=(",", ":")
    )
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity.public_key))
    message = b"tacit report\n" + hashlib.sha256(text.encode()).digest()
    key.verify(bytes.fromhex(signature.signature), message)  # raises if it is wrong
    assert signature.public_key == identity.public_key


def test_a_signed_report_survives_its_file_byte_for_byte(signed: SignedReport) -> None:
    text = signed.canonical_json()
    again = parse_signed_report(text)
    assert again == signed
    assert again.canonical_json() == text
    assert again.is_genuine(again.signatures[0])


def test_a_signature_of_another_report_is_not_genuine(
    signed: SignedReport, example_report: Callable[..., Report]
) -> None:
    other = SignedReport(report=example_report(rounds_done=3), signatures=signed.signatures)
    assert not other.is_genuine(other.signatures[0])


def test_a_signature_for_another_purpose_is_not_genuine(signed: SignedReport) -> None:
    identity = Identity.create()
    digest = bytes.fromhex(signed.report.digest())
    forged = signed.signatures[0].model_copy(
        update={
            "public_key": identity.public_key,
            "signature": identity.sign("ledger head", digest),
        }
    )
    assert not signed.is_genuine(forged)


def test_a_signature_under_another_key_is_not_genuine(signed: SignedReport) -> None:
    stranger = Identity.create().public_key
    claimed = signed.signatures[0].model_copy(update={"public_key": stranger})
    assert not signed.is_genuine(claimed)


def test_a_report_has_a_signature_and_one_from_each_key(signed: SignedReport) -> None:
    with pytest.raises(ValidationError, match="at least 1"):
        SignedReport(report=signed.report, signatures=())
    with pytest.raises(ValidationError, match="signs a report once"):
        SignedReport(report=signed.report, signatures=signed.signatures * 2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": 1, "signatures": []}'])
def test_what_is_no_signed_report_is_refused_with_its_name(text: str) -> None:
    with pytest.raises(UsageError, match=r"theirs\.json is not a signed report") as refused:
        parse_signed_report(text, source="theirs.json")
    assert refused.value.fix


def test_a_report_without_its_signatures_is_refused(signed: SignedReport) -> None:
    document: dict[str, Any] = json.loads(signed.canonical_json())
    del document["signatures"]
    with pytest.raises(UsageError, match="signatures"):
        parse_signed_report(json.dumps(document))


def test_a_fingerprint_is_short_and_of_one_key() -> None:
    first, second = Identity.create().public_key, Identity.create().public_key
    assert fingerprint(first) == fingerprint(first) != fingerprint(second)
    assert (
        hashlib.sha256(bytes.fromhex(first))
        .hexdigest()
        .startswith(fingerprint(first).replace(" ", ""))
    )
    assert [len(group) for group in fingerprint(first).split()] == [4] * 8
