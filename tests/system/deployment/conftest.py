"""Fixtures: a federation of real processes, and what to look at when a test of it fails."""

from collections.abc import Iterator

import pytest
from tests.system.deployment.federation import Federation, make_federation, start_all
from tests.system.deployment.processes import WORLDS, World

@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and three sites at work. Whoever breaks something mends it again."""
    with World.open(tmp_path_factory.mktemp("federation")) as world:
        made = make_federation(world)
        start_all(made)
        yield made


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of a test's own, in which nothing runs yet."""
    with World.open(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the ends of all logs to the report of a test that failed."""
    report: pytest.TestReport = yield
    if report.failed and WORLDS:
        report.sections += [("logs", world.tails()) for world in WORLDS]
    return report


def pytest_configure(config: pytest.Config) -> None:
    """Say what the marker means."""
    config.addinivalue_line("markers", "long_system: runs in `make system` alone")
