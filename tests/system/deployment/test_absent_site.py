"""A site that is away at the deadline of a round, and back in a later one."""

import os
import signal
from collections.abc import Callable

import pytest
from tests.system.deployment.federation import Federation

from tacit_common.study import StudyFile

pytestmark = pytest.mark.system


@pytest.mark.long_system
def test_a_round_goes_on_without_it_and_it_returns(
    federation: Federation, study_file: Callable[..., StudyFile]
) -> None:
    *present, absent = federation.sites
    agent = absent.running.process.pid
    run = federation.submit(
        study_file("federation.rounds=6", "federation.deadline_s=15.0", "federation.quorum=0.5")
    )
    run.await_rounds(1)
    os.kill(agent, signal.SIGSTOP)
    try:
        run.await_rounds(3)
    finally:
        os.kill(agent, signal.SIGCONT)
    run.await_end()
    rounds = run.events("round_finished")
    without = [event for event in rounds if absent.name in event["failed"]]
    assert without
    for event in without:
        assert event["failed"][absent.name] in ("no_answer", "node_error")
        assert event["answered"] == [site.name for site in present]
    assert rounds[-1]["answered"] == [site.name for site in federation.sites]
    answered = {f"round {event['round']}" for event in rounds if absent.name in event["answered"]}
    paid = absent.paid_of(run.number)
    assert set(paid) >= answered
    assert set(paid.values()) == {1}
    federation.require_verified(run)


@pytest.mark.long_system
def test_a_run_with_too_few_sites_for_its_quorum_fails_and_can_be_resumed(
    federation: Federation, study_file: Callable[..., StudyFile]
) -> None:
    *_, absent = federation.sites
    agent = absent.running.process.pid
    run = federation.submit(
        study_file("federation.rounds=3", "federation.deadline_s=15.0", "federation.quorum=1.0")
    )
    run.await_rounds(1)
    os.kill(agent, signal.SIGSTOP)
    try:
        run.await_stage("failed")
        shown = " ".join(run.shown().split())
        assert "2 of 3 sites answered" in shown
        assert f"{absent.name}: no_answer" in shown or f"{absent.name}: node_error" in shown
    finally:
        os.kill(agent, signal.SIGCONT)
    federation.coordinator.run("server", "resume", federation.hub, run.name)
    run.await_end()
    assert {1} == {
        count for site in federation.sites for count in site.paid_of(run.number).values()
    }
    federation.require_verified(run)
