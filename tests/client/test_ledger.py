"""The ledger: append-only, chained, signed, and written before anything is released."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tacit_client.ledger import Ledger
from tacit_client.ledger_file import read_export, read_ledger
from tacit_common.errors import LedgerError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import (
    Atom,
    Cap,
    Charge,
    Entry,
    Genesis,
    SignedHead,
    head_of,
    next_entry,
    verify_rows,
)
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.spend import Spend

STEPS = PoissonGaussianSteps(sampling_rate=0.1, noise_multiplier=1.5, steps=4)
CAP = Cap(epsilon=8.0, delta=1e-5)
SITE = "site-0"
IDENTITY = Identity.create()


def charge(key: str, event: PrivacyEvent = STEPS, *, run: str = "r", atom: str = "a0") -> Charge:
    return Charge(
        key=key,
        run=run,
        study="study",
        study_digest="d" * 64,
        action="train",
        label=f"round of {key}",
        unit="record",
        event=event,
        planned=(event,),
        atoms=(atom,),
        cap=None if isinstance(event, NonPrivateRelease) else CAP,
    )


def anything(_spend: Spend, _charge: Charge) -> None:
    """Admits every charge."""


def opened(path: Path, *, site: str = SITE, identity: Identity = IDENTITY) -> Ledger:
    return Ledger(path, site=site, identity=identity)


def with_atom(ledger: Ledger) -> Ledger:
    """The ledger, with the one atom that these tests charge."""
    atom = Atom(atom="a0", lineage="scans", parents=(), tags_sha256="0" * 64)
    ledger.add_atoms(lambda _database, atoms: [] if atoms else [atom])
    return ledger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "site" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = with_atom(opened(path))
    yield ledger
    ledger.close()


def rows_on_disk(path: Path) -> list[Entry]:
    """The rows of a ledger that can be opened and verified, by its site and by others."""
    again = opened(path)
    try:
        rows = again.entries()
    finally:
        again.close()
    verify_rows(rows)
    return rows


def kinds(rows: list[Entry]) -> list[str]:
    return [row.kind for row in rows]


# --- what is written -------------------------------------------------------------------


def test_a_new_ledger_holds_its_genesis_and_no_spend(path: Path) -> None:
    ledger = opened(path)
    assert kinds(ledger.entries()) == ["GENESIS"]
    assert ledger.entries()[0].parsed() == Genesis(site=SITE, public_key=IDENTITY.public_key)
    assert ledger.events == []
    assert ledger.atoms == ()
    assert ledger.head.seq == 0
    assert ledger.head.is_genuine()
    assert rows_on_disk(path) == ledger.entries()  # opening again adds nothing
    ledger.close()


def test_rows_are_read_back_as_they_were_written(ledger: Ledger, path: Path) -> None:
    charges = [
        charge("a", STEPS),
        charge("b", GaussianRelease(noise_multiplier=0.1 + 0.2)),  # every digit counts
        charge("c", NonPrivateRelease()),
    ]
    for one in charges:
        ledger.reserve(one, anything)
    ledger.commit("b")
    ledger.void("c")
    ledger.close_run("r")
    other = opened(path)
    assert other.charges == charges
    assert other.events == [one.event for one in charges]
    assert other.atoms == ledger.atoms
    assert kinds(other.entries()) == ["GENESIS", "ATOM", *["RESERVE"] * 3, "COMMIT", "VOID", "VOID"]
    assert other.head == ledger.head
    assert (other.is_committed("b"), other.is_voided("b")) == (True, False)
    assert (other.is_committed("c"), other.is_voided("c")) == (False, True)
    assert (other.is_committed("a"), other.is_voided("a")) == (False, False)
    other.close()


def test_spend_is_the_sum_of_all_reserves_and_nothing_is_refunded(ledger: Ledger) -> None:
    ledger.reserve(charge("done"), anything)
    ledger.commit("done")
    ledger.reserve(charge("crashed"), anything)  # no outcome is ever noted
    ledger.reserve(charge("failed"), anything)
    spent = ledger.spend.of_atom("a0", CAP)
    ledger.void("failed")
    assert ledger.events == [STEPS, STEPS, STEPS]
    assert ledger.spend.of_atom("a0", CAP) == spent
    assert spent.releases == 3


def test_a_key_is_reserved_once(ledger: Ledger) -> None:
    ledger.reserve(charge("a"), anything)
    with pytest.raises(LedgerError, match="paid for twice"):
        ledger.reserve(charge("a", GaussianRelease(noise_multiplier=9.0)), anything)
    assert ledger.events == [STEPS]


def test_an_atom_that_was_never_bound_cannot_be_charged(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="does not know"):
        ledger.reserve(charge("a", atom="a7"), anything)
    assert ledger.events == []


@pytest.mark.parametrize("outcome", [Ledger.commit, Ledger.void])
def test_a_key_that_was_not_reserved_has_no_outcome(
    ledger: Ledger, outcome: Callable[[Ledger, str], None]
) -> None:
    ledger.reserve(charge("a"), anything)
    with pytest.raises(LedgerError, match="no reserve"):
        outcome(ledger, "b")
    assert kinds(ledger.entries()) == ["GENESIS", "ATOM", "RESERVE"]


@pytest.mark.parametrize("outcome", [Ledger.commit, Ledger.void])
def test_an_outcome_noted_twice_is_noted_once_and_never_changes(
    ledger: Ledger, outcome: Callable[[Ledger, str], None]
) -> None:
    ledger.reserve(charge("a"), anything)
    outcome(ledger, "a")
    outcome(ledger, "a")
    assert len(ledger.entries()) == 4
    other = Ledger.void if outcome is Ledger.commit else Ledger.commit
    with pytest.raises(LedgerError, match="two outcomes"):
        other(ledger, "a")


def test_a_run_is_closed_once_and_only_if_it_was_charged(ledger: Ledger) -> None:
    ledger.close_run("r")
    assert kinds(ledger.entries()) == ["GENESIS", "ATOM"]
    ledger.reserve(charge("a"), anything)
    ledger.close_run("r")
    ledger.close_run("r")
    assert kinds(ledger.entries()) == ["GENESIS", "ATOM", "RESERVE", "VOID"]


def test_a_refused_charge_writes_nothing(ledger: Ledger) -> None:
    def refuse(_spend: Spend, _charge: Charge) -> None:
        raise ValueError("no")

    before = ledger.entries()
    with pytest.raises(ValueError, match="no"):
        ledger.reserve(charge("a"), refuse)
    assert ledger.entries() == before
    assert not ledger.is_reserved("a")
    ledger.reserve(charge("a"), anything)  # the ledger is not left locked


def test_who_admits_a_charge_sees_what_other_processes_reserved(ledger: Ledger, path: Path) -> None:
    other = opened(path)
    other.reserve(charge("theirs"), anything)
    seen: list[int] = []
    ledger.reserve(charge("mine"), lambda spend, _: seen.append(spend.of_atom("a0", CAP).releases))
    assert seen == [1]
    other.close()


def test_a_second_handle_sees_what_the_first_wrote(ledger: Ledger, path: Path) -> None:
    other = opened(path)
    ledger.reserve(charge("a"), anything)
    assert other.is_reserved("a")
    assert other.events == [STEPS]
    with pytest.raises(LedgerError, match="paid for twice"):
        other.reserve(charge("a"), anything)
    other.reserve(charge("b"), anything)
    ledger.commit("b")
    assert ledger.head == other.head
    other.close()
    assert len(rows_on_disk(path)) == 5


def test_a_reserve_is_on_disk_when_reserve_returns(ledger: Ledger) -> None:
    # synchronous = FULL (2) is what makes a commit of SQLite wait for the disk.
    assert ledger._database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert ledger._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert not ledger._database.in_transaction


def test_atoms_and_what_their_maker_writes_are_added_together_or_not_at_all(
    ledger: Ledger, path: Path
) -> None:
    def fails(database: sqlite3.Connection, atoms: tuple[Atom, ...]) -> list[Atom]:
        assert [atom.atom for atom in atoms] == ["a0"]
        database.execute("CREATE TABLE aside (x)")
        raise ValueError("half-way")

    with pytest.raises(ValueError, match="half-way"):
        ledger.add_atoms(fails)
    database = sqlite3.connect(path)
    assert database.execute("SELECT name FROM sqlite_master WHERE name = 'aside'").fetchall() == []
    database.close()
    assert kinds(ledger.entries()) == ["GENESIS", "ATOM"]


# --- append-only -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries",
        "DELETE FROM entries WHERE seq = 1",
        "UPDATE entries SET payload = '{}' WHERE seq = 1",
        "UPDATE entries SET kind = 'COMMIT'",
        "UPDATE entries SET sig = hash",
    ],
)
def test_the_database_itself_refuses_to_change_a_row(
    ledger: Ledger, path: Path, statement: str
) -> None:
    ledger.reserve(charge("a"), anything)
    before = ledger.entries()
    other = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    other.close()
    assert rows_on_disk(path) == before


def tamper(path: Path, *statements: str) -> None:
    """Change rows as somebody would who has the file and drops the triggers."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TRIGGER entries_are_never_changed")
    database.execute("DROP TRIGGER entries_are_never_deleted")
    for statement in statements:
        database.execute(statement)
    database.close()


