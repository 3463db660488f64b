"""The journal: nothing is lost by a kill, and nothing is changed unseen."""

import json
import os
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tacit_client.deployment.journal import (
    LONGEST_TEXT,
    Handled,
    HandledLine,
    Journal,
    JournalLine,
    Mended,
    read_journal,
)
from tacit_client.deployment.journal_view import sentence
from tacit_common.errors import LedgerError, RefusalCode
from tacit_common.identity import Identity

TRAINED = Handled(
    action="train",
    run="run-1",
    study="letters",
    study_digest="e" * 64,
    label="round 3",
    outcome="answered",
    code=None,
    bytes_in=2_000,
    bytes_out=1_500_000,
)
STRANGER = Handled("unknown", None, None, None, None, "refused", RefusalCode.SIGNATURE, 90, 200)


@pytest.fixture
def identity() -> Identity:
    return Identity.create()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def written(path: Path, identity: Identity, count: int = 4) -> list[JournalLine]:
    journal = Journal(path, identity)
    return [journal.append(replace(TRAINED, label=f"round {n}")) for n in range(count)]


def labels(lines: list[JournalLine]) -> list[str | None]:
    return [line.entry.label for line in lines if isinstance(line.entry, HandledLine)]


# --- keeping -----------------------------------------------------------------------------


def test_what_is_appended_is_read_back_in_order(path: Path, identity: Identity) -> None:
    journal = Journal(path, identity)
    lines = [journal.append(TRAINED), journal.append(STRANGER)]
    assert read_journal(path, identity.public_key) == lines
    assert [line.seq for line in lines] == [0, 1]
    assert isinstance(lines[1].entry, HandledLine)
    assert lines[1].entry.code is RefusalCode.SIGNATURE


def test_a_line_is_on_the_disk_before_append_returns(
    path: Path, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(path, identity)
    flushed: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(path.read_text(encoding="utf-8")))
    line = journal.append(TRAINED)
    assert flushed == [line.model_dump_json() + "\n"]


def test_a_journal_is_its_owners_alone(path: Path, identity: Identity) -> None:
    written(path, identity)
    assert path.stat().st_mode & 0o077 == 0


def test_a_journal_goes_on_where_it_ended(path: Path, identity: Identity) -> None:
    written(path, identity, 2)
    written(path, identity, 2)
    lines = read_journal(path, identity.public_key)
    assert [line.seq for line in lines] == [0, 1, 2, 3]


def test_threads_and_journals_that_share_a_file_write_one_chain(
    path: Path, identity: Identity
) -> None:
    journals = [Journal(path, identity) for _ in range(3)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: journals[n % 3].append(TRAINED), range(30)))
    assert len(read_journal(path, identity.public_key)) == 30


def test_names_from_outside_are_cut_to_a_length(path: Path, identity: Identity) -> None:
    line = Journal(path, identity).append(replace(TRAINED, run="r" * 5_000))
    assert isinstance(line.entry, HandledLine)
    assert line.entry.run == "r" * LONGEST_TEXT


def test_lines_after_a_known_one_are_read_alone(path: Path, identity: Identity) -> None:
    lines = written(path, identity)
    assert read_journal(path, identity.public_key, after=lines[1]) == lines[2:]


# --- kills and full disks ----------------------------------------------------------------


def test_a_kill_at_any_byte_of_the_last_line_loses_that_line_alone(
    path: Path, identity: Identity
) -> None:
    written(path, identity, 2)
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in range(start + 1, len(whole) - 1, 37):
        path.write_bytes(whole[:end])
        Journal(path, identity).append(replace(TRAINED, label="after"))
        lines = read_journal(path, identity.public_key)
        assert labels(lines) == ["round 0", "after"]
        note = lines[1].entry
        assert isinstance(note, Mended)
        assert note.bytes_set_aside == end - start
        assert (path.parent / note.file).read_bytes() == whole[start:end]


def test_a_reader_passes_over_the_line_that_is_being_written(
    path: Path, identity: Identity
) -> None:
    lines = written(path, identity)
    with path.open("ab") as file:
        file.write(b'{"seq":4,')
    assert read_journal(path, identity.public_key) == lines


