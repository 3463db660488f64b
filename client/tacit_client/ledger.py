"""The site's ledger: what was promised to be spent, written before any data is read.

Append-only rows in SQLite, chained by hash: GENESIS, then a RESERVE before a site
touches data for a request and a COMMIT once its answer is on disk. What is spent is
the sum of all reserves; nothing is ever refunded, not for failures either.

A request has a key. A site reserves once a key and keeps the answer that it gave (see
`outbox`), so a server that lost the answer gets the same one again: a round is never
paid, nor noised, twice.
"""

import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import LedgerError
from tacit_common.privacy.events import PrivacyEvent

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq     INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL CHECK (kind IN ('GENESIS', 'RESERVE', 'COMMIT')),
    payload TEXT NOT NULL,
    prev    TEXT NOT NULL,
    hash    TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS entries_are_never_changed BEFORE UPDATE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER IF NOT EXISTS entries_are_never_deleted BEFORE DELETE ON entries
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
"""
_NO_PREDECESSOR = "0" * 64


class Charge(BaseModel):
    """What one request costs, and on whose behalf: the payload of a RESERVE."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str = Field(description="Identity of the request (RoundPlan.key, ProbePlan.key).")
    run: str
    study_digest: str
    action: Literal["train", "probe"]
    label: str = Field(description="'round 3' or 'probe 0 before'.")
    event: PrivacyEvent


@dataclass(frozen=True)
class LedgerHead:
    """Where a ledger stands: the number and the hash of its last row."""

    seq: int
    hash: str


@dataclass(frozen=True)
class Entry:
    """One row of the ledger."""

    seq: int
    kind: str
    payload: str
    prev: str
    hash: str


