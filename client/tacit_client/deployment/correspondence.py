"""What the coordinator has already said, so that nothing is heard twice.

Whoever sits between could deliver an old request again. Its signature would hold. So a
site remembers, of each session of the coordinator, the number of the last request that it
took, and takes no other up to that number.
"""

import sqlite3
from pathlib import Path

from tacit_common.errors import LedgerError, RefusalCode, SiteRefusal

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session  TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL
) STRICT
"""
_TAKE = """
INSERT INTO sessions VALUES (?1, ?2)
ON CONFLICT (session) DO UPDATE SET sequence = ?2 WHERE sequence < ?2
"""


class Correspondence:
    """The last request that was taken of each session, on disk.

    Raises:
        LedgerError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None, timeout=30.0)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.execute(_SCHEMA)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def take(self, session: str, sequence: int) -> None:
        """Note that a request is taken now. It is on disk when this returns.

        Raises:
            SiteRefusal: it, or a later one of its session, was taken before.
        """
        try:
            taken = self._database.execute(_TAKE, (session, sequence)).rowcount
        except sqlite3.Error as error:
            raise self._unusable(error) from None
        if not taken:
            raise SiteRefusal(
                RefusalCode.REPLAY,
                why=f"request {sequence} of its session, or a later one, was taken before",
                fix="nothing, if a message was merely late; else somebody repeats old messages",
            )

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _unusable(self, error: sqlite3.Error) -> LedgerError:
        return LedgerError(
            f"the list of sessions '{self._path.name}' cannot be used",
            # SQLite's own name is missing where Python's module objects.
            why=f"the database answers {getattr(error, 'sqlite_errorname', type(error).__name__)}",
            fix="check that the site's folder is writable, has space, and is not on a network "
            "share; without this list an old request could be repeated",
        )
