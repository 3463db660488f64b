"""Fixtures: gateways that run, a coordinator's folder, and cards of sites."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.server.deployment.gateway_case import (
    Authority,
    Gateway,
    SuperLink,
    make_authority,
    start_gateway_in,
)

from tacit_common.certificates import make_ca
from tacit_common.enrolment import SiteCard
from tacit_common.identity import Identity

if TYPE_CHECKING:
    from tacit_server.deployment.folder import ServerFolder


@pytest.fixture(scope="module")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ExitStack() as stack:
        yield start_gateway_in(stack, make_authority(tmp_path_factory.mktemp("gateway")))


@pytest.fixture
def gateway(_shared: Gateway) -> Gateway:
    """A gateway as it is by default, which takes bodies of 300 000 bytes."""
    vars(_shared.superlink).update(vars(SuperLink()))
    _shared.lines.clear()
    return _shared


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority of this test's own."""
    return make_authority(tmp_path)


@pytest.fixture
def start_gateway(authority: Authority) -> Iterator[Callable[..., Gateway]]:
    """Starts a gateway with limits or patience of its own."""
    with ExitStack() as stack:
        yield lambda **different: start_gateway_in(stack, authority, **different)


@pytest.fixture
def coordinator(tmp_path: Path) -> "ServerFolder":
    """The folder of a new coordinator, whose SuperLink nobody can reach."""
    from tacit_server.deployment.folder import ServerConfig
    from tacit_server.deployment.init import init_server

    config = ServerConfig(name="hub", address="127.0.0.1:9443", superlink_port=9)
    return init_server(tmp_path / "hub", config, days=30).folder


@pytest.fixture(scope="session")
def _pem() -> str:
    return make_ca("clinic").certificate.decode()


@pytest.fixture
def make_card(_pem: str) -> Callable[..., SiteCard]:
    """`make_card("clinic", identity=…, node_key=…)`: a genuine card, with new keys if left out."""

    def make(
        site: str, *, identity: Identity | None = None, node_key: str | None = None
    ) -> SiteCard:
        return SiteCard.signed(
            identity or Identity.create(),
            site=site,
            node_key=node_key or new_node_key(),
            witness_certificate=_pem,
        )

    return make


def new_node_key() -> str:
    """A node's public key, in OpenSSH's format."""
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