def ledger_of_every_kind(path: Path) -> list[Entry]:
    """GENESIS, ATOM, RESERVE, COMMIT, RESERVE, VOID, VOID, closed."""
    ledger = with_atom(opened(path))
    for key, outcome in (("a", ledger.commit), ("b", ledger.void)):
        ledger.reserve(charge(key), anything)
        outcome(key)
    ledger.close_run("r")
    rows = ledger.entries()
    ledger.close()
    return rows


@pytest.mark.parametrize("seq", range(7))
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("seq", "seq + 100"),
        ("kind", "iif(kind = 'COMMIT', 'VOID', 'COMMIT')"),
        ("payload", 'replace(payload, \'"at":"2\', \'"at":"3\')'),
        ("payload", "'{}'"),
        ("payload", "'not JSON'"),
        ("prev", "hash"),
        ("hash", "prev"),
        ("sig", "prev || hash"),
        ("sig", "'not a signature'"),
    ],
)
def test_every_column_of_every_kind_of_row_is_verified_when_the_ledger_is_opened(
    path: Path, seq: int, column: str, value: str
) -> None:
    rows = ledger_of_every_kind(path)
    assert len(rows) == 7
    tamper(path, f"UPDATE entries SET {column} = {value} WHERE seq = {seq}")  # noqa: S608
    for look in (opened, read_ledger):
        with pytest.raises(LedgerError) as raised:
            look(path)
        # A last row that is numbered anew is as one that is missing in between.
        assert (
            f"at row {seq}" in raised.value.what or "rows" in raised.value.why or (column == "seq")
        )


