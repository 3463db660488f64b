"""The ledger: append-only, chained, and written before anything is released."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tacit_client.ledger import Charge, Entry, Ledger, _row_hash
from tacit_common.errors import LedgerError
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)

STEPS = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.5, steps=4)
SITE = "site-0"


def charge(key: str, event: PrivacyEvent = STEPS) -> Charge:
    return Charge(
        key=key, run="r", study_digest="d", action="train", label=f"round of {key}", event=event
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    opened = Ledger(path, site=SITE)
    yield opened
    opened.close()


def reopened(path: Path) -> list[Entry]:
    """The rows of a ledger whose chain holds."""
    again = Ledger(path, site=SITE)
    try:
        return again.entries()
    finally:
        again.close()


# --- what is written -------------------------------------------------------------------


def test_a_new_ledger_holds_its_genesis_and_no_spend(ledger: Ledger, path: Path) -> None:
    assert [entry.kind for entry in ledger.entries()] == ["GENESIS"]
    assert ledger.events == []
    assert ledger.head.seq == 0
    assert reopened(path) == ledger.entries()  # opening again adds nothing


def test_rows_are_read_back_as_they_were_written(ledger: Ledger, path: Path) -> None:
    charges = [
        charge("a", STEPS),
        charge("b", GaussianRelease(noise_multiplier=0.1 + 0.2)),  # every digit counts
        charge("c", NonPrivateRelease()),
    ]
    for one in charges:
        ledger.reserve(one)
    ledger.commit("b")
    other = Ledger(path, site=SITE)
    assert other.charges == charges
    assert other.events == [one.event for one in charges]
    assert [entry.kind for entry in other.entries()] == ["GENESIS", *["RESERVE"] * 3, "COMMIT"]
    assert other.head == ledger.head
    other.close()


def test_spend_is_the_sum_of_all_reserves_and_nothing_is_refunded(ledger: Ledger) -> None:
    ledger.reserve(charge("done"))
    ledger.commit("done")
    ledger.reserve(charge("failed"))  # its work failed: no commit ever comes
    assert ledger.events == [STEPS, STEPS]


def test_a_key_is_reserved_once(ledger: Ledger) -> None:
    ledger.reserve(charge("a"))
    with pytest.raises(LedgerError, match="paid for twice"):
        ledger.reserve(charge("a", GaussianRelease(noise_multiplier=9.0)))
    assert ledger.events == [STEPS]


def test_a_key_that_was_not_reserved_cannot_be_committed(ledger: Ledger) -> None:
    ledger.reserve(charge("a"))
    with pytest.raises(LedgerError, match="no reserve"):
        ledger.commit("b")
    assert [entry.kind for entry in ledger.entries()] == ["GENESIS", "RESERVE"]


def test_a_second_handle_sees_what_the_first_wrote(ledger: Ledger, path: Path) -> None:
    other = Ledger(path, site=SITE)
    ledger.reserve(charge("a"))
    assert other.is_reserved("a")
    assert other.events == [STEPS]
    with pytest.raises(LedgerError, match="paid for twice"):
        other.reserve(charge("a"))
    other.reserve(charge("b"))
    ledger.commit("b")
    assert ledger.head == other.head
    other.close()
    assert len(reopened(path)) == 4


def test_a_reserve_is_on_disk_when_reserve_returns(ledger: Ledger) -> None:
    # synchronous = FULL (2) is what makes a commit of SQLite wait for the disk.
    assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not ledger._database.in_transaction


# --- append-only -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries",
        "DELETE FROM entries WHERE seq = 1",
        "UPDATE entries SET payload = '{}' WHERE seq = 1",
        "UPDATE entries SET kind = 'COMMIT'",
    ],
)
def test_the_database_itself_refuses_to_change_a_row(
    ledger: Ledger, path: Path, statement: str
) -> None:
    ledger.reserve(charge("a"))
    before = ledger.entries()
    other = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    other.close()
    assert reopened(path) == before


def tamper(path: Path, *statements: str) -> None:
    """Change rows as somebody would who has the file and drops the triggers."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TRIGGER entries_are_never_changed")
    database.execute("DROP TRIGGER entries_are_never_deleted")
    for statement in statements:
        database.execute(statement)
    database.close()


@pytest.mark.parametrize(
    ("attack", "damaged_row"),
    [
        (["UPDATE entries SET payload = replace(payload, '1.5', '9.5') WHERE seq = 2"], 2),
        (["UPDATE entries SET kind = 'COMMIT' WHERE seq = 2"], 2),
        (["UPDATE entries SET hash = prev WHERE seq = 3"], 3),
        (["UPDATE entries SET payload = replace(payload, 'site-0', 'site-1') WHERE seq = 0"], 0),
        (["REPLACE INTO entries SELECT seq, kind, '{}', prev, hash FROM entries"], 0),
        (["DELETE FROM entries WHERE seq = 2"], 2),
        (["DELETE FROM entries WHERE seq = 0"], 0),
        (
            [
                "UPDATE entries SET seq = 99 WHERE seq = 1",
                "UPDATE entries SET seq = 1 WHERE seq = 2",
                "UPDATE entries SET seq = 2 WHERE seq = 99",
            ],
            1,
        ),
        (
            [
                "DELETE FROM entries WHERE seq = 1",
                "UPDATE entries SET seq = seq - 1 WHERE seq > 1",
            ],
            1,
        ),
    ],
    ids=[
        "payload",
        "kind",
        "hash",
        "genesis",
        "replaced",
        "removed",
        "headless",
        "reordered",
        "closed gap",
    ],
)
def test_a_row_that_was_tampered_with_is_named_when_the_ledger_is_opened(
    path: Path, attack: list[str], damaged_row: int
) -> None:
    ledger = Ledger(path, site=SITE)
    for key in "abc":
        ledger.reserve(charge(key))
    ledger.close()
    tamper(path, *attack)
    with pytest.raises(LedgerError, match=rf"damaged at row {damaged_row}\b") as raised:
        Ledger(path, site=SITE)
    assert "backup" in raised.value.fix


