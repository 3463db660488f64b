"""What people hand each other: a card or an invitation that was changed on the way is noticed."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.certificates import make_ca
from tacit_common.enrolment import (
    Invitation,
    SiteCard,
    fingerprint,
    read_invitation,
    read_site_card,
)
from tacit_common.errors import IdentityError, UsageError
from tacit_common.identity import Identity

PEM = make_ca("clinic").certificate.decode()
KEY = "ecdsa-sha2-nistp384 AAAA clinic"
SITE = Identity.create()
CARD = SiteCard.signed(SITE, site="clinic", node_key=KEY, witness_certificate=PEM)
INVITATION = Invitation(
    coordinator="hub",
    address="tacit.example.org:9443",
    public_key=Identity.create().public_key,
    ca_certificate=PEM,
)
OTHER: dict[str, str] = {
    "site": "clinic-2",
    "public_key": Identity.create().public_key,
    "node_key": "ecdsa-sha2-nistp384 AAAB clinic",
    "witness_certificate": make_ca("other").certificate.decode(),
    "signature": "0" * 128,
}


def test_a_card_and_an_invitation_are_read_as_they_were_written(tmp_path: Path) -> None:
    CARD.write(tmp_path / "clinic.site.json")
    INVITATION.write(tmp_path / "invitation.json")
    assert read_site_card(tmp_path / "clinic.site.json") == CARD
    assert read_invitation(tmp_path / "invitation.json") == INVITATION


@pytest.mark.parametrize("field", OTHER)
def test_a_card_of_which_one_field_was_changed_on_the_way_is_refused(
    tmp_path: Path, field: str
) -> None:
    path = tmp_path / "clinic.site.json"
    CARD.model_copy(update={field: OTHER[field]}).write(path)
    with pytest.raises(IdentityError, match="changed on the way"):
        read_site_card(path)


def test_every_field_of_a_card_but_its_format_was_changed() -> None:
    assert set(SiteCard.model_fields) - set(OTHER) == {"format"}


def test_a_card_that_somebody_else_made_in_a_site_s_name_has_another_fingerprint() -> None:
    """It is genuine in itself: only the telephone tells."""
    theirs = SiteCard.signed(
        Identity.create(), site="clinic", node_key=KEY, witness_certificate=PEM
    )
    theirs.require_genuine()
    assert theirs.fingerprint != CARD.fingerprint


def test_the_fingerprint_that_was_read_out_is_accepted_as_people_write_it() -> None:
    for written in (CARD.fingerprint, f" {CARD.fingerprint.upper()}\n"):
        CARD.require_fingerprint(written)


@pytest.mark.parametrize(
    "written", ["", "0000-0000-0000-0000-0000", "a\u2013b", "\u0660", "x" * 10_000]
)
def test_another_fingerprint_is_refused_whatever_was_written(written: str) -> None:
    with pytest.raises(IdentityError, match="is not the one that its operator has"):
        CARD.require_fingerprint(written)


@pytest.mark.parametrize("field", [name for name in OTHER if name != "signature"])
def test_a_card_s_fingerprint_covers_every_field(field: str) -> None:
    assert CARD.model_copy(update={field: OTHER[field]}).fingerprint != CARD.fingerprint


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("coordinator", "hub-2"),
        ("address", "tacit.example.com:9443"),
        ("public_key", OTHER["public_key"]),
        ("ca_certificate", OTHER["witness_certificate"]),
    ],
)
def test_an_invitation_s_fingerprint_covers_every_field(field: str, value: str) -> None:
    assert INVITATION.model_copy(update={field: value}).fingerprint != INVITATION.fingerprint


@given(content=st.binary(max_size=50), other=st.binary(max_size=50))
def test_a_fingerprint_can_be_read_aloud_and_tells_contents_apart(
    content: bytes, other: bytes
) -> None:
    assert [len(part) for part in fingerprint(content).split("-")] == [4] * 5
    assert (fingerprint(content) == fingerprint(other)) == (content == other)


BAD = {
    "empty": "",
    "no JSON": "clinic",
    "of another kind": INVITATION.model_dump_json(),
    "one more field": json.dumps({**CARD.model_dump(), "note": "x"}),
    "of another format": json.dumps({**CARD.model_dump(), "format": 2}),
    "with a name that leaves the folder": json.dumps({**CARD.model_dump(), "site": "../clinic"}),
    "too long": " " * 70_000 + CARD.model_dump_json(),
    "deep": "[" * 60_000,
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_card_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    path = tmp_path / "clinic.site.json"
    path.write_text(BAD[name])
    with pytest.raises(UsageError, match="is not a site's card") as refused:
        read_site_card(path)
    assert "NAME.site.json" in refused.value.fix


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'clinic\.site\.json' cannot be read"):
        read_site_card(tmp_path / "clinic.site.json")


@pytest.mark.parametrize(
    "address",
    [
        "tacit.example.org",
        "tacit.example.org:",
        ":9443",
        "http://a:1",
        "a b:1",
        "a:1\n",
        "a:123456",
    ],
)
def test_an_invitation_to_something_that_is_no_address_is_refused(
    tmp_path: Path, address: str
) -> None:
    path = tmp_path / "invitation.json"
    path.write_text(json.dumps({**INVITATION.model_dump(), "address": address}))
    with pytest.raises(UsageError, match="is not an invitation"):
        read_invitation(path)
