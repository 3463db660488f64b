"""The checkpoint: what was written comes back, and what was damaged is refused."""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tacit_common.errors import CheckpointError
from tacit_common.probes.contract import Interval
from tacit_common.strategy import StrategyState
from tacit_server.checkpoint import CheckpointStore, RunState
from tacit_server.run_log import (
    LoggedEvent,
    ProbeFinished,
    RoundFinished,
    RunFinished,
    RunResumed,
    RunStarted,
    WarmStarted,
)

STUDY = "5" * 64


def every_event() -> list[LoggedEvent]:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return [
        RunStarted(
            at=at,
            run="r",
            study_digest=STUDY,
            rounds=2,
            parameters=3,
            noise_multiplier=1.0000001,
            sites={"site-1": 5, "site-0": 7},
        ),
        WarmStarted(at=at, steps=3, seconds=0.1, public_loss=0.25),
        ProbeFinished(
            at=at,
            when="before",
            after_round=0,
            probe=0,
            kind="ridge",
            answered=["site-0"],
            failed={"site-1": "budget"},
            noise_multiplier=None,
            epsilon=None,
            accuracy=Interval(0.5, 0.4, 0.6, "Wilson"),
        ),
        RunResumed(at=at, after_round=0),
        RoundFinished(
            at=at,
            round=1,
            asked=["site-0", "site-1"],
            answered=["site-0"],
            failed={"site-1": "no_answer"},
            seconds=0.125,
            update_norm=0.1 + 0.2,
            epsilon=1.5,
            public_loss=0.75,
            train_loss=None,
        ),
        RunFinished(at=at, rounds=2),
    ]


def state(round_number: int, value: float = 1.0) -> RunState:
    vector = np.array([value, -0.0, 1e-40], dtype=np.float32)  # a zero's sign, a subnormal
    return RunState(
        run="r",
        study_digest=STUDY,
        strategy=StrategyState(vector, round_number, {"first": vector * 2, "second": vector * 3}),
        initial=vector * 4,
        events=every_event(),
    )


def same(left: RunState, right: RunState) -> bool:
    vectors = [
        {"parameters": s.strategy.parameters, "initial": s.initial, **s.strategy.moments}
        for s in (left, right)
    ]
    return (
        (left.run, left.study_digest, left.round, left.events)
        == (right.run, right.study_digest, right.round, right.events)
        and vectors[0].keys() == vectors[1].keys()
        and all(
            vectors[0][k].dtype == vectors[1][k].dtype
            and vectors[0][k].tobytes() == vectors[1][k].tobytes()
            for k in vectors[0]
        )
    )


def read(folder: Path, study_digest: str = STUDY) -> RunState | None:
    return CheckpointStore(folder).read_newest(study_digest=study_digest)


def found(folder: Path) -> RunState:
    newest = read(folder)
    assert newest is not None
    return newest


def newest_file(folder: Path) -> Path:
    return max(folder.glob("*.ckpt"))


# --- round trips -------------------------------------------------------------------------


def test_a_state_comes_back_bit_for_bit_with_moments_and_events(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).write(state(1))
    assert same(found(tmp_path), state(1))


@settings(max_examples=30)
@given(
    bits=npst.arrays(np.uint32, st.integers(1, 30)),
    moments=st.dictionaries(
        st.text("abcdefgh_.", min_size=1, max_size=8), st.integers(0, 2**32 - 1), max_size=3
    ),
    round_number=st.integers(0, 10**6 - 1),
)
def test_any_vectors_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    bits: np.ndarray[tuple[int], np.dtype[np.uint32]],
    moments: dict[str, int],
    round_number: int,
) -> None:
    folder = tmp_path_factory.mktemp("run")
    vector = bits.view(np.float32)
    vectors = {name: (bits ^ np.uint32(mask)).view(np.float32) for name, mask in moments.items()}
    written = RunState("r", STUDY, StrategyState(vector, round_number, vectors), vector, [])
    CheckpointStore(folder).write(written)
    assert same(found(folder), written)


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert read(tmp_path / "not yet made") is None


def test_the_newest_is_read_and_the_newest_two_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in (0, 1, 2, 9, 10, 11):  # in order of numbers, not of letters
        store.write(state(number, value=float(number)))
        assert same(found(tmp_path), state(number, value=float(number)))
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == [
        "round-000010.ckpt",
        "round-000011.ckpt",
    ]


