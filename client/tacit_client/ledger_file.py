"""A ledger's file: its tables, how it is opened, and reading it beside a working site."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import ValidationError

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import (
    Entry,
    Genesis,
    LedgerExport,
    SignedHead,
    VerifiedLedger,
    head_of,
    verify_rows,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq     INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL CHECK (kind IN ('GENESIS', 'ATOM', 'RESERVE', 'COMMIT', 'VOID')),
    payload TEXT NOT NULL,
    prev    TEXT NOT NULL,
    hash    TEXT NOT NULL,
    sig     TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_are_never_changed BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_are_never_deleted BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_MODE = 0o600
Row = tuple[int, str, str, str, str, str]
COLUMNS = ["seq", "kind", "payload", "prev", "hash", "sig"]
ROWS = f"SELECT {', '.join(COLUMNS)} FROM entries WHERE seq >= ? ORDER BY seq"  # noqa: S608
_ENDS = (
    f"SELECT {', '.join(COLUMNS)} FROM entries "  # noqa: S608
    "WHERE seq = ? OR seq = (SELECT max(seq) FROM entries) ORDER BY seq"
)


def read_export(path: Path) -> LedgerExport:
    """All rows of a ledger on disk, not verified. Needs no private key and changes nothing.

    Raises:
        LedgerError: there is no ledger, or it cannot be read.
    """
    rows = _read(path, ROWS, 0)
    if not rows:
        raise empty(path)
    return LedgerExport(rows=rows)


def read_ledger(path: Path) -> VerifiedLedger:
    """What a ledger on disk says, every hash and signature checked, beside a working site.

    Raises:
        LedgerError: there is no ledger, or it cannot be trusted.
    """
    return verify_rows(read_export(path).rows)


def read_head(path: Path) -> SignedHead:
    """Where a ledger on disk stands, its last signature checked and no other row read.

    Raises:
        LedgerError: there is no ledger, or the site's key did not sign its last row.
    """
    rows = _read(path, _ENDS, 0)
    genesis = rows[0].parsed() if rows else None
    if not isinstance(genesis, Genesis):
        raise empty(path)
    head = head_of(rows[-1], genesis)
    if not head.is_genuine():
        raise damaged(path, head.seq, "the site's key did not sign the row")
    return head


def _read(path: Path, rows: str, first: int) -> tuple[Entry, ...]:
    if not path.is_file():
        raise LedgerError(
            f"there is no ledger '{path.name}'",
            why="no file of that name is in the site's folder",
            fix="name the folder of a site that has answered at least once",
        )
    try:
        # Readers of a WAL write its index, unless nobody is at work and none is there.
        idle = not path.with_name(f"{path.name}-wal").exists()
        how = "immutable=1" if idle else "mode=ro"
        address = f"{path.absolute().as_uri()}?{how}"
        with closing(sqlite3.connect(address, uri=True, timeout=30.0)) as database:
            require_this_format(path, database)
            return tuple(entry_of(path, row) for row in database.execute(rows, (first,)))
    except sqlite3.Error as error:
        raise unusable(path, error) from None


def row_of(entry: Entry) -> Row:
    """A row as it stands in the table."""
    return (entry.seq, entry.kind, entry.payload, entry.prev, entry.hash, entry.sig)


def entry_of(path: Path, row: Row) -> Entry:
    """A row of the table. Raises LedgerError if a column does not hold what belongs there."""
    try:
        return Entry.model_validate(dict(zip(COLUMNS, row, strict=True)))
    except ValidationError:
        raise damaged(path, row[0], "a column does not hold what belongs there") from None


def open_ledger_file(path: Path, *, survive_power_loss: bool) -> sqlite3.Connection:
    """An open database with the ledger's table. Nobody else may be opening it meanwhile.

    A new one is its owner's alone, and with it the files that SQLite puts beside it.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, _MODE))
    database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
    try:
        # FULL: a reserve has reached the disk before any record is read. Nothing needs to be
        # flushed where only the process can die, as in a simulation.
        level = "FULL" if survive_power_loss else "OFF"
        database.execute(f"PRAGMA synchronous = {level}")
        database.execute("PRAGMA journal_mode = WAL")
        if not _columns(database):
            database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes. SQLite's own does not wait while it turns to WAL."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _columns(database: sqlite3.Connection) -> list[str]:
    return [name for _, name, *_ in database.execute("PRAGMA table_info(entries)")]


def require_this_format(path: Path, database: sqlite3.Connection) -> None:
    """Raises LedgerError if another version wrote the file."""
    if _columns(database) != COLUMNS:
        raise LedgerError(
            f"the ledger '{path.name}' cannot be used",
            why="another version of Tacit wrote it, and its rows are not signed",
            fix="use the version that wrote it; do not delete it: what was spent stays spent",
        )


def damaged(path: Path, seq: int, why: str) -> LedgerError:
    """What is wrong with a file whose rows do not hold."""
    return LedgerError(
        f"the ledger '{path.name}' is damaged at row {seq}",
        why=why,
        fix="restore the ledger from a backup; do not delete it: what was spent stays spent",
    )


def unusable(path: Path, error: Exception) -> LedgerError:
    """What is wrong with a file that SQLite or the system does not open."""
    reason = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return LedgerError(
        f"the ledger '{path.name}' cannot be used",
        why=f"the database answers {reason}",
        fix="check that the site's folder is writable, has space, and is not on a network share",
    )


def empty(path: Path) -> LedgerError:
    """What is wrong with a file without rows."""
    return LedgerError(
        f"the ledger '{path.name}' cannot be used",
        why="it has no rows, so nobody signed it",
        fix="restore the ledger from a backup; do not delete it: what was spent stays spent",
    )