@pytest.mark.parametrize(
    ("attack", "damaged_row"),
    [
        (["UPDATE entries SET payload = replace(payload, '1.5', '9.5') WHERE seq = 2"], 2),
        (["UPDATE entries SET payload = replace(payload, 'site-0', 'site-1') WHERE seq = 0"], 0),
        (["DELETE FROM entries WHERE seq = 2"], 2),
        (["DELETE FROM entries WHERE seq = 0"], 0),
        (
            [
                "UPDATE entries SET seq = 99 WHERE seq = 2",
                "UPDATE entries SET seq = 2 WHERE seq = 4",
                "UPDATE entries SET seq = 4 WHERE seq = 99",
            ],
            2,
        ),
        (
            [
                "DELETE FROM entries WHERE seq = 2",
                "UPDATE entries SET seq = seq - 1 WHERE seq > 2",
            ],
            2,
        ),
    ],
    ids=["cheaper", "genesis", "removed", "headless", "reordered", "closed gap"],
)
def test_a_row_that_was_tampered_with_is_named_when_the_ledger_is_opened(
    path: Path, attack: list[str], damaged_row: int
) -> None:
    ledger_of_every_kind(path)
    tamper(path, *attack)
    with pytest.raises(LedgerError, match=rf"damaged at row {damaged_row}\b") as raised:
        opened(path)
    assert "backup" in raised.value.fix


def test_rows_that_another_process_adds_are_verified_too(ledger: Ledger, path: Path) -> None:
    ledger.reserve(charge("a"), anything)
    thief = Identity.create()
    forged = next_entry(
        ledger.entries()[-1], charge("b"), at="2026-01-01", site=SITE, identity=thief
    )
    insert(path, forged)
    with pytest.raises(LedgerError, match="damaged at row 3: the site's key did not sign"):
        _ = ledger.events


def insert(path: Path, row: Entry) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    columns = (row.seq, row.kind, row.payload, row.prev, row.hash, row.sig)
    database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", columns)
    database.close()


def test_a_file_that_is_exchanged_under_an_open_ledger_is_noticed(
    ledger: Ledger, path: Path
) -> None:
    ledger.reserve(charge("a"), anything)
    tamper(path, "DELETE FROM entries WHERE seq = 2")
    with pytest.raises(LedgerError, match="damaged at row 2: its last row has changed or is gone"):
        ledger.reserve(charge("b"), anything)


