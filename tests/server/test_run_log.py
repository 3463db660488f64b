"""The run's event log: it holds what the checkpoint says has happened, whatever was cut off."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from tacit_server.run_log import (
    LOGGED_EVENT,
    LoggedEvent,
    Progress,
    RoundFinished,
    RunFinished,
    RunLog,
    RunResumed,
    WarmStarted,
    read_events,
)


def finished(number: int) -> RoundFinished:
    return RoundFinished(
        at=datetime(2026, 1, 1, 0, 0, number, 123456, tzinfo=UTC),
        round=number,
        asked=["a", "b"],
        answered=["a"],
        failed={"b": "budget"},
        seconds=0.1 + 0.2,
        update_norm=1.0,
        epsilon=None,
        public_loss=0.5,
        train_loss=None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_events_come_back_as_they_were_published(path: Path) -> None:
    events: list[LoggedEvent] = [WarmStarted(steps=3, seconds=0.5, public_loss=1.0)]
    log = RunLog(path)
    log.mend(events)
    for event in (finished(1), RunResumed(after_round=1), finished(2), RunFinished(rounds=2)):
        log.publish(event)
        events.append(event)
    assert read_events(path) == events


def test_a_line_is_one_json_object_with_its_kind(path: Path) -> None:
    log = RunLog(path)
    log.publish(finished(1))
    log.publish(RunFinished(rounds=1))
    text = path.read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["event"] for line in lines] == ["round_finished", "run_finished"]
    assert all(datetime.fromisoformat(line["at"]).tzinfo is not None for line in lines)


@pytest.mark.parametrize("kept", [1, 10, 150])
def test_a_last_line_that_was_cut_off_is_not_read(path: Path, kept: int) -> None:
    log = RunLog(path)
    log.publish(finished(1))
    whole = path.stat().st_size
    log.publish(finished(2))
    path.write_bytes(path.read_bytes()[: whole + kept])
    assert read_events(path) == [finished(1)]


def test_a_log_is_mended_to_what_the_checkpoint_knows(path: Path) -> None:
    known: list[LoggedEvent] = [finished(1), finished(2), finished(3)]
    log = RunLog(path)
    log.publish(known[0])
    with path.open("ab") as file:
        file.write(b'{"event": "round_fini')  # killed in the second line
    log.mend(known)
    assert read_events(path) == known
    log.publish(RunFinished(rounds=3))
    assert read_events(path) == [*known, RunFinished(rounds=3, at=read_events(path)[-1].at)]


def test_a_log_that_ran_ahead_is_cut_back(path: Path) -> None:
    log = RunLog(path)
    for number in (1, 2, 3):
        log.publish(finished(number))
    log.mend([finished(1)])
    assert read_events(path) == [finished(1)]


def test_a_log_that_was_lost_is_written_anew(path: Path) -> None:
    RunLog(path).mend([finished(1), finished(2)])
    assert read_events(path) == [finished(1), finished(2)]


def test_watchers_hear_everything_once_and_in_order(path: Path) -> None:
    heard: list[LoggedEvent | Progress] = []
    also: list[LoggedEvent | Progress] = []
    log = RunLog(path, [heard.append, also.append])
    log.mend([finished(1)])
    log.progress("round", "round 2", 1, 3)
    log.publish(finished(2))
    step = Progress(stage="round", label="round 2", done=1, total=3)
    assert heard == also == [finished(1), step, finished(2)]
    assert read_events(path) == [finished(1), finished(2)]  # progress is for the eye alone


def test_an_event_is_on_disk_before_a_watcher_hears_of_it(path: Path) -> None:
    seen: list[int] = []
    log = RunLog(path, [lambda event: seen.append(len(read_events(path)))])
    log.publish(finished(1))
    log.publish(finished(2))
    assert seen == [1, 2]


def test_an_event_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValidationError):
        LOGGED_EVENT.validate_python({"event": "unheard_of"})
