"""Fixtures: a real SuperLink, and a server that only pretends to be one."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.common.flower.malicious_case import Malicious, malicious
from tests.common.flower.superlink_case import RealSuperLink, start_superlink

from tacit_common.certificates import Issued, make_ca, make_server_certificate


@pytest.fixture(scope="module")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealSuperLink]:
    """Flower's own, started as a coordinator starts it."""
    link = start_superlink(tmp_path_factory.mktemp("superlink"))
    yield link
    link.process.terminate()
    try:
        link.process.wait(30)
    except subprocess.TimeoutExpired:
        link.process.kill()
        link.process.wait()


@pytest.fixture(scope="session")
def authority() -> Issued:
    """The CA that sites trust."""
    return make_ca("hub")


@pytest.fixture
def start_malicious(tmp_path: Path, authority: Issued) -> Iterator[Callable[..., Malicious]]:
    """Starts a server with a certificate of the coordinator's authority.

    `tls=False` for one without TLS, `make` for how the certificate is made.
    """
    certificate, key = tmp_path / "server.crt", tmp_path / "server.key"
    with ExitStack() as stack:

        def start(
            *, tls: bool = True, make: Callable[..., Issued] = make_server_certificate
        ) -> Malicious:
            issued = make(authority.certificate, authority.key, ["127.0.0.1"], 1)
            certificate.write_bytes(issued.certificate)
            key.write_bytes(issued.key)
            return stack.enter_context(malicious(certificate, key, authority.certificate, tls=tls))

        yield start


@pytest.fixture
def server(start_malicious: Callable[..., Malicious]) -> Malicious:
    """A server that answers as Flower would, except where the test says otherwise."""
    return start_malicious()


@pytest.fixture(scope="session")
def node_key() -> ec.EllipticCurvePrivateKey:
    """A site's node key."""
    return ec.generate_private_key(ec.SECP384R1())