def test_an_event_that_is_not_known_is_refused_and_never_free(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = with_atom(opened(path))
    # A later version of this site's own software wrote it, and signed it soundly.
    original = Charge.model_dump

    def later(self: Charge, **options: object) -> dict[str, object]:
        content = original(self, **options)  # type: ignore[arg-type]
        content["event"]["kind"] = "laplace"
        return content

    monkeypatch.setattr(Charge, "model_dump", later)
    ledger.reserve(charge("a"), anything)
    ledger.close()
    with pytest.raises(LedgerError, match="cannot be understood at row 2"):
        opened(path)


@pytest.mark.parametrize("content", [b"", b"no database at all " * 100], ids=["empty", "text"])
def test_a_file_that_is_no_ledger_is_refused_or_started_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if not content:  # what SQLite leaves when it is killed before its first write
        assert len(rows_on_disk(path)) == 1
        return
    with pytest.raises(LedgerError, match="cannot be used"):
        opened(path)
    assert path.read_bytes() == content


def test_a_ledger_without_signatures_is_refused_and_kept(path: Path) -> None:
    path.parent.mkdir(parents=True)
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind, payload, prev, hash)")
    database.close()
    for look in (opened, read_ledger):
        with pytest.raises(LedgerError, match="another version of Tacit wrote it"):
            look(path)


def test_a_folder_that_cannot_be_made_is_a_ledger_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="cannot be used"):
        opened(tmp_path / "file" / "ledger.db")


def test_the_ledger_of_another_site_is_refused(path: Path) -> None:
    opened(path).close()
    with pytest.raises(LedgerError, match=r"not that of site 'another'.*names another site"):
        opened(path, site="another")


def test_the_ledger_that_another_key_began_is_refused(path: Path) -> None:
    opened(path).close()
    with pytest.raises(LedgerError, match="another key signed it"):
        opened(path, identity=Identity.create())


# --- rollback, forks, and reading without a key -------------------------------------------


def copy_of(path: Path, target: Path) -> Path:
    """The ledger as it stands, as a backup would keep it."""
    target.parent.mkdir(parents=True)
    source, kept = sqlite3.connect(path), sqlite3.connect(target)
    source.backup(kept)
    source.close()
    kept.close()
    return target


