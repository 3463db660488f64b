"""The benchmark of a deployed round: what counts as local compute, and that it works."""

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tacit_server.run_log import RoundFinished, RunStarted
from tacit_simulations.benchmarks import deploy
from tacit_simulations.benchmarks.federation import merged
from tacit_simulations.benchmarks.measure import Track


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def started(seconds: float) -> RunStarted:
    return RunStarted(
        at=at(seconds),
        run="run",
        study_digest="0" * 64,
        rounds=3,
        parameters=1,
        noise_multiplier=None,
        sites={"a": 1},
    )


def finished(number: int, seconds: float) -> RoundFinished:
    return RoundFinished(
        at=at(seconds),
        round=number,
        asked=["a"],
        answered=["a"],
        failed={},
        seconds=1.0,
        update_norm=1.0,
        epsilon=None,
        public_loss=1.0,
        train_loss=None,
    )


def test_time_in_which_two_sites_train_is_taken_off_once() -> None:
    assert merged([(1.0, 3.0), (2.0, 4.0), (6.0, 7.0), (6.5, 6.6)]) == [(1.0, 4.0), (6.0, 7.0)]


def test_a_round_lasts_from_the_end_of_the_one_before_it() -> None:
    events = [started(0), finished(1, 10), finished(2, 14), finished(3, 20)]
    samples = deploy.round_times(events, [(5.0, 6.0), (11.0, 12.5), (13.5, 14.5), (30.0, 40.0)])
    assert samples["first round"] == [10.0]
    assert samples["round"] == [4.0, 6.0]
    assert samples["local compute"] == [2.0, 0.5]  # the part in each round alone
    assert samples["beyond local compute"] == [2.0, 5.5]


@pytest.mark.system
@pytest.mark.slow
def test_the_smallest_plan_runs_a_federation_by_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    case = deploy.Case("0.2M", "none", rounds=1, target_s=100.0)
    figures = deploy.measure(deploy.Plan({1: (case,)}), Track("deploy", Console(file=StringIO())))
    names = {figure.name for figure in figures}
    assert names == {"beyond local compute", "round", "local compute", "first round"}
    assert all(figure.value > 0 for figure in figures)
    assert not list((tmp_path / "runs").iterdir()), json.dumps([str(figure) for figure in figures])
