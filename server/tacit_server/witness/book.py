"""What a witness has seen, on disk: every head, and the proof of any fork.

The rule is `HeadBook`'s; here it outlives the process. A head is on disk before anybody
is told so, and several processes may use one book at once.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import SignedHead
from tacit_common.witness import HeadBook

_SCHEMA = """
CREATE TABLE IF NOT EXISTS heads (
    site TEXT NOT NULL, public_key TEXT NOT NULL, seq INTEGER NOT NULL,
    head TEXT NOT NULL, seen_at TEXT NOT NULL,
    PRIMARY KEY (site, seq)) STRICT;
CREATE TABLE IF NOT EXISTS forks (
    site TEXT NOT NULL PRIMARY KEY, first TEXT NOT NULL, second TEXT NOT NULL,
    seen_at TEXT NOT NULL) STRICT;
"""
_NEWEST = "SELECT head, seen_at FROM heads WHERE site = ? ORDER BY seq DESC LIMIT 1"


class Seen(BaseModel):
    """A head, and when the witness first saw it."""

    model_config = ConfigDict(frozen=True)

    head: SignedHead
    at: str  # ISO 8601, UTC


class Fork(BaseModel):
    """Two heads with one number that one key signed: a proof, for whoever has the key."""

    model_config = ConfigDict(frozen=True)

    first: SignedHead
    second: SignedHead
    at: str  # ISO 8601, UTC, when the second was seen

    def is_proof(self) -> bool:
        """Whether it shows, to anybody, that its signer keeps two histories."""
        same = (self.first.site, self.first.public_key, self.first.seq) == (
            (self.second.site, self.second.public_key, self.second.seq)
        )
        differ = self.first.hash != self.second.hash
        return same and differ and self.first.is_genuine() and self.second.is_genuine()


class Book:
    """Every head that was accepted, and one fork a site, if there was one.

    Opens a book that `create` has made.

    Raises:
        LedgerError: there is no such file, it is no book, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Never made anew here: a witness that lost its book would forget in silence.
            self._database = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=30.0,
                check_same_thread=False,
            )
            # A rollback journal, not WAL: with EXTRA its removal, which is the commit, has
            # reached the disk too.
            self._database.execute("PRAGMA synchronous = EXTRA")
            self._database.execute("SELECT site, first, second, seen_at FROM forks LIMIT 0")
            self._database.execute("SELECT site, public_key, seq, head FROM heads LIMIT 0")
        except sqlite3.Error as error:
            raise _unusable(path, error) from None
        self._lock = threading.Lock()

    @classmethod
    def create(cls, path: Path) -> Self:
        """An empty book, or the one that is there.

        Raises:
            LedgerError: the file is no book, or cannot be made.
        """
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                database.execute("PRAGMA synchronous = EXTRA")
                database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            raise _unusable(path, error) from None
        return cls(path)

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._database.close()

    def observe(self, head: SignedHead) -> None:
        """Take note of a head, durably, or refuse it.

        Guarantees: once this returns, no earlier head and no other with its number is ever
        accepted, after a kill -9 or a loss of power either. A fork is kept as evidence.

        Raises:
            LedgerError: the site did not sign it, the ledger was rolled back or forked, or
                the site or the key is known otherwise.
        """
        with self._transaction():
            self._keep_fork(head)
            refused = self._refused(head)
            if refused is None:
                self._database.execute(
                    "INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?)",
                    (head.site, head.public_key, head.seq, head.model_dump_json(), _now()),
                )
        if refused is not None:  # raised outside, so that the evidence is committed
            raise refused

    def newest(self, site: str) -> Seen | None:
        """The newest head of a site; None if none was ever accepted."""
        with self._lock:
            row = self._database.execute(_NEWEST, (site,)).fetchone()
        return None if row is None else _seen(*row)

    def sites(self) -> list[str]:
        """Every site of which a head was accepted."""
        with self._lock:
            rows = self._database.execute("SELECT DISTINCT site FROM heads ORDER BY site")
            return [site for (site,) in rows]

    def forks(self) -> list[Fork]:
        """The evidence: at most one fork a site, the first that was shown."""
        with self._lock:
            rows = self._database.execute("SELECT first, second, seen_at FROM forks ORDER BY site")
            return [
                Fork(
                    first=SignedHead.model_validate_json(first),
                    second=SignedHead.model_validate_json(second),
                    at=at,
                )
                for first, second, at in rows
            ]

    def require_writable(self) -> None:
        """Raises sqlite3.Error if a head could not be kept now."""
        with self._transaction():
            self._database.execute("DELETE FROM forks WHERE 0")

    def _keep_fork(self, head: SignedHead) -> None:
        known = self._database.execute(
            "SELECT head FROM heads WHERE site = ? AND seq = ?", (head.site, head.seq)
        ).fetchone()
        if known is None:
            return
        at = _now()
        fork = Fork(first=SignedHead.model_validate_json(known[0]), second=head, at=at)
        if fork.is_proof():
            first, second = fork.first.model_dump_json(), fork.second.model_dump_json()
            self._database.execute(
                "INSERT OR IGNORE INTO forks VALUES (?, ?, ?, ?)", (head.site, first, second, at)
            )

    def _refused(self, head: SignedHead) -> LedgerError | None:
        known = self._database.execute(_NEWEST, (head.site,)).fetchone()
        rule = HeadBook()
        if known is not None:
            rule.restore({head.site: _seen(*known).head})
        try:
            rule.observe(head)
        except LedgerError as error:
            return error
        other = self._database.execute(
            "SELECT 1 FROM heads WHERE public_key = ? AND site <> ?", (head.public_key, head.site)
        ).fetchone()
        if other is None:
            return None
        return LedgerError(
            f"the ledger of '{head.site}' cannot be trusted",
            why="its key signs the ledger of another site as well",
            fix="let every site have a key of its own",
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _unusable(path: Path, error: sqlite3.Error) -> LedgerError:
    return LedgerError(
        f"the witness's book '{path.name}' cannot be used",
        why=f"SQLite says {getattr(error, 'sqlite_errorname', type(error).__name__)}",
        fix="restore it from the newest backup; without it rollbacks go unnoticed",
    )


def _seen(head: str, at: str) -> Seen:
    return Seen(head=SignedHead.model_validate_json(head), at=at)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