def test_a_second_checkpoint_of_a_round_replaces_the_first(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.write(state(1, value=1.0))
    store.write(state(1, value=2.0))
    assert same(found(tmp_path), state(1, value=2.0))
    assert len(list(tmp_path.glob("*.ckpt"))) == 1


def test_the_initial_parameters_are_written_once_a_run(tmp_path: Path) -> None:
    store, initial = CheckpointStore(tmp_path), np.arange(5, dtype=np.float32)
    for number in range(3):
        vector = np.full(5, number, dtype=np.float32)
        store.write(RunState("r", STUDY, StrategyState(vector, number), initial))
        if number == 0:
            (kept,) = tmp_path.glob("initial-*")
            written = kept.stat().st_mtime_ns
    assert [path.name for path in tmp_path.glob("initial-*")] == [kept.name]
    assert kept.stat().st_mtime_ns == written
    resumed = CheckpointStore(tmp_path)
    newest = resumed.read_newest(study_digest=STUDY)
    assert newest is not None
    assert np.array_equal(newest.initial, initial)
    resumed.write(newest)
    assert kept.stat().st_mtime_ns == written


def test_initial_parameters_that_were_damaged_or_lost_are_noticed(tmp_path: Path) -> None:
    CheckpointStore(tmp_path).write(state(1))
    (kept,) = tmp_path.glob("initial-*")
    content = bytearray(kept.read_bytes())
    content[-1] ^= 1
    kept.write_bytes(content)
    with pytest.raises(CheckpointError, match=kept.name):
        read(tmp_path)
    kept.unlink()
    with pytest.raises(CheckpointError, match=kept.name):
        read(tmp_path)


# --- damage ------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's checkpoints of rounds 1 and 2."""
    store = CheckpointStore(tmp_path)
    store.write(state(1, value=1.0))
    store.write(state(2, value=2.0))
    return tmp_path


def assert_refused_and_the_older_one_intact(run: Path) -> None:
    older = (run / "round-000001.ckpt").read_bytes()
    damaged = newest_file(run)
    with pytest.raises(CheckpointError) as raised:
        read(run)
    assert damaged.name in raised.value.what
    assert (run / "round-000001.ckpt").read_bytes() == older
    damaged.unlink()  # as the error says
    assert same(found(run), state(1, value=1.0))


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_short_is_refused(run: Path, share: float) -> None:
    content = newest_file(run).read_bytes()
    newest_file(run).write_bytes(content[: int(share * len(content))])
    assert_refused_and_the_older_one_intact(run)


def test_a_checkpoint_with_bytes_after_its_end_is_refused(run: Path) -> None:
    newest_file(run).write_bytes(newest_file(run).read_bytes() + b"\0")
    assert_refused_and_the_older_one_intact(run)


def test_no_flipped_bit_of_the_tensors_passes(run: Path) -> None:
    content = newest_file(run).read_bytes()
    start = content.index(b"\n") + 1
    for position in range(start, len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        newest_file(run).write_bytes(flipped)
        with pytest.raises(CheckpointError):
            read(run)
    assert_refused_and_the_older_one_intact(run)


def test_no_flipped_bit_of_the_header_passes(run: Path) -> None:
    content = newest_file(run).read_bytes()
    passed: list[int] = []
    for position in range(0, content.index(b"\n"), 3):
        flipped = bytearray(content)
        flipped[position] ^= 1
        newest_file(run).write_bytes(flipped)
        with contextlib.suppress(CheckpointError):
            read(run)
            passed.append(position)
    assert passed == []


def rewritten(path: Path, **changes: object) -> None:
    """The header with these fields changed, as another version would have written it."""
    head, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps({**json.loads(head), **changes}).encode() + b"\n" + body)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": 4},
        {"sha256": "0" * 64},
        {"round": "two"},
        {"events": [{"event": "unheard of"}]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_checkpoint_of_another_format_is_refused(run: Path, changes: dict[str, object]) -> None:
    rewritten(newest_file(run), **changes)
    assert_refused_and_the_older_one_intact(run)


def test_a_checkpoint_of_the_version_before_is_not_called_damaged(run: Path) -> None:
    path = newest_file(run)
    head, _, body = path.read_bytes().partition(b"\n")
    fields = {**json.loads(head), "format": 2}
    del fields["initial_sha256"]
    path.write_bytes(json.dumps(fields).encode() + b"\n" + body)
    with pytest.raises(CheckpointError, match="of another version") as caught:
        read(run)
    assert "the file is sound" in caught.value.fix


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{}\n", b"null\n", b"\xff\xfe\n\n", b"not a checkpoint"], ids=repr
)
def test_what_is_no_checkpoint_is_refused(run: Path, content: bytes) -> None:
    newest_file(run).write_bytes(content)
    assert_refused_and_the_older_one_intact(run)


def test_a_body_that_is_no_safetensors_is_refused_whatever_its_checksum(run: Path) -> None:
    path = newest_file(run)
    head = json.loads(path.read_bytes().partition(b"\n")[0])
    body = b"no tensors"
    head["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_bytes(json.dumps(head).encode() + b"\n" + body)
    assert_refused_and_the_older_one_intact(run)


def test_the_checkpoint_of_another_study_is_refused_and_kept(run: Path) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(CheckpointError, match="of another study"):
        read(run, study_digest="6" * 64)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_checkpoint_that_cannot_be_read_is_refused(run: Path) -> None:
    (run / "round-000003.ckpt").mkdir()
    with pytest.raises(CheckpointError):
        read(run)


# --- kill -9 -----------------------------------------------------------------------------

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
import numpy as np
import tacit_common.files as files
from tacit_common.strategy import StrategyState
from tacit_server.checkpoint import CheckpointStore, RunState

moment, folder = sys.argv[1], Path(sys.argv[2])

def kill(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before the data is on disk":
    files.os.fsync = kill
elif moment == "before the rename":
    Path.replace = kill
elif moment == "before the older one is removed":
    Path.unlink = lambda path, missing_ok=False: None if missing_ok else kill()
vector = np.full(3, 9.0, dtype=np.float32)
CheckpointStore(folder).write(RunState("r", "5" * 64, StrategyState(vector, 3), vector, []))
"""


@pytest.mark.parametrize(
    ("moment", "newest"),
    [
        ("before the data is on disk", 2),
        ("before the rename", 2),
        ("before the older one is removed", 3),
    ],
)
def test_a_kill_while_writing_leaves_the_old_checkpoint_or_the_new_one_whole(
    run: Path, moment: str, newest: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, moment, str(run)], check=False, timeout=60
    )
    assert done.returncode == -9
    assert found(run).round == newest
    CheckpointStore(run).write(state(4))  # what the kill left is in nobody's way
    assert same(found(run), state(4))


def test_a_disk_that_is_full_is_said_to_be_and_leaves_the_old_checkpoint(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        CheckpointStore(run).write(state(3))
    assert same(found(run), state(2, value=2.0))
    assert len(list(run.glob("*.ckpt"))) == 2  # and no half of the new one
    assert not list(run.glob("*.tmp"))
