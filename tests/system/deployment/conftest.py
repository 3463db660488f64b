"""Fixtures: a federation of real processes, and what to look at when a test of it fails."""

from collections.abc import Iterator

import pytest
from tests.system.deployment.federation import (
    SITES,
    Federation,
    make_coordinator,
    make_sites,
    start_all,
)
from tests.system.deployment.processes import WORLDS, World


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and three sites at work. Whoever breaks something mends it again."""
    with World.open(tmp_path_factory.mktemp("federation")) as world:
        made = make_coordinator(world)
        make_sites(made, SITES)
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
