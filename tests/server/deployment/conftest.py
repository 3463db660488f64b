"""Fixtures: gateways that run."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.server.deployment.gateway_case import (
    Authority,
    Gateway,
    SuperLink,
    make_authority,
    start_gateway_in,
)


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
