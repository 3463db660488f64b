"""`tacit server run` with the real SuperLink: reached, killed, brought back and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tacit_common.certificates import make_client_certificate
from tacit_common.enrolment import SiteCard
from tacit_common.errors import LinkError
from tacit_common.flower.control import Control
from tacit_common.flower.fleet import FleetLink
from tacit_common.health import HealthStatus, check_health
from tacit_common.identity import Identity

pytestmark = pytest.mark.system

TACIT = [sys.executable, "-c", "from tacit_simulations.cli import main; main()"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def wait_until(condition: Callable[[], bool], within_s: float = 120) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "what the test waits for did not happen"
        time.sleep(0.05)


class Server:
    """A coordinator's folder, and the process of `tacit server run` on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "coordinator"
        self.gateway, self.superlink, self.health = (f"127.0.0.1:{free_port()}" for _ in range(3))
        made = self.tacit(
            *("server", "init", str(self.folder), "--name", "coordinator"),
            *("--address", self.gateway, "--listen", self.gateway),
            *("--superlink-port", self.superlink.split(":")[1], "--health", self.health),
        )
        assert made.returncode == 0, made.stderr
        self.ca = (self.folder / "tls" / "ca.crt").read_bytes()
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def tacit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TACIT, *arguments], capture_output=True, text=True, timeout=120, check=False
        )

    def start(self) -> None:
        with self.log.open("ab") as log:
            command = [*TACIT, "server", "run", str(self.folder)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(lambda: self.is_ready or not self.is_running)
        assert self.is_running, self.log.read_text()

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def is_ready(self) -> bool:
        try:
            return check_health(self.health, "ready", timeout_s=5) is HealthStatus.SERVING
        except Exception:
            return False

    def kill(self, name: str) -> None:
        """kill -9 of one of its three processes."""
        starts = [one for one in self.log.read_text().splitlines() if f" {name} starts (" in one]
        os.kill(int(starts[-1].split()[-1].rstrip(")")), signal.SIGKILL)

    def kill_and_await(self, name: str) -> None:
        """kill -9 of one of them, until it works again and the server is ready."""
        before = self.log.read_text().count(f" {name} works")
        self.kill(name)
        wait_until(lambda: self.log.read_text().count(f" {name} works") > before)
        wait_until(lambda: self.is_ready)

    @property
    def processes(self) -> list[int]:
        """What runs for this folder, beside the supervisor."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                arguments = (entry / "cmdline").read_bytes()
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            ours = str(self.folder).encode() in arguments and state != "Z"
            if ours and (self.process is None or int(entry.name) != self.process.pid):
                found.append(int(entry.name))
        return found

    def enroll(self, node_key: ec.EllipticCurvePrivateKey) -> None:
        openssh = node_key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        card = SiteCard.signed(
            Identity.create(),
            site="north",
            node_key=openssh.decode(),
            witness_certificate=make_client_certificate("north").certificate.decode(),
        )
        file = self.folder.parent / "north.site.json"
        card.write(file)
        done = self.tacit(
            *("server", "enroll", str(self.folder), str(file), "--fingerprint", card.fingerprint)
        )
        assert done.returncode == 0, done.stderr

    def link(self, node_key: ec.EllipticCurvePrivateKey) -> FleetLink:
        return FleetLink(self.gateway, self.ca, node_key, largest_message=10**6)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path)
    made.start()
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()
    wait_until(lambda: not made.processes)


def test_a_server_is_reached_killed_brought_back_and_ended(server: Server) -> None:
    site, stranger = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    server.enroll(site)

    # An enrolled site gets through; a stranger and the Control API do not.
    with server.link(site) as link:
        assert link.receive() is None
    with pytest.raises(LinkError) as refused, server.link(stranger):
        pass
    assert refused.value.status == httpx.codes.UNAUTHORIZED
    with Control(server.gateway, server.ca) as control, pytest.raises(LinkError) as closed:
        control.nodes()
    assert closed.value.status == httpx.codes.FORBIDDEN

    # Each of the three is killed in turn, is missed, and comes back.
    for name in ("superlink", "executor", "gateway"):
        server.kill_and_await(name)
    with server.link(site) as link:
        assert link.receive() is None  # it is still enrolled: the database was kept

    # A second server on the folder does not start.
    second = server.tacit("server", "run", str(server.folder))
    assert second.returncode == 1
    assert "already" in second.stderr

    # kill -9 of the supervisor takes everything with it; a new one starts at once.
    assert server.process is not None
    server.process.kill()
    server.process.wait()
    wait_until(lambda: not server.processes)
    server.start()
    with server.link(site) as link:
        assert link.receive() is None

    # SIGTERM ends all of it, in order.
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    assert server.processes == []
    assert [line.split(" ", 1)[1] for line in server.log.read_text().splitlines()[-4:]] == [
        *("gateway has ended", "executor has ended", "superlink has ended"),
        "the server has ended",
    ]