def test_a_ledger_that_was_rolled_back_is_behind_its_witnessed_head(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    ledger.reserve(charge("a"), anything)
    earlier = ledger.head
    backup = copy_of(path, tmp_path / "backup" / "ledger.db")
    ledger.reserve(charge("b"), anything)
    witnessed = ledger.head
    ledger.require_not_behind(earlier)
    ledger.require_not_behind(witnessed)
    restored = opened(backup)  # a sound chain, but not all of it
    restored.require_not_behind(earlier)
    with pytest.raises(LedgerError, match="rolled back: it ends at row 2"):
        restored.require_not_behind(witnessed)
    restored.close()


def test_two_histories_of_one_site_are_a_fork(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    fork = opened(copy_of(path, tmp_path / "fork" / "ledger.db"))
    ledger.reserve(charge("here"), anything)
    fork.reserve(charge("there"), anything)
    for _ in range(2):  # also when the ledger has grown beyond
        with pytest.raises(LedgerError, match="forked at or before row 2"):
            ledger.require_not_behind(fork.head)
        ledger.commit("here")
    fork.close()


def test_a_head_that_this_site_did_not_sign_proves_nothing(ledger: Ledger) -> None:
    genuine = ledger.head
    thief = Identity.create()
    row = next_entry(
        None, Genesis(site=SITE, public_key=thief.public_key), at="", site=SITE, identity=thief
    )
    forged = [
        head_of(row, Genesis(site=SITE, public_key=thief.public_key)),  # another key
        genuine.model_copy(update={"signature": "0" * 128}),
        genuine.model_copy(update={"seq": 99}),
        genuine.model_copy(update={"site": "another"}),
    ]
    for head in forged:
        with pytest.raises(LedgerError, match="not this site's"):
            ledger.require_not_behind(head)


def test_an_export_is_verified_without_the_site_and_holds_no_tag(
    ledger: Ledger, path: Path
) -> None:
    ledger.reserve(charge("a"), anything)
    ledger.add_atoms(lambda database, _: database.execute("CREATE TABLE tags (x)").fetchall())
    export = ledger.export()
    assert verify_rows(export.rows).head == ledger.head
    assert set(type(export.rows[0]).model_fields) == {
        "seq",
        "kind",
        "payload",
        "prev",
        "hash",
        "sig",
    }
    assert read_export(path) == export


@pytest.mark.parametrize("at_work", [True, False])
def test_a_ledger_is_read_without_its_key_and_without_a_trace(path: Path, at_work: bool) -> None:
    ledger = with_atom(opened(path))
    ledger.reserve(charge("a"), anything)
    head: SignedHead = ledger.head
    if not at_work:
        ledger.close()
    before = path.read_bytes()
    assert read_ledger(path).head == head
    assert path.read_bytes() == before
    if at_work:
        ledger.reserve(charge("b"), anything)  # the reader holds no lock
        assert len(read_ledger(path).charges) == 2
        ledger.close()


def test_reading_where_there_is_no_ledger_makes_none(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        read_ledger(path)
    assert not path.parent.exists()


# --- several processes -----------------------------------------------------------------

COMMON = """
import os, sys, uuid
from pathlib import Path
from tacit_client.ledger import Ledger
from tacit_client.policy import SitePolicy
from tacit_common.errors import SiteRefusal
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Atom, Cap, Charge
from tacit_common.privacy.events import GaussianRelease
from tacit_common.privacy.spend import Spend

path = Path(sys.argv[1])
policy = SitePolicy.rehearsal(
    unit="record", epsilon_cap=float(sys.argv[2]), delta=1e-5, allow_non_private=False
)

def open_ledger():
    identity = Identity.load_or_create(path.with_name("key"))
    return Ledger(path, site="site-0", identity=identity)

def charge(key, noise=3.0):
    event = GaussianRelease(noise_multiplier=noise)
    return Charge(
        key=key, run=key, study="s", study_digest="d" * 64, action="probe", label=key,
        unit="record", event=event, planned=(event,), atoms=("a0",), cap=policy.cap,
    )
"""

# What accounting imports on first use is imported before a process forks.
WARM = """
spend = Spend()
spend.add_atom(Atom(atom="a0", lineage="x", parents=(), tags_sha256="0" * 64))
for noise in (3.0, 20.0):
    policy.check(spend, charge("warm", noise))
"""

APPEND = (
    COMMON
    + """
ledger, name, count = open_ledger(), sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    key = f"{name}-{number}"
    ledger.reserve(charge(key), lambda *_: None)
    ledger.commit(key)
print("done", flush=True)
"""
)

RACE = (
    COMMON
    + WARM
    + """
print("imported", flush=True)
sys.stdin.readline()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        ledger = open_ledger()
        while True:
            try:
                ledger.reserve(charge(uuid.uuid4().hex, noise=20.0), policy.check)
            except SiteRefusal:
                os._exit(0)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children], flush=True)
"""
)


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


def prepared(path: Path) -> Identity:
    """A ledger with its atom and a key beside it, for processes to open."""
    identity = Identity.load_or_create(path.with_name("key"))
    with_atom(opened(path, identity=identity)).close()
    return identity


def test_processes_that_append_at_once_never_fork_the_chain(path: Path) -> None:
    prepared(path)
    count = 20
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(started(APPEND, str(path), "100", name, str(count)))
            for name in "abc"
        ]
        assert [hear(process) for process in processes] == ["ready"] * 3
        for process in processes:
            say(process, "go")
        assert [hear(process) for process in processes] == ["done"] * 3
    ledger = read_ledger(path)  # raises if the chain is broken
    assert ledger.head.seq == 1 + 3 * count * 2
    assert len(ledger.charges) == len(ledger.committed) == 3 * count


@pytest.mark.slow
def test_eight_processes_that_race_to_a_cap_never_pass_it(path: Path) -> None:
    prepared(path)
    cap = Cap(epsilon=2.0, delta=1e-5)
    with started(RACE, str(path), str(cap.epsilon)) as race:
        assert hear(race) == "imported"
        say(race, "go")
        assert hear(race) == str([0] * 8)
    ledger = read_ledger(path)
    spend = Spend.of(ledger).of_atom("a0", cap)
    assert spend.held <= cap.epsilon
    one_more = GaussianRelease(noise_multiplier=20.0)
    events = [one.event for one in ledger.charges]
    assert epsilon(events, cap.delta, interval=REPORT_INTERVAL) <= cap.epsilon
    refused = Spend.of(ledger).verdicts(
        ledger.charges[0].model_copy(update={"run": "x", "event": one_more})
    )
    assert [verdict.admitted for verdict in refused] == [False]  # they did race to the cap


# --- kill -9 ---------------------------------------------------------------------------

# Each line on stdin starts one life, in a process of its own, that works until it is killed.
# It says who it is once its ledger is open; or before, and may then be killed while it opens.
LIVES = (
    COMMON
    + WARM
    + """
released = Path(sys.argv[3])
print("imported", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        me = f"{os.getpid()}\\n".encode()
        if line == "early\\n":
            os.write(1, me)
        ledger = open_ledger()
        if line == "late\\n":
            os.write(1, me)
        while True:
            one = charge(uuid.uuid4().hex)
            LIFE
    os.waitpid(child, 0)
"""
)
RESERVE, RELEASE = "ledger.reserve(one, policy.check)", "(released / one.key).touch()"
SOUND = f"{RESERVE}; {RELEASE}; ledger.commit(one.key)"
FAULTY = f"{RELEASE}; {RESERVE}; ledger.commit(one.key)"  # accounts after the release


def storm(tmp_path: Path, life: str, *, kills: int) -> tuple[set[str], set[str], set[str]]:
    """Keys that were released, reserved and committed, over so many kills."""
    moments = random.Random(0)  # noqa: S311 - moments, not secrets
    released: set[str] = set()
    reserved: set[str] = set()
    committed: set[str] = set()
    per_ledger = 40  # a long one takes long to open
    for first in range(0, kills, per_ledger):
        path = tmp_path / f"site-{first}" / "ledger.db"
        answers = path.with_name("released")
        answers.mkdir(parents=True)
        prepared(path)
        with started(LIVES.replace("LIFE", life), str(path), "1e9", str(answers)) as nursery:
            assert hear(nursery) == "imported"
            for kill in range(first, min(first + per_ledger, kills)):
                say(nursery, "late" if kill % 10 else "early")
                child = int(hear(nursery))
                time.sleep(moments.uniform(0.0, 0.05))
                os.kill(child, signal.SIGKILL)
        ledger = read_ledger(path)  # raises if the chain is broken
        released |= {file.name for file in answers.iterdir()}
        reserved |= {one.key for one in ledger.charges}
        committed |= ledger.committed
    return released, reserved, committed


@pytest.mark.slow
def test_mistake_1_after_200_kills_every_release_has_a_reserve(tmp_path: Path) -> None:
    released, reserved, committed = storm(tmp_path, SOUND, kills=200)
    assert len(released) > 200  # the storm did something
    assert released <= reserved
    assert committed <= released
    assert len(reserved) - 200 <= len(committed)  # a kill costs one outcome at most
    assert len(reserved - committed) > 20  # and it did strike in between


@pytest.mark.slow
def test_mistake_1_a_ledger_that_is_charged_after_the_release_is_caught(tmp_path: Path) -> None:
    released, reserved, _ = storm(tmp_path, FAULTY, kills=40)
    assert len(reserved) > 50
    assert not released <= reserved


# --- no refunds --------------------------------------------------------------------------


class RefundingLedger(Ledger):
    """A fault that a test has to notice: what failed is no longer counted."""

    @property
    def charges(self) -> list[Charge]:
        return [one for one in super().charges if not self.is_voided(one.key)]

    @property
    def spend(self) -> Spend:
        spend = Spend()
        for atom in self.atoms:
            spend.add_atom(atom)
        for one in self.charges:
            spend.add(one)
        return spend


def spent_after_failures(path: Path, kind: type[Ledger]) -> tuple[float, float]:
    """ε spent before and after the work of a request failed."""
    ledger = with_atom(kind(path, site=SITE, identity=IDENTITY))
    for key in "ab":
        ledger.reserve(charge(key), anything)
    before = ledger.spend.of_atom("a0", CAP).spent
    ledger.void("b")
    ledger.close_run("r")
    after = ledger.spend.of_atom("a0", CAP).spent
    ledger.close()
    return before, after


def test_mistake_2_a_failure_leaves_spend_unchanged(path: Path) -> None:
    before, after = spent_after_failures(path, Ledger)
    assert after == before > 0


def test_mistake_2_a_ledger_that_refunds_failures_is_caught(path: Path) -> None:
    before, after = spent_after_failures(path, RefundingLedger)
    assert after < before
