"""A coordinator's folder: its configuration read with care, its secrets its owner's alone."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.errors import IdentityError, UsageError
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.init import init_server

CONFIG = ServerConfig(name="hub", address="tacit.example.org:9443")
PORTS = st.integers(1, 65535)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    """A new coordinator."""
    return init_server(tmp_path / "hub", CONFIG, days=30).folder


@given(
    port=PORTS,
    listen=PORTS,
    superlink=PORTS,
    health=st.none() | PORTS,
    host=st.sampled_from(["tacit.example.org", "192.0.2.1", "[2001:db8::1]"]),
    message=st.integers(1, 2048),
)
def test_a_configuration_is_read_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    port: int,
    listen: int,
    superlink: int,
    health: int | None,
    host: str,
    message: int,
) -> None:
    config = ServerConfig(
        name="hub",
        address=f"{host}:{port}",
        listen=f"0.0.0.0:{listen}",
        superlink_port=superlink,
        health_address=None if health is None else f"127.0.0.1:{health}",
        largest_message_mb=message,
    )
    path = tmp_path_factory.mktemp("config") / "server.toml"
    config.save(path)
    assert ServerConfig.load(path) == config


def test_every_setting_stands_under_what_it_means(tmp_path: Path) -> None:
    CONFIG.save(tmp_path / "server.toml")
    text = (tmp_path / "server.toml").read_text()
    for name, field in ServerConfig.model_fields.items():
        assert name in text
        assert (field.description or "missing").split(":")[0][:20] in text


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("tacit.example.org:443", "tacit.example.org"),
        ("192.0.2.1:9443", "192.0.2.1"),
        ("[2001:db8::1]:9443", "2001:db8::1"),
    ],
)
def test_the_host_is_the_address_without_its_port(address: str, host: str) -> None:
    assert ServerConfig(name="hub", address=address).host == host


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("listn = '0.0.0.0:1'", "did you mean 'listen'"),
        ("address = 'tacit.example.org'", "'address'"),
        ("address = 'tacit.example.org:0'", "between 1 and 65535"),
        ("address = 'https://tacit.example.org:1'", "'address'"),
        ("name = 'A Hub'", "'name'"),
        ("superlink_port = 70000", "'superlink_port'"),
        ("= 1", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "server.toml"
    CONFIG.save(path)
    key = line.partition(" ")[0]
    kept = [row for row in path.read_text().splitlines() if not row.startswith(f"{key} =")]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(UsageError) as raised:
        ServerConfig.load(path)
    assert said in str(raised.value)


def test_a_folder_without_a_coordinator_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tacit server init"):
        ServerFolder.open(tmp_path)


def test_a_folder_that_was_made_can_be_opened(folder: ServerFolder) -> None:
    again = ServerFolder.open(folder.path)
    assert again.config() == CONFIG
    assert again.identity().public_key == folder.identity().public_key


@pytest.mark.parametrize("name", ["identity_key", "ca_key", "server_key", "superexec_secret"])
@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_secret_that_others_may_read_is_not_used(
    name: str, mode: int, folder: ServerFolder
) -> None:
    secret: Path = getattr(folder, name)
    secret.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        ServerFolder.open(folder.path)


def test_a_folder_that_others_may_enter_is_not_used(folder: ServerFolder) -> None:
    folder.path.chmod(0o755)
    with pytest.raises(IdentityError, match="chmod 700"):
        ServerFolder.open(folder.path)


def test_another_users_folder_is_not_written_into(
    folder: ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: folder.path.stat().st_uid + 1)
    with pytest.raises(UsageError, match="another user's"):
        ServerFolder.open(folder.path)


def test_a_lost_key_is_not_replaced_in_silence(folder: ServerFolder) -> None:
    folder.identity_key.unlink()
    with pytest.raises(IdentityError, match="restore it"):
        folder.identity()
    assert not folder.identity_key.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "x" * 129, "a\n"]
)
def test_a_run_cannot_be_named_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not the name of a run"):
        ServerFolder(tmp_path).run_folder(name)


def test_a_run_has_its_folder_under_runs(tmp_path: Path) -> None:
    assert ServerFolder(tmp_path).run_folder("digits-2") == tmp_path / "runs/digits-2"
