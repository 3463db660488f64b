"""The site's ledger: what was promised to be spent, written before any data is read.

Rows of `tacit_common.ledger_chain` in SQLite, append-only, chained and signed: a RESERVE
before a site touches data for a request, a COMMIT once its answer is on disk, a VOID if
there is none. What is spent is the sum of all reserves; nothing is ever refunded, not for
failures either.

A request has a key. A site reserves once a key and keeps the answer that it gave (see
`outbox`), so a server that lost the answer gets the same one again: a round is never
paid, nor noised, twice.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tacit_client.ledger_file import (
    ROWS,
    Row,
    damaged,
    empty,
    entry_of,
    locked,
    open_ledger_file,
    require_this_format,
    row_of,
    unusable,
)
from tacit_common.errors import LedgerError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import (
    Atom,
    Charge,
    Commit,
    Entry,
    Genesis,
    LedgerExport,
    Payload,
    SignedHead,
    Void,
    follows,
    head_of,
    next_entry,
)
from tacit_common.privacy.events import PrivacyEvent
from tacit_common.privacy.spend import Spend

Admit = Callable[[Spend, Charge], None]
"""Raises if a charge may not be added to what is spent; `SitePolicy.check` is one."""


class Ledger:
    """The ledger of one site, open for reading and appending.

    Opening verifies all of it: that each row follows from the one before, that the site's
    own key signed each, and that every row is understood.

    Raises:
        LedgerError: the file cannot be opened, is damaged, or is another site's.
    """

    def __init__(
        self, path: Path, *, site: str, identity: Identity, survive_power_loss: bool = True
    ) -> None:
        self._path = path
        self._genesis = Genesis(site=site, public_key=identity.public_key)
        self._identity = identity
        self._last: Entry | None = None
        self._atoms: list[Atom] = []
        self._charges: dict[str, Charge] = {}
        self._committed: set[str] = set()
        self._voided: set[str] = set()
        self._closed_runs: set[str] = set()
        self._spend = Spend()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".opening")):
                self._database = open_ledger_file(path, survive_power_loss=survive_power_loss)
        except (sqlite3.Error, OSError) as error:
            raise unusable(path, error) from None
        try:
            require_this_format(path, self._database)
            self._catch_up()
            if self._last is None:
                # Another process may do the same at once: only one of them begins.
                self._write(lambda: [] if self._last else [self._genesis])
        except BaseException:
            self._database.close()
            raise

    def close(self) -> None:
        """Close the database; the object is of no use afterwards."""
        self._database.close()

    # --- reading -----------------------------------------------------------------------

    @property
    def charges(self) -> list[Charge]:
        """All reserves, oldest first."""
        self._catch_up()
        return list(self._charges.values())

    @property
    def events(self) -> list[PrivacyEvent]:
        """Everything that was ever reserved."""
        return [charge.event for charge in self.charges]

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All atoms that were ever bound, those that were cut since included."""
        self._catch_up()
        return tuple(self._atoms)

    @property
    def spend(self) -> Spend:
        """What each atom has spent: to be read, and not to be kept."""
        self._catch_up()
        return self._spend

    @property
    def head(self) -> SignedHead:
        """Where the ledger stands, signed."""
        return head_of(self._caught_up(), self._genesis)

    def entries(self) -> list[Entry]:
        """All rows, oldest first."""
        return self._rows()

    def export(self) -> LedgerExport:
        """All rows, for whoever verifies a report: no tag, no count."""
        return LedgerExport(rows=tuple(self.entries()))

    def is_reserved(self, key: str) -> bool:
        """Whether this request has been paid for already."""
        self._catch_up()
        return key in self._charges

    def is_committed(self, key: str) -> bool:
        """Whether the answer to this request was stored, and so may have left."""
        self._catch_up()
        return key in self._committed

    def is_voided(self, key: str) -> bool:
        """Whether the work of this request failed, so that a code is its only answer."""
        self._catch_up()
        return key in self._voided

    def require_not_behind(self, witnessed: SignedHead) -> None:
        """Refuse to work on a ledger that forgot what it once said.

        Raises:
            LedgerError: `witnessed` is not this site's own word; or it is ahead of this
                ledger, which was rolled back; or this ledger has another row at its place,
                so that there are two histories.
        """
        head = self.head
        if witnessed == head:  # signature and all: it is the word that stands here
            return
        own = (self._genesis.site, self._genesis.public_key)
        if (witnessed.site, witnessed.public_key) != own or not witnessed.is_genuine():
            raise LedgerError(
                "a witness shows a ledger head that is not this site's",
                why="this site's key did not sign it",
                fix="ask the coordinator to send each site its own head",
            )
        if witnessed.seq > head.seq:
            raise LedgerError(
                f"the ledger was rolled back: it ends at row {head.seq}",
                why=f"the site itself has signed row {witnessed.seq}, and what was spent since "
                "is missing",
                fix="restore the newest ledger; work on an older one would spend the budget twice",
            )
        if self._rows(first=witnessed.seq)[0].hash != witnessed.hash:
            raise LedgerError(
                f"the ledger was forked at or before row {witnessed.seq}",
                why="the site itself has signed another row at that place",
                fix="restore the ledger that was signed; two of them would spend the budget twice",
            )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keep other threads and processes from answering for this site meanwhile.

        Raises:
            LedgerError: the lock cannot be taken.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self._path.with_suffix(".lock")))
            except OSError as error:
                raise unusable(self._path, error) from None
            yield

    # --- appending ---------------------------------------------------------------------

    def reserve(self, charge: Charge, admit: Admit) -> None:
        """Pay for a request, durably, before any data is read.

        `admit` is asked while nobody else can append, with all that was spent until then:
        two processes never both add what only one of them may. If it raises, nothing is
        written. Paying twice for one key is a mistake of the caller and is refused.

        Raises:
            LedgerError: the row cannot be written, the key is reserved already, or the
                charge names an atom that is not known.
        """

        def admitted() -> list[Payload]:
            if charge.key in self._charges:
                raise LedgerError(
                    "a request is being paid for twice",
                    why=f"'{charge.label}' of run {charge.run} is in the ledger already",
                    fix="report this: a repeated request must be answered from the outbox",
                )
            self._spend.touched(charge)  # raises if an atom is not known
            admit(self._spend, charge)
            return [charge]

        self._write(admitted)

    def commit(self, key: str) -> None:
        """Note that the answer to a reserved request is on disk and may leave.

        Noting it twice is noting it once.

        Raises:
            LedgerError: the row cannot be written, nothing was reserved for `key`, or its
                work failed.
        """
        self._settle(key, Commit(key=key), self._committed, but_not=self._voided)

    def void(self, key: str) -> None:
        """Note that the work of a reserved request failed. It stays paid for.

        Noting it twice is noting it once.

        Raises:
            LedgerError: the row cannot be written, nothing was reserved for `key`, or it
                was answered.
        """
        self._settle(key, Void(key=key), self._voided, but_not=self._committed)

    def close_run(self, run: str) -> None:
        """Give up the rest of a run's plan, so that it is no longer held ready.

        A closed run is charged no more. To close it again, or to close a run that was
        never charged, changes nothing.

        Raises:
            LedgerError: the row cannot be written.
        """

        def closing_row() -> list[Payload]:
            charged = any(charge.run == run for charge in self._charges.values())
            return [Void(run=run)] if charged and run not in self._closed_runs else []

        self._write(closing_row)

    def add_atoms(
        self, cut: Callable[[sqlite3.Connection, tuple[Atom, ...]], Iterable[Atom]]
    ) -> None:
        """Append the atoms that `cut` makes of the database and of the atoms so far.

        What `cut` writes to tables of its own and the new rows become durable together, or
        not at all; nobody else can append meanwhile.

        Raises:
            LedgerError: the rows cannot be written.
        """
        self._write(lambda: list(cut(self._database, tuple(self._atoms))))

    def _settle(self, key: str, row: Commit | Void, done: set[str], *, but_not: set[str]) -> None:
        def settled() -> list[Payload]:
            if key not in self._charges:
                raise LedgerError(
                    "an answer has no reserve",
                    why="only what was paid for in advance may leave a site",
                    fix="report this: it is a fault in the site's software",
                )
            if key in but_not:
                raise LedgerError(
                    "a request has two outcomes",
                    why="it was noted as answered and as failed",
                    fix="report this: it is a fault in the site's software",
                )
            return [] if key in done else [row]

        self._write(settled)

    def _write(self, rows: Callable[[], Iterable[Payload]]) -> None:
        """Append what `rows` returns, asked when nobody else can append any more."""
        try:
            with self._transaction():
                self._catch_up()
                last, added = self._last, []
                for payload in rows():
                    last = self._next(last, payload)
                    self._database.execute(
                        "INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)",
                        row_of(last),
                    )
                    added.append((last, payload))
        except sqlite3.Error as error:
            raise unusable(self._path, error) from None
        for entry, payload in added:  # only now is it true
            self._take(entry, payload)

    def _next(self, previous: Entry | None, payload: Payload) -> Entry:
        return next_entry(
            previous,
            payload,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            site=self._genesis.site,
            identity=self._identity,
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE: two processes that append cannot both read the same last row.
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    # --- verifying ---------------------------------------------------------------------

    def _rows(self, *, first: int = 0) -> list[Entry]:
        return [entry_of(self._path, row) for row in self._raw_rows(first=first)]

    def _raw_rows(self, *, first: int) -> list[Row]:
        try:
            return self._database.execute(ROWS, (first,)).fetchall()
        except sqlite3.Error as error:
            raise unusable(self._path, error) from None

    def _caught_up(self) -> Entry:
        """The last row, after a look at what others added."""
        self._catch_up()
        if self._last is None:
            raise empty(self._path)
        return self._last

    def _catch_up(self) -> None:
        """Verify the rows that were added since the last look, by this process or another."""
        rows = self._raw_rows(first=0 if self._last is None else self._last.seq)
        if self._last is not None:
            # The file under an open ledger may have been exchanged for an older one.
            if not rows or rows[0] != row_of(self._last):
                raise damaged(self._path, self._last.seq, "its last row has changed or is gone")
            rows = rows[1:]
        for row in rows:
            entry = entry_of(self._path, row)
            if not follows(entry, self._last):
                seq = 0 if self._last is None else self._last.seq + 1
                raise damaged(self._path, seq, "a row does not follow from the one before it")
            payload = entry.parsed()
            if entry.seq == 0:
                self._require_own(payload)
            # The last signature alone covers the chain. Each is checked all the same: a row
            # whose own signature is damaged would make every later export worthless.
            if not head_of(entry, self._genesis).is_genuine():
                raise damaged(self._path, entry.seq, "the site's key did not sign the row")
            self._take(entry, payload)

    def _require_own(self, genesis: Payload) -> None:
        if genesis == self._genesis:
            return
        other_site = isinstance(genesis, Genesis) and genesis.site != self._genesis.site
        raise LedgerError(
            f"the ledger '{self._path.name}' is not that of site '{self._genesis.site}'",
            why="its first row names another site" if other_site else "another key signed it",
            fix="give every site a folder of its own, with the key and the ledger that it began "
            "with",
        )

    def _take(self, entry: Entry, payload: Payload) -> None:
        """What a verified row means."""
        match payload:
            case Genesis():
                pass
            case Atom():
                self._atoms.append(payload)
                self._spend.add_atom(payload)
            case Charge():
                self._charges[payload.key] = payload
                self._spend.add(payload)
            case Commit(key=key):
                self._committed.add(key)
            case Void(key=key, run=run):
                if key is not None:
                    self._voided.add(key)
                if run is not None:
                    self._closed_runs.add(run)
                    self._spend.close(run)
        self._last = entry
