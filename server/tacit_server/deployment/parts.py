"""The three processes of a server: how each is started, and how one sees that it works."""

import asyncio
import ssl
import sys
import sysconfig
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tacit_common.errors import TacitError
from tacit_server.deployment import heartbeat
from tacit_server.deployment.claim import MARK
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.loopback import to_superlink

NO_ANSWER = "does not answer"

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Part:
    """One process of a server."""

    name: str
    command: tuple[str, ...]
    trouble: Callable[[], Awaitable[str | None]]
    """What keeps it from working, in words; None if it answers."""
    restarts_with: tuple[Path, ...] = ()
    """Files that it reads at its start only."""
    stop_grace_s: float = 5.0
    forgets: tuple[Path, ...] = ()
    """Files that an earlier process of this kind left, removed before a start."""


def parts_of(folder: ServerFolder, config: ServerConfig) -> tuple[Part, ...]:
    """SuperLink, executor and gateway, in the order in which they start."""
    ours = (sys.executable, "-P", "-m")
    beats = heartbeat_file(folder)

    async def executor_trouble() -> str | None:
        return None if heartbeat.is_beating(beats) else NO_ANSWER

    return (
        Part(
            name="superlink",
            command=superlink_command(folder, config),
            trouble=lambda: _superlink_trouble(folder, config),
            restarts_with=(folder.server_certificate, folder.ca_certificate),
        ),
        Part(
            name="executor",
            command=(*ours, "tacit_server.deployment.executor", str(folder.path)),
            trouble=executor_trouble,
            restarts_with=(folder.ca_certificate,),
            stop_grace_s=8.0,
            forgets=(beats,),
        ),
        Part(
            name="gateway",
            command=(*ours, "tacit_server.deployment.gateway", str(folder.path)),
            trouble=lambda: _gateway_trouble(folder, config),
            restarts_with=(folder.ca_certificate,),
        ),
    )


def heartbeat_file(folder: ServerFolder) -> Path:
    """Where the executor shows that it is at work (heartbeat.py)."""
    return folder.path / ".executor.beat"


def superlink_command(folder: ServerFolder, config: ServerConfig) -> tuple[str, ...]:
    """Flower's SuperLink on loopback, with everything closed that it can close.

    Raises:
        TacitError: Flower's command is not installed.
    """
    program = Path(sysconfig.get_path("scripts"), "flower-superlink")
    if not program.is_file():
        raise TacitError(
            "the SuperLink cannot be started",
            why="Flower's command flower-superlink is not installed beside this Python",
            fix="install Tacit anew, with its dependencies",
        )
    return (
        str(program),
        *("--host", "127.0.0.1", "--port", str(config.superlink_port)),
        *("--ssl-ca-certfile", str(folder.ca_certificate)),
        *("--ssl-certfile", str(folder.server_certificate)),
        *("--ssl-keyfile", str(folder.server_key)),
        "--enable-supernode-auth",
        *("--database", str(folder.superlink_database)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(folder.superexec_secret)),
        "--disable-runtime-dependency-installation",
    )


def environment_of(folder: ServerFolder, inherited: Mapping[str, str]) -> dict[str, str]:
    """The variables of every child.

    Guarantees: no setting of Flower's and no proxy comes from outside; Flower sends no
    telemetry, looks for no update and installs nothing.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.upper().startswith(("FLWR_", "OTEL_")) and not name.lower().endswith("_proxy")
    }
    return {
        **kept,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(folder.flower_home),
        "PYTHONUNBUFFERED": "1",
        MARK: str(folder.path),
    }


async def _superlink_trouble(folder: ServerFolder, config: ServerConfig) -> str | None:
    """Whether it answers a question that needs its database: `/health` is always 200."""
    try:
        async with (
            asyncio.timeout(_PATIENCE_S),
            to_superlink(config.superlink_port, folder.ca_certificate) as client,
        ):
            # An empty body is a ListNodesRequest without fields.
            answer = await client.post(
                "/v1/control/list-nodes", headers={"content-type": "application/protobuf"}
            )
    except (httpx.HTTPError, OSError, TimeoutError):
        return NO_ANSWER
    return None if answer.is_success else f"answers with HTTP status {answer.status_code}"


async def _gateway_trouble(folder: ServerFolder, config: ServerConfig) -> str | None:
    """Whether it shakes hands with a certificate that a site would accept."""
    host, _, port = config.listen.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))  # noqa: S104
    try:
        context = ssl.create_default_context(cafile=folder.ca_certificate)
        async with asyncio.timeout(_PATIENCE_S):
            _, writer = await asyncio.open_connection(
                host, int(port), ssl=context, server_hostname=config.host
            )
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not valid: {error.verify_message}"
    except (OSError, TimeoutError):
        return NO_ANSWER
    return None
