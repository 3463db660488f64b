"""What a stranger can do who reaches the coordinator's port, or the machine it runs on."""

import socket
import ssl
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.system.deployment.federation import DataSite, Federation
from tests.system.deployment.malice import start_run, without_executor
from tests.system.deployment.processes import wait_for

from tacit_common.certificates import make_server_certificate
from tacit_common.errors import LinkError
from tacit_common.files import owner_only, write_atomically
from tacit_common.flower.control import Control
from tacit_common.flower.fleet import FleetLink
from tacit_common.flower.tasks import TaskQueue
from tacit_server.deployment.certificate import LOOPBACK
from tacit_server.deployment.folder import ServerFolder

pytestmark = pytest.mark.system

CONTROL = [
    "/v1/control/start-run",
    "/v1/control/stop-run",
    "/v1/control/list-runs",
    "/v1/control/list-nodes",
    "/v1/control/register-node",
    "/v1/runtime/acquire-task",
    "/v1/runtime/pull-task-input",
    "/v1/runtime/push-messages",
    "/v1/fleet/register-node",
    "/v1/fleet/get-fab",
    "/v1/fleet/get-run",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "//v1/control/start-run",
    "/health",
    "/",
]


@pytest.fixture
def folder(federation: Federation) -> ServerFolder:
    return ServerFolder.open(federation.hub)


@pytest.fixture
def runs_before(folder: ServerFolder) -> set[int]:
    return runs_of(folder)


def runs_of(folder: ServerFolder) -> set[int]:
    config = folder.config()
    with Control(config.superlink_address, folder.ca_certificate.read_bytes()) as control:
        return set(control.runs())


def test_a_client_without_tls_gets_no_answer(federation: Federation) -> None:
    host, _, port = federation.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: hub\r\n\r\n")
        try:
            answer = connection.recv(1024)
        except ConnectionResetError:
            answer = b""
    assert b"HTTP" not in answer


def test_an_unregistered_node_is_turned_away(federation: Federation, folder: ServerFolder) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    link = FleetLink(
        federation.address, folder.ca_certificate.read_bytes(), stranger, largest_message=10**6
    )
    with pytest.raises(LinkError) as refused, link:
        pass
    assert refused.value.status == 401


@pytest.mark.parametrize("path", CONTROL)
def test_a_direct_call_of_the_control_api_from_outside(
    federation: Federation, folder: ServerFolder, runs_before: set[int], path: str
) -> None:
    context = ssl.create_default_context(cafile=folder.ca_certificate)
    with httpx.Client(verify=context, trust_env=False) as client:
        url = httpx.URL(f"https://{federation.address}").copy_with(raw_path=path.encode())
        answer = client.post(url, content=b"")
    assert (answer.status_code, answer.text) == (403, "refused\n")
    assert runs_of(folder) == runs_before


def test_a_task_is_not_handed_to_whoever_asks_for_it(
    federation: Federation, folder: ServerFolder
) -> None:
    address, ca = folder.config().superlink_address, folder.ca_certificate.read_bytes()
    secret = folder.superexec_secret.read_bytes()
    with (
        without_executor(federation),
        closing(TaskQueue(address, ca, b"x" * 32)) as without_the_secret,
        closing(TaskQueue(federation.address, ca, secret)) as from_outside,
        closing(TaskQueue(address, ca, secret)) as executor,
        httpx.Client(verify=ssl.create_default_context(cafile=folder.ca_certificate)) as bare,
    ):
        start_run(folder)
        with pytest.raises(LinkError) as refused:
            without_the_secret.acquire()
        assert refused.value.status in (401, 403)
        answer = bare.post(
            f"https://{address}/v1/runtime/acquire-task",
            content=b"\x0a\x0eflwr-serverapp",
            headers={"content-type": "application/protobuf"},
        )
        assert answer.status_code in (401, 403)
        with pytest.raises(LinkError) as closed:
            from_outside.acquire()
        assert closed.value.status == 403
        assert executor.acquire() is not None  # there was one to be had


def test_a_server_with_an_expired_certificate_is_not_believed(
    federation: Federation, folder: ServerFolder
) -> None:
    site, said = federation.sites[0], lengths(federation)
    try:
        present_expired(folder)
        for one in federation.sites:
            await_said(one, "its certificate has expired", said[one.name])
        doctor = site.machine.run("site", "doctor", site.folder, expect=1)
        assert "the coordinator's cannot be trusted: it has expired" in doctor
    finally:
        said = lengths(federation)
        federation.coordinator.run("server", "renew", federation.hub)
        for one in federation.sites:
            await_said(one, "connected\n", said[one.name])


def lengths(federation: Federation) -> dict[str, int]:
    """How much each agent has said."""
    return {site.name: len(site.running.said) for site in federation.sites}


def await_said(site: DataSite, words: str, after: int) -> None:
    wait_for(lambda: words in site.running.said[after:], f"{site.name} says {words!r}")


def present_expired(folder: ServerFolder) -> None:
    """Put a certificate in place that expired yesterday."""
    issued = make_server_certificate(
        folder.ca_certificate.read_bytes(),
        folder.ca_key.read_bytes(),
        [folder.config().host, *LOOPBACK],
        days=1,
        now=datetime.now(UTC) - timedelta(days=2),
    )
    expired = folder.tls / "expired"
    with owner_only():
        write_atomically(expired / "server.key", issued.key)
        write_atomically(expired / "server.crt", issued.certificate)
    link = folder.tls / "present.new"
    link.symlink_to(expired.name)
    link.replace(folder.tls / "present")
