"""The outbox: a reply that was given once is given again, bit for bit."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tacit_client.outbox import Outbox
from tacit_common.errors import LedgerError, RefusalCode
from tacit_common.messages import ProbeReply, Refusal, TrainReply

KEY, NEXT = "a" * 64, "b" * 64


def update(value: float = 1.0) -> TrainReply:
    return TrainReply(np.full(5, value, dtype=np.float32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outbox"


def found(outbox: Outbox, key: str = KEY) -> TrainReply:
    reply = outbox.find(key)
    assert isinstance(reply, TrainReply)
    return reply


def test_an_empty_outbox_finds_nothing_and_makes_no_folder(folder: Path) -> None:
    assert Outbox(folder).find(KEY) is None
    assert not folder.exists()


@given(
    bits=npst.arrays(np.uint32, st.integers(0, 20)),
)
def test_an_update_comes_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, bits: np.ndarray[tuple[int], np.dtype[np.uint32]]
) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    Outbox(folder).store(KEY, TrainReply(bits.view(np.float32)))
    reply = found(Outbox(folder))
    assert reply.update.dtype == np.float32
    assert reply.update.tobytes() == bits.tobytes()
    assert reply.train_loss is None


def test_statistics_come_back_as_statistics(folder: Path) -> None:
    statistics = np.array([1.0, -0.0, np.pi])
    Outbox(folder).store(KEY, ProbeReply(statistics))
    reply = Outbox(folder).find(KEY)
    assert isinstance(reply, ProbeReply)
    assert reply.statistics.dtype == np.float64
    assert reply.statistics.tobytes() == statistics.tobytes()


@pytest.mark.parametrize("code", RefusalCode)
def test_a_failure_comes_back_as_its_code(folder: Path, code: RefusalCode) -> None:
    Outbox(folder).store(KEY, Refusal(code=code))
    assert Outbox(folder).find(KEY) == Refusal(code=code)


def test_a_reply_is_found_under_its_own_key_alone(folder: Path) -> None:
    outbox = Outbox(folder)
    outbox.store(KEY, update())
    assert outbox.find(NEXT) is None


def test_the_newest_few_replies_are_kept_and_the_oldest_forgotten(folder: Path) -> None:
    keys = [letter * 64 for letter in "hcagfbed"]  # in no order of theirs
    for number, key in enumerate(keys):
        Outbox(folder).store(key, update())
        for file in folder.iterdir():
            os.utime(file, (4e9 - number, 4e9 - number))  # the clock is of no importance
    outbox = Outbox(folder)
    kept = [key for key in keys if outbox.find(key) is not None]
    assert kept == keys[-len(kept) :]
    assert 2 <= len(kept) < len(keys)
    assert len(list(folder.iterdir())) == len(kept)


def test_a_reply_that_cannot_be_stored_leaves_the_one_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(folder)
    outbox.store(KEY, update())

    def full(path: Path, *parts: bytes, **options: bool) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tacit_client.outbox.write_atomically", full)
    with pytest.raises(LedgerError, match="No space left"):
        outbox.store(NEXT, update())
    assert found(outbox).update.tolist() == [1.0] * 5


def test_a_reply_whose_writing_was_killed_is_not_found_and_can_be_written_again(
    folder: Path,
) -> None:
    outbox = Outbox(folder)
    outbox.store(KEY, update(9.0))
    (file,) = folder.iterdir()
    # In a container the process that comes back has the number of the one that was killed.
    file.rename(folder / f".{file.name}.{os.getpid()}.tmp")
    assert outbox.find(KEY) is None
    outbox.store(KEY, update())
    assert found(outbox).update.tolist() == [1.0] * 5


def damaged(content: bytes, kind: str) -> bytes:
    match kind:
        case "cut in the data":
            return content[:-3]
        case "cut in the header":
            return content[:40]
        case "text":
            return b"not an array"
        case _:
            return b""


@pytest.mark.parametrize(
    "kind",
    [
        "cut in the data",
        "cut in the header",
        "text",
        "empty",
    ],
)
def test_a_stored_reply_that_is_damaged_is_an_error_and_never_made_anew(
    folder: Path, kind: str
) -> None:
    outbox = Outbox(folder)
    outbox.store(KEY, update())
    (file,) = folder.iterdir()
    file.write_bytes(damaged(file.read_bytes(), kind))
    with pytest.raises(LedgerError, match="cannot be read"):
        outbox.find(KEY)


def test_a_pickle_in_the_outbox_is_not_opened(folder: Path) -> None:
    Outbox(folder).store(KEY, update())
    (path,) = folder.iterdir()
    with path.open("wb") as file:
        np.save(file, np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(LedgerError, match="cannot be read"):
        Outbox(folder).find(KEY)


@pytest.mark.parametrize("survive_power_loss", [True, False])
def test_the_newest_answers_come_back_whatever_sizes_went_before(
    folder: Path, survive_power_loss: bool
) -> None:
    outbox = Outbox(folder, survive_power_loss=survive_power_loss)
    sizes = [50, 3, 0, 70, 1, 9, 40, 2]
    for number, size in enumerate(sizes):
        outbox.store(f"{number:064d}", TrainReply(np.full(size, number, dtype=np.float32)))
    for number, size in enumerate(sizes):
        reply = outbox.find(f"{number:064d}")
        if number < len(sizes) - 4:
            assert reply is None
        else:
            assert isinstance(reply, TrainReply)
            assert np.array_equal(reply.update, np.full(size, number, dtype=np.float32))
    assert len(list(folder.iterdir())) == 4
