"""`tacit server init` makes all that a coordinator needs, once, and for its owner alone."""

import os
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from typer.testing import CliRunner

from tacit_common.enrolment import read_invitation
from tacit_common.errors import UsageError
from tacit_server.cli import server_app
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.init import Prepared, init_server, next_steps

CONFIG = ServerConfig(name="hub", address="tacit.example.org:9443")


class KilledError(BaseException):
    """Stands in for kill -9: no code of ours catches it."""


def kill_at_write(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die right before file `number` gets its name."""
    replace, link, seen = Path.replace, os.link, iter(range(1000))

    def dying_replace(self: Path, target: Path) -> Path:
        if next(seen) == number:
            raise KilledError
        return replace(self, target)

    def dying_link(source: Path, target: Path) -> None:
        if next(seen) == number:
            raise KilledError
        link(source, target)

    monkeypatch.setattr(Path, "replace", dying_replace)
    monkeypatch.setattr(os, "link", dying_link)


def init(path: Path) -> Prepared:
    return init_server(path, CONFIG, days=30)


def files_in(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def test_the_invitation_names_the_key_the_address_and_the_authority(tmp_path: Path) -> None:
    made = init(tmp_path / "hub")
    invitation = read_invitation(made.folder.invitation)
    assert invitation == made.invitation
    assert invitation.public_key == made.folder.identity().public_key
    assert invitation.address == CONFIG.address
    assert invitation.ca_certificate == made.folder.ca_certificate.read_text()


def test_one_certificate_serves_the_public_host_and_loopback(tmp_path: Path) -> None:
    folder = init(tmp_path / "hub").folder
    certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["tacit.example.org", "localhost"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    authority = x509.load_pem_x509_certificate(folder.ca_certificate.read_bytes())
    certificate.verify_directly_issued_by(authority)


def test_everything_is_its_owners_alone(tmp_path: Path) -> None:
    previous = os.umask(0)  # the laxest that a user may have
    try:
        folder = init(tmp_path / "hub").folder
    finally:
        os.umask(previous)
    everything = [folder.path, *folder.path.rglob("*")]
    assert len(everything) > 12
    lax = [p.name for p in everything if not p.is_symlink() and p.stat().st_mode & 0o077]
    assert lax == []


def test_no_two_coordinators_share_a_secret(tmp_path: Path) -> None:
    one, two = init(tmp_path / "one").folder, init(tmp_path / "two").folder
    for secret in ("identity_key", "ca_key", "server_key", "superexec_secret"):
        first: Path = getattr(one, secret)
        second: Path = getattr(two, secret)
        assert first.read_bytes() != second.read_bytes()
    assert len(one.superexec_secret.read_bytes()) == 32


def test_a_second_init_touches_nothing(tmp_path: Path) -> None:
    init(tmp_path / "hub")
    before = files_in(tmp_path)
    with pytest.raises(UsageError, match="is taken"):
        init(tmp_path / "hub")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("stranger", ["letters.txt", "site.toml", "ledger.db"])
def test_a_folder_with_other_things_in_it_is_left_alone(stranger: str, tmp_path: Path) -> None:
    (tmp_path / stranger).write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        init(tmp_path)
    assert files_in(tmp_path) == {str(tmp_path / stranger): b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("mine")
    with pytest.raises(UsageError):
        init(tmp_path / "hub")


def test_an_init_that_was_killed_anywhere_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survived = 0
    for number in range(100):
        path = tmp_path / str(number)
        with monkeypatch.context() as patch:
            kill_at_write(number, patch)
            try:
                init(path)
            except KilledError:
                survived += 1
                assert not (path / "server.toml").exists()
            else:
                break
        key = path / "coordinator.key"
        early = key.read_bytes() if key.exists() else None
        folder = ServerFolder.open(init(path).folder.path)
        assert early in (None, key.read_bytes())
        assert read_invitation(folder.invitation).public_key == folder.identity().public_key
        authority = x509.load_pem_x509_certificate(folder.ca_certificate.read_bytes())
        certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
        certificate.verify_directly_issued_by(authority)
    assert survived >= 10


def test_the_service_files_start_this_server(tmp_path: Path) -> None:
    folder = init(tmp_path / "hub").folder
    unit = (folder.service / "tacit-server.service").read_text()
    assert f'"server" "run" "{folder.path}"' in unit
    (service,) = yaml.safe_load((folder.service / "compose.yaml").read_text())["services"].values()
    assert service["command"] == ["server", "run", str(folder.path)]
    assert service["ports"] == ["9443:9443"]


def test_what_comes_next_names_the_fingerprint_and_three_commands(tmp_path: Path) -> None:
    made = init(tmp_path / "hub")
    said = next_steps(made)
    assert made.invitation.fingerprint in said
    for command in ("tacit server run", "tacit server enroll", "tacit server renew"):
        assert f"{command} {made.folder.path}" in said


def test_the_command_makes_a_coordinator(tmp_path: Path) -> None:
    path = tmp_path / "hub"
    options = ["--name", "hub", "--address", "127.0.0.1:19443", "--health", "none"]
    done = CliRunner().invoke(server_app, ["init", str(path), *options])
    assert done.exit_code == 0, done.output
    folder = ServerFolder.open(path)
    assert folder.config().health_address is None
    assert read_invitation(folder.invitation).fingerprint in done.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "A Hub", "--address", "a:1"],
        ["--name", "hub", "--address", "no-port"],
        ["--name", "hub", "--address", "a:1", "--health", "x"],
        ["--name", "hub", "--address", "a:1", "--superlink-port", "0"],
    ],
)
def test_wrong_options_make_nothing(options: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(server_app, ["init", str(tmp_path / "hub"), *options])
    assert isinstance(done.exception, UsageError)
    assert not (tmp_path / "hub").exists()
