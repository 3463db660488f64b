"""Flower's SuperLink on loopback, as a coordinator runs it."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from tacit_common.errors import LinkError
from tacit_common.flower.control import Control
from tacit_common.flower.fleet import FleetLink
from tacit_common.flower.tasks import RunTask, TaskQueue
from tacit_server.deployment.folder import ServerConfig, ServerFolder
from tacit_server.deployment.init import init_server
from tacit_server.deployment.parts import environment_of, superlink_command

MEBIBYTE = 1024 * 1024
DEADLINE_S = 60.0


@dataclass
class RealSuperLink:
    """A running SuperLink and the folder that it belongs to."""

    folder: ServerFolder
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return self.folder.config().superlink_address

    @property
    def ca_certificate(self) -> bytes:
        return self.folder.ca_certificate.read_bytes()

    def control(self) -> Control:
        return Control(self.address, self.ca_certificate)

    def queue(self, secret: bytes | None = None) -> TaskQueue:
        right = self.folder.superexec_secret.read_bytes()
        return TaskQueue(self.address, self.ca_certificate, secret or right)

    def link(self, key: ec.EllipticCurvePrivateKey, **different: object) -> FleetLink:
        settings = {"largest_message": 64 * MEBIBYTE, **different}
        return FleetLink(self.address, self.ca_certificate, key, **settings)  # type: ignore[arg-type]

    def admit(self, name: str) -> ec.EllipticCurvePrivateKey:
        """Register a new node; its key."""
        key = ec.generate_private_key(ec.SECP384R1())
        with self.control() as control:
            control.register_node(public_key_to_bytes(key.public_key()), name)
        return key

    @contextmanager
    def task(self, name: str) -> Iterator[RunTask]:
        """A run of this name, started and taken up."""
        with self.control() as control:
            number = control.start_run(name)
        queue = self.queue()
        token = wait_for(queue.acquire)
        queue.close()
        with RunTask(self.address, self.ca_certificate, token) as task:
            assert task.grid.run.run_id == number
            yield task


def wait_for(look):  # type: ignore[no-untyped-def]
    """What `look` returns as soon as it is something."""
    end = time.monotonic() + DEADLINE_S
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def start_superlink(path: Path) -> RealSuperLink:
    """Start one in a new folder, and wait until it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = ServerConfig.parse(
        {"name": "hub", "address": "127.0.0.1:9443", "superlink_port": port}
    )
    init_server(path / "hub", config, days=1)
    folder = ServerFolder.open(path / "hub")
    with (path / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            superlink_command(folder, config),
            stdout=log,
            stderr=log,
            env=environment_of(folder, os.environ),
        )
    link = RealSuperLink(folder, process)
    wait_for(lambda: _answers(link))
    return link


def _answers(link: RealSuperLink) -> bool:
    assert link.process.poll() is None, "the SuperLink has ended"
    try:
        with link.control() as control:
            control.nodes()
    except LinkError:
        return False
    return True