def test_rows_that_another_process_adds_are_verified_too(ledger: Ledger, path: Path) -> None:
    ledger.reserve(charge("a"))
    forged = sqlite3.connect(path, isolation_level=None)
    forged.execute("INSERT INTO entries VALUES (2, 'COMMIT', '{}', ?, ?)", ("0" * 64, "f" * 64))
    forged.close()
    with pytest.raises(LedgerError, match="damaged at row 2"):
        _ = ledger.events


def test_an_event_that_is_not_known_is_refused_and_never_free(path: Path) -> None:
    ledger = Ledger(path, site=SITE)
    payload = charge("a").model_dump_json().replace("poisson_gaussian_steps", "laplace")
    payload = payload.replace("{", '{"at":"now",', 1)
    prev = ledger.head.hash
    row = (1, "RESERVE", payload, prev, _row_hash(1, "RESERVE", payload, prev))
    ledger._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    ledger.close()
    with pytest.raises(LedgerError, match="at row 1"):
        Ledger(path, site=SITE)


@pytest.mark.parametrize("content", [b"", b"no database at all " * 100], ids=["empty", "text"])
def test_a_file_that_is_no_ledger_is_refused_or_started_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if not content:  # what SQLite leaves when it is killed before its first write
        assert len(reopened(path)) == 1
        return
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(path, site=SITE)
    assert path.read_bytes() == content


def test_a_folder_that_cannot_be_made_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(tmp_path / "file" / "ledger.db", site=SITE)


# --- several processes -----------------------------------------------------------------

APPEND = """
import sys
from pathlib import Path
from tacit_client.ledger import Charge, Ledger
from tacit_common.privacy.events import GaussianRelease

path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(path, site="site-0")
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    key = f"{name}-{number}"
    event = GaussianRelease(noise_multiplier=3.0)
    ledger.reserve(
        Charge(key=key, run="r", study_digest="d", action="probe", label=key, event=event)
    )
    ledger.commit(key)
print("done", flush=True)
"""


@contextlib.contextmanager
def started(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that is killed at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_processes_that_append_at_once_never_fork_the_chain(path: Path) -> None:
    count = 40
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(APPEND, str(path), name, str(count))) for name in "abc"
        ]
        assert [hear(process) for process in processes] == ["ready"] * 3
        for process in processes:
            say(process, "go")
        assert [hear(process) for process in processes] == ["done"] * 3
    entries = reopened(path)  # raises if the chain is broken
    assert len(entries) == 1 + 3 * count * 2
    reserved = [entry.payload for entry in entries if entry.kind == "RESERVE"]
    assert len(set(reserved)) == 3 * count


# --- kill -9 ---------------------------------------------------------------------------

RELEASE = """
import os, sys, uuid
from pathlib import Path
from tacit_client.ledger import Charge, Ledger
from tacit_common.privacy.events import GaussianRelease

path, released = Path(sys.argv[1]), Path(sys.argv[2])
print("imported", flush=True)
for _ in sys.stdin:  # each line starts one life, in a process of its own
    child = os.fork()
    if child == 0:
        ledger = Ledger(path, site="site-0")
        while True:
            key = uuid.uuid4().hex
            event = GaussianRelease(noise_multiplier=3.0)
            ledger.reserve(
                Charge(key=key, run="r", study_digest="d", action="probe", label=key, event=event)
            )
            (released / key).touch()
            ledger.commit(key)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_after_any_kill_every_release_has_a_reserve_and_the_chain_holds(
    path: Path, tmp_path: Path
) -> None:
    delays = random.Random(0)  # noqa: S311 - moments, not secrets
    released = tmp_path / "released"
    released.mkdir()
    with started(RELEASE, str(path), str(released)) as nursery:
        assert hear(nursery) == "imported"
        for _ in range(60):
            say(nursery, "live")
            child = int(hear(nursery))
            time.sleep(delays.uniform(0.0, 0.15))
            os.kill(child, signal.SIGKILL)
    entries = reopened(path)
    ledger = Ledger(path, site=SITE)
    reserved = {one.key for one in ledger.charges}
    ledger.close()
    releases = {file.name for file in released.iterdir()}
    assert len(releases) > 100  # the storm did something
    assert releases <= reserved
    commits = sum(entry.kind == "COMMIT" for entry in entries)
    assert len(reserved) - 60 <= commits <= len(releases)


def test_the_ledger_of_another_site_is_refused(path: Path) -> None:
    Ledger(path, site=SITE).close()
    with pytest.raises(LedgerError, match="not that of site"):
        Ledger(path, site="another")
