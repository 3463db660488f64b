"""How the processes of a server are started, and how one sees what is wrong with them."""

import asyncio
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.server.deployment.gateway_case import Authority, Gateway

from tacit_server.deployment.claim import MARK
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.parts import (
    NO_ANSWER,
    environment_of,
    parts_of,
    superlink_command,
)

CONFIG = ServerConfig(name="test", address="127.0.0.1:9443", superlink_port=9092)
StartGateway = Callable[..., Gateway]


def troubles(authority: Authority, *, superlink: int, gateway: int) -> list[str | None]:
    """What the supervisor sees of SuperLink, executor and gateway at these ports."""
    folder = ServerFolder(authority.folder)
    folder.tls.mkdir(exist_ok=True)
    folder.ca_certificate.write_bytes(authority.ca.certificate)
    address = f"127.0.0.1:{gateway}"
    config = CONFIG.model_copy(
        update={"address": address, "listen": address, "superlink_port": superlink}
    )

    async def ask() -> list[str | None]:
        found = [await part.trouble() for part in parts_of(folder, config)]
        await asyncio.sleep(0.05)  # asyncio closes a connection whose handshake failed later
        return found

    return asyncio.run(ask())


def test_what_answers_is_in_no_trouble(start_gateway: StartGateway, authority: Authority) -> None:
    running = start_gateway()
    found = troubles(authority, superlink=running.superlink_port, gateway=running.port)
    assert found == [None, NO_ANSWER, None]
    assert running.lines == []  # looking leaves no trace in the gateway's log


def test_what_is_not_there_does_not_answer(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert troubles(authority, superlink=port, gateway=port) == [NO_ANSWER] * 3


def test_a_superlink_without_its_database_is_in_trouble(
    start_gateway: StartGateway, authority: Authority
) -> None:
    running = start_gateway()
    running.superlink.status = 500
    found = troubles(authority, superlink=running.superlink_port, gateway=running.port)
    assert found[0] == "answers with HTTP status 500"
    assert [seen.path for seen in running.superlink.seen] == ["/v1/control/list-nodes"]


def test_a_gateway_with_an_expired_certificate_is_in_trouble(
    start_gateway: StartGateway, authority: Authority
) -> None:
    authority.issue(age_days=5)
    running = start_gateway()
    found = troubles(authority, superlink=running.superlink_port, gateway=running.port)
    assert found[2] == "its certificate is not valid: certificate has expired"


def test_the_superlink_starts_with_everything_closed(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    command = superlink_command(folder, CONFIG)
    assert command[1:5] == ("--host", "127.0.0.1", "--port", "9092")
    assert {"--enable-supernode-auth", "--disable-runtime-dependency-installation"} < {*command}
    assert command[command.index("--isolation") + 1] == "process"
    secret = command[command.index("--superexec-auth-secret-file") + 1]
    assert secret == str(folder.superexec_secret)
    assert "--insecure" not in command
    known = subprocess.run([command[0], "--help"], capture_output=True, text=True, check=True)
    for option in (word for word in command if word.startswith("--")):
        assert option in known.stdout


def test_no_setting_of_flowers_and_no_proxy_is_inherited(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    found = environment_of(
        folder,
        {
            "PATH": "/bin",
            "FLWR_TELEMETRY_ENABLED": "1",
            "FLWR_INTERNAL_GRPC_FLEET_API": "1",
            "FLWR_DATABASE": "elsewhere",
            "https_proxy": "http://elsewhere.example",
            "ALL_PROXY": "http://elsewhere.example",
            "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere.example",
        },
    )
    assert found == {
        "PATH": "/bin",
        "PYTHONUNBUFFERED": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(folder.flower_home),
        MARK: str(folder.path),
    }
