"""An identity: one key, kept secret, whose signatures mean one thing each."""

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tacit_common.errors import IdentityError
from tacit_common.identity import Identity, is_signed, write_private_once

# RFC 8032, section 7.1, test 1: the private key and its public key.
RFC_PRIVATE = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
RFC_PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"


def test_a_public_key_is_that_of_rfc_8032() -> None:
    assert Identity(Ed25519PrivateKey.from_private_bytes(RFC_PRIVATE)).public_key == RFC_PUBLIC


def test_a_signature_holds_for_its_key_its_domain_and_its_message_alone() -> None:
    mine, other = Identity.create(), Identity.create()
    signature = mine.sign("ledger head", b"message")
    assert is_signed(mine.public_key, "ledger head", b"message", signature)
    assert not is_signed(other.public_key, "ledger head", b"message", signature)
    assert not is_signed(mine.public_key, "report", b"message", signature)
    assert not is_signed(mine.public_key, "ledger head", b"Message", signature)
    assert not is_signed(mine.public_key, "ledger head", b"message", other.sign("x", b"message"))


def test_a_domain_cannot_be_shifted_into_the_message() -> None:
    mine = Identity.create()
    assert not is_signed(mine.public_key, "ledger", b"head\nm", mine.sign("ledger head", b"m"))


@pytest.mark.parametrize("signature", ["", "zz", "00" * 63, "00" * 64, "ff" * 64])
def test_malformed_signatures_are_signatures_of_nobody(signature: str) -> None:
    assert not is_signed(RFC_PUBLIC, "d", b"m", signature)


@pytest.mark.parametrize("key", ["", "zz", "00" * 31, "00" * 33])
def test_malformed_keys_have_signed_nothing(key: str) -> None:
    assert not is_signed(key, "d", b"m", Identity.create().sign("d", b"m"))


def test_a_key_is_made_once_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "site" / "key"
    first = Identity.load_or_create(path)
    assert Identity.load_or_create(path).public_key == first.public_key
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(path.read_bytes()) == 32
    assert [file.name for file in path.parent.iterdir()] == ["key"]  # no draft is left behind


def test_of_processes_that_start_at_once_one_key_stays(tmp_path: Path) -> None:
    path = tmp_path / "key"
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            key = Identity.load_or_create(path).public_key
            (tmp_path / f"found-{os.getpid()}").write_text(key)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6
    found = {file.read_text() for file in tmp_path.glob("found-*")}
    assert found == {Identity.load_or_create(path).public_key}


def test_a_file_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_private_once(path, b"first")
    write_private_once(path, b"second")
    assert path.read_bytes() == b"first"


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    Identity.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="not secret"):
        Identity.load_or_create(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    write_private_once(path, content)
    with pytest.raises(IdentityError, match="not a key"):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_written_is_an_identity_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(IdentityError, match="cannot be used"):
        Identity.load_or_create(tmp_path / "file" / "key")


def test_secrets_are_lasting_and_apart_for_each_purpose_and_key() -> None:
    mine = Identity(Ed25519PrivateKey.from_private_bytes(RFC_PRIVATE))
    again = Identity(Ed25519PrivateKey.from_private_bytes(RFC_PRIVATE))
    assert mine.secret("atom tags") == again.secret("atom tags")
    assert len(mine.secret("atom tags")) == 32
    secrets = {mine.secret("atom tags"), mine.secret("other"), Identity.create().secret("other")}
    assert len(secrets) == 3


def test_the_umask_is_put_back(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_private_once(tmp_path / "key", b"x")
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
