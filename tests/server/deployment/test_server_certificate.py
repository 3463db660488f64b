"""A certificate is renewed under the same authority, and its key never parts from it."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from tacit_common.certificates import expires_at, make_ca
from tacit_common.errors import IdentityError, UsageError
from tacit_server.cli import server_app
from tacit_server.deployment.certificate import renew_server_certificate
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.init import init_server

HOST = "tacit.example.org"


class KilledError(BaseException):
    """Stands in for kill -9: no code of ours catches it."""


def kill_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die right before file or link `number` gets its name."""
    replace, seen = Path.replace, iter(range(1000))

    def dying(self: Path, target: Path) -> Path:
        if next(seen) == number:
            raise KilledError
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", dying)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """A new coordinator."""
    config = ServerConfig(name="hub", address=f"{HOST}:9443")
    return init_server(tmp_path / "hub", config, days=30).folder


def shake_hands(folder: ServerFolder, host: str) -> None:
    """TLS in memory: a client that believes the folder's authority alone, and its server."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder.server_certificate, folder.server_key)
    client = ssl.create_default_context(cafile=folder.ca_certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("host", [HOST, "localhost", "127.0.0.1"])
def test_a_renewed_certificate_is_believed_at_every_address(
    host: str, folder: ServerFolder
) -> None:
    shake_hands(folder, host)
    old = folder.server_certificate.read_bytes()
    renew_server_certificate(folder, 60)
    assert folder.server_certificate.read_bytes() != old
    shake_hands(folder, host)


def test_a_renewed_certificate_is_believed_nowhere_else(folder: ServerFolder) -> None:
    renew_server_certificate(folder, 60)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(folder, "other.example.org")


def test_renewal_says_when_the_old_and_the_new_one_expire(folder: ServerFolder) -> None:
    renewal = renew_server_certificate(folder, 60)
    now, near = datetime.now(UTC), timedelta(minutes=10)
    assert abs(renewal.old_expires - (now + timedelta(days=30))) < near
    assert abs(renewal.new_expires - (now + timedelta(days=60))) < near
    assert expires_at(folder.server_certificate.read_bytes()) == renewal.new_expires


def test_renewal_leaves_keys_and_invitation_alone(folder: ServerFolder) -> None:
    kept = (folder.ca_certificate, folder.ca_key, folder.identity_key, folder.invitation)
    before = [path.read_bytes() for path in kept]
    renew_server_certificate(folder, 60)
    assert [path.read_bytes() for path in kept] == before


def test_a_renewal_that_is_killed_anywhere_leaves_one_pair(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    survived = 0
    for number in range(20):
        with monkeypatch.context() as patch:
            kill_at_write(number, patch)
            try:
                renew_server_certificate(folder, 60)
            except KilledError:
                survived += 1
            else:
                break
        shake_hands(folder, HOST)  # raises where certificate and key are no pair
    assert survived >= 3


def test_old_keys_do_not_pile_up(folder: ServerFolder) -> None:
    for _ in range(5):
        renew_server_certificate(folder, 60)
    pairs = [path for path in folder.tls.iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(pairs) == 2
    assert all(key.stat().st_mode & 0o077 == 0 for key in folder.tls.rglob("server.key"))


def test_a_certificate_does_not_outlive_its_authority(folder: ServerFolder) -> None:
    before = folder.server_certificate.read_bytes()
    with pytest.raises(IdentityError, match="authority expires"):
        renew_server_certificate(folder, 100_000)
    assert folder.server_certificate.read_bytes() == before


def test_an_authority_that_was_exchanged_signs_nothing(folder: ServerFolder) -> None:
    before = folder.server_certificate.read_bytes()
    folder.ca_key.write_bytes(make_ca("somebody else").key)
    with pytest.raises(IdentityError):
        renew_server_certificate(folder, 60)
    assert folder.server_certificate.read_bytes() == before


@pytest.mark.parametrize("lost", ["ca_certificate", "ca_key"])
def test_a_lost_authority_is_not_replaced_in_silence(lost: str, folder: ServerFolder) -> None:
    path: Path = getattr(folder, lost)
    path.unlink()
    with pytest.raises(IdentityError, match="backup"):
        renew_server_certificate(folder, 60)


@pytest.mark.parametrize("fault", ["lost", "damaged"])
def test_renewal_mends_a_certificate(fault: str, folder: ServerFolder) -> None:
    if fault == "lost":
        folder.server_certificate.unlink()
    else:
        folder.server_certificate.write_bytes(b"no certificate")
    assert renew_server_certificate(folder, 60).old_expires is None
    shake_hands(folder, HOST)


def test_the_command_renews(folder: ServerFolder) -> None:
    done = CliRunner().invoke(server_app, ["renew", str(folder.path), "--days", "60"])
    assert done.exit_code == 0, done.output
    new = expires_at(folder.server_certificate.read_bytes())
    assert f"the new certificate counts until {new:%Y-%m-%d}" in done.output
    certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    assert certificate.not_valid_after_utc == new


def test_no_certificate_for_no_days(folder: ServerFolder) -> None:
    with pytest.raises(UsageError):
        renew_server_certificate(folder, 0)