class Ledger:
    """The ledger of one site, open for reading and appending.

    Opening verifies the whole chain.

    Raises:
        LedgerError: the file cannot be opened, or its chain is broken.
    """

    def __init__(self, path: Path, *, site: str, survive_power_loss: bool = True) -> None:
        self._path = path
        self._site = site
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            # FULL: a reserve has reached the disk before any record is read. NORMAL is
            # enough where only the process can die, as in a simulation.
            level = "FULL" if survive_power_loss else "NORMAL"
            self._database.execute(f"PRAGMA synchronous = {level}")
            if not self._database.execute("PRAGMA table_info(entries)").fetchone():
                self._database.executescript(_SCHEMA)
            with self._transaction():
                if not self._database.execute("SELECT 1 FROM entries LIMIT 1").fetchone():
                    self._append("GENESIS", {"site": site, "format": 1})
        except (sqlite3.Error, OSError) as error:
            raise _unusable(path, type(error).__name__) from None
        self._charges: dict[str, Charge] = {}
        self._committed: set[str] = set()
        self._last: Entry | None = None
        self._catch_up()

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        self._database.close()

    @property
    def events(self) -> list[PrivacyEvent]:
        """Everything that was ever reserved: what accounting composes."""
        return [charge.event for charge in self.charges]

    @property
    def charges(self) -> list[Charge]:
        """All reserves, oldest first."""
        self._catch_up()
        return list(self._charges.values())

    @property
    def head(self) -> LedgerHead:
        """Number and hash of the last row."""
        last = self._catch_up()
        return LedgerHead(last.seq, last.hash)

    def entries(self) -> list[Entry]:
        """All rows, oldest first."""
        return self._rows()

    def is_reserved(self, key: str) -> bool:
        """Whether this request has been paid for already."""
        self._catch_up()
        return key in self._charges

    def is_committed(self, key: str) -> bool:
        """Whether the answer to this request was stored, and so may have left."""
        self._catch_up()
        return key in self._committed

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads and processes from answering for this site meanwhile.

        Raises:
            LedgerError: the lock cannot be taken.
        """
        try:
            lock = self._path.with_suffix(".lock").open("w")
        except OSError as error:
            raise _unusable(self._path, type(error).__name__) from None
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def reserve(self, charge: Charge) -> None:
        """Pay for a request, durably, before any data is read.

        Paying twice for one key is a mistake of the caller and is refused.

        Raises:
            LedgerError: the row cannot be written, or the key is reserved already.
        """
        if self.is_reserved(charge.key):
            raise LedgerError(
                "a request is being paid for twice",
                why=f"'{charge.label}' of run {charge.run} is in the ledger already",
                fix="report this: a repeated request must be answered from the outbox",
            )
        self._write("RESERVE", charge.model_dump(mode="json"))

    def commit(self, key: str) -> None:
        """Note that the answer to a reserved request is on disk and may leave.

        Noting it twice is noting it once.

        Raises:
            LedgerError: the row cannot be written, or nothing was reserved for `key`.
        """
        if not self.is_reserved(key):
            raise LedgerError(
                "an answer has no reserve",
                why="only what was paid for in advance may leave a site",
                fix="report this: it is a fault in the site's software",
            )
        if key not in self._committed:
            self._write("COMMIT", {"key": key})

    def _write(self, kind: str, payload: dict[str, object]) -> None:
        try:
            with self._transaction():
                self._append(kind, payload)
        except sqlite3.Error as error:
            raise _unusable(self._path, type(error).__name__) from None

    def _append(self, kind: str, payload: dict[str, object]) -> None:
        newest = "SELECT seq, hash FROM entries ORDER BY seq DESC LIMIT 1"
        last = self._database.execute(newest).fetchone() or (-1, _NO_PREDECESSOR)
        seq, prev = last[0] + 1, last[1]
        stamped = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), **payload}
        text = json.dumps(stamped, sort_keys=True, separators=(",", ":"))
        row = (seq, kind, text, prev, _row_hash(seq, kind, text, prev))
        self._database.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)

    def _rows(self, *, after: int = -1) -> list[Entry]:
        query = "SELECT seq, kind, payload, prev, hash FROM entries WHERE seq > ? ORDER BY seq"
        return [Entry(*row) for row in self._database.execute(query, (after,))]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: two processes that append cannot both read the same last row.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _catch_up(self) -> Entry:
        """Verify the rows that were added since the last look, by this process or another.

        Returns:
            The last row.
        """
        last = self._last
        for entry in self._rows(after=-1 if last is None else last.seq):
            seq, prev = (0, _NO_PREDECESSOR) if last is None else (last.seq + 1, last.hash)
            expected = _row_hash(seq, entry.kind, entry.payload, prev)
            if (entry.seq, entry.prev, entry.hash) != (seq, prev, expected):
                raise LedgerError(
                    f"the ledger '{self._path.name}' is damaged at row {seq}",
                    why="a row does not follow from the one before it",
                    fix="restore the ledger from a backup; do not delete it: what was spent "
                    "stays spent",
                )
            if entry.kind == "GENESIS" and json.loads(entry.payload).get("site") != self._site:
                raise LedgerError(
                    f"the ledger '{self._path.name}' is not that of site '{self._site}'",
                    why="its first row names another site",
                    fix="give every site a folder of its own",
                )
            if entry.kind == "RESERVE":
                charge = self._charge_of(entry)
                self._charges[charge.key] = charge
            elif entry.kind == "COMMIT":
                self._committed.add(json.loads(entry.payload)["key"])
            last = self._last = entry
        if last is None:
            raise _unusable(self._path, "that it has no rows")
        return last

    def _charge_of(self, entry: Entry) -> Charge:
        payload = json.loads(entry.payload)
        payload.pop("at", None)
        try:
            return Charge.model_validate(payload)
        except ValidationError:
            raise LedgerError(
                f"the ledger '{self._path.name}' cannot be understood at row {entry.seq}",
                why="it holds a charge that this version does not know, whose cost it cannot tell",
                fix="use the version of Tacit that wrote it, or a newer one",
            ) from None


def _row_hash(seq: int, kind: str, payload: str, prev: str) -> str:
    return hashlib.sha256(f"{prev}\n{seq}\n{kind}\n{payload}".encode()).hexdigest()


def _unusable(path: Path, reason: str) -> LedgerError:
    return LedgerError(
        f"the ledger '{path.name}' cannot be used",
        why=f"the database answers {reason}",
        fix="check that the site's folder is writable, has space, and is not on a network share",
    )
