"""Whatever is killed, and whenever: the run finishes, and no site pays for anything twice."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
from tests.system.deployment.federation import (
    EXECUTOR,
    GATEWAY,
    RUN,
    SUPERLINK,
    Federation,
    Run,
)

from tacit_common.study import StudyFile

pytestmark = pytest.mark.system

StudyMaker = Callable[..., StudyFile]


@pytest.fixture
def submitted(federation: Federation, study_file: StudyMaker, with_probe: str) -> Run:
    """A run that is in its second round."""
    run = federation.submit(study(study_file, with_probe, rounds=4))
    run.await_rounds(1)
    return run


def study(study_file: StudyMaker, with_probe: str, *, rounds: int) -> StudyFile:
    """A small study whose rounds are long enough to be interrupted."""
    return study_file(
        with_probe,
        f"federation.rounds={rounds}",
        "federation.deadline_s=120.0",
        "federation.local_steps=6",
    )


def require_whole(run: Run) -> None:
    """Fail unless every site has answered in every round, and has paid for each request once.

    The report says so.
    """
    run.await_end()
    rounds = run.events("run_started")[0]["rounds"]
    numbers = list(range(1, rounds + 1))
    finished = run.events("round_finished")
    assert [event["round"] for event in finished] == numbers
    names = [site.name for site in run.federation.sites]
    assert [event["answered"] for event in finished] == [names] * rounds
    whole = Counter(["probe 0 before", "probe 0 after", *(f"round {number}" for number in numbers)])
    for site in run.federation.sites:
        assert site.paid_of(run.number) == whole
    run.federation.require_verified(run)


@pytest.mark.long_system
@pytest.mark.parametrize("part", [RUN, SUPERLINK, EXECUTOR, GATEWAY])
def test_a_process_of_the_server_is_killed(
    federation: Federation, submitted: Run, part: str
) -> None:
    federation.kill(part)
    require_whole(submitted)


@pytest.mark.long_system
def test_the_whole_server_is_killed_and_started_again(
    federation: Federation, submitted: Run
) -> None:
    kill_server(federation)
    federation.start_server()
    require_whole(submitted)


@pytest.mark.long_system
def test_the_superlink_is_away_for_longer_than_flower_waits_for_it(
    federation: Federation, submitted: Run
) -> None:
    assert federation.server is not None
    os.kill(federation.server.process.pid, signal.SIGSTOP)
    federation.kill(SUPERLINK)
    time.sleep(75)  # Flower gives up a run whose process it has not heard for 60 s
    os.kill(federation.server.process.pid, signal.SIGCONT)
    require_whole(submitted)


@pytest.mark.long_system
def test_the_agent_of_a_site_is_killed_and_started_again(
    federation: Federation, submitted: Run
) -> None:
    killed = federation.sites[1]
    killed.running.kill()
    killed.start()
    require_whole(submitted)


def test_everything_is_killed_in_turn(
    federation: Federation, study_file: StudyMaker, with_probe: str
) -> None:
    kills: list[Callable[[], object]] = [
        partial(federation.kill, RUN),
        partial(federation.kill, SUPERLINK),
        partial(federation.kill, GATEWAY),
        partial(kill_server, federation),
    ]
    run = federation.submit(study(study_file, with_probe, rounds=len(kills) + 1))
    for done, kill in enumerate(kills, start=1):
        run.await_rounds(done)
        kill()
    federation.start_server()
    require_whole(run)


def kill_server(federation: Federation) -> None:
    """kill -9 the process that a person started."""
    assert federation.server is not None
    federation.server.kill()