def test_a_full_disk_is_an_error_and_hurts_no_earlier_line(path: Path, identity: Identity) -> None:
    journal = Journal(path, identity)
    journal.append(replace(TRAINED, label="before"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
    try:
        with pytest.raises(LedgerError, match="cannot be used"):
            journal.append(TRAINED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append(replace(TRAINED, label="after"))
    assert labels(read_journal(path, identity.public_key)) == ["before", "after"]


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path, identity: Identity) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(LedgerError, match="cannot be used"):
        Journal(tmp_path / "file" / "log.jsonl", identity)


def test_a_journal_that_is_gone_is_not_taken_for_an_empty_one(
    path: Path, identity: Identity
) -> None:
    with pytest.raises(LedgerError, match="cannot be used"):
        read_journal(path, identity.public_key)


# --- attacks -----------------------------------------------------------------------------


def hide_bytes(lines: list[str]) -> list[str]:
    changed = json.loads(lines[1])
    changed["entry"]["bytes_out"] = 10
    return [lines[0], json.dumps(changed), *lines[2:]]


def add_field(lines: list[str]) -> list[str]:
    changed = json.loads(lines[1])
    changed["entry"]["note"] = "harmless"
    return [lines[0], json.dumps(changed), *lines[2:]]


def swap(lines: list[str]) -> list[str]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


ATTACKS: list[Callable[[list[str]], list[str]]] = [
    hide_bytes,
    add_field,
    swap,
    lambda lines: [lines[0], *lines[2:]],  # a line taken out
    lambda lines: lines[1:],  # the first line taken out
    lambda lines: [*lines[:2], lines[1], *lines[2:]],  # a line twice
    lambda lines: [*lines[:2], "", *lines[2:]],
    lambda lines: [*lines[:2], "not JSON", *lines[2:]],
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_changed_journal_is_refused(
    path: Path, identity: Identity, attack: Callable[[list[str]], list[str]]
) -> None:
    written(path, identity)
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(attack(lines)) + "\n", encoding="utf-8")
    with pytest.raises(LedgerError, match="damaged at line"):
        read_journal(path, identity.public_key)
    with pytest.raises(LedgerError, match="damaged at line"):
        Journal(path, identity)


def test_a_whole_journal_forged_with_another_key_is_refused(path: Path, identity: Identity) -> None:
    written(path, Identity.create())
    with pytest.raises(LedgerError, match="did not sign"):
        read_journal(path, identity.public_key)
    with pytest.raises(LedgerError, match="did not sign"):
        Journal(path, identity)


def test_a_forged_line_inside_a_chain_with_right_hashes_is_refused(
    path: Path, identity: Identity
) -> None:
    lines = written(path, identity)
    forged = lines[1].model_copy(update={"signature": lines[2].signature})
    content = [lines[0], forged, *lines[2:]]
    path.write_text("".join(line.model_dump_json() + "\n" for line in content), encoding="utf-8")
    with pytest.raises(LedgerError, match="line 2"):
        read_journal(path, identity.public_key)


def test_cutting_the_end_off_under_an_open_journal_is_noticed(
    path: Path, identity: Identity
) -> None:
    journal = Journal(path, identity)
    for _ in range(3):
        journal.append(TRAINED)
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\n") + 1])
    with pytest.raises(LedgerError, match="its end was cut off"):
        journal.append(TRAINED)


def test_rewriting_lines_between_two_looks_is_noticed(path: Path, identity: Identity) -> None:
    lines = written(path, identity)
    path.unlink()
    written(path, identity)
    with pytest.raises(LedgerError, match="has changed since"):
        read_journal(path, identity.public_key, after=lines[1])


# --- for people --------------------------------------------------------------------------


def test_a_line_says_who_asked_what_was_answered_and_how_much_left(
    path: Path, identity: Identity
) -> None:
    journal = Journal(path, identity)
    said = sentence(journal.append(TRAINED))
    assert "round 3 of letters (eeeeeeeeeeee) in run run-1: answered; 1.5 MB left" in said
    assert "unknown: refused: signature; 200 bytes left" in sentence(journal.append(STRANGER))


def test_a_name_cannot_move_the_terminals_cursor(path: Path, identity: Identity) -> None:
    line = Journal(path, identity).append(replace(TRAINED, run="\x1b[2J\r\nrun\u202e"))
    said = sentence(line)
    assert said.isprintable()
    assert "run" in said
