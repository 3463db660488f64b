"""The newest ledger head of every site, kept from run to run.

A run's checkpoint remembers the heads that the run saw. A site could restore an older ledger
between two runs, so the coordinator keeps them here as well: a run begins with what all runs
before it have seen. They are kept by the key that signed them, for a site that is enrolled
anew with another key has another ledger.

Runs side by side write into one file, each as it goes on, and of two heads the newer stays. What
the other has written meanwhile a run does not take up: an answer to it may be on its way that
was signed before.
"""

import fcntl
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tacit_common.enrolment import SiteCard
from tacit_common.errors import LedgerError
from tacit_common.files import write_atomically
from tacit_common.ledger_chain import SignedHead
from tacit_common.witness import HeadBook


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    heads: tuple[SignedHead, ...] = ()


class KeptHeads:
    """`heads.json` of a coordinator."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def restore(self, book: HeadBook, cards: Iterable[SiteCard]) -> None:
        """Add what was kept of these sites' ledgers to `book`, before any of them can speak.

        Raises:
            LedgerError: the file cannot be trusted.
        """
        kept = self._read()
        known = [kept[card.public_key] for card in cards if card.public_key in kept]
        book.merge({head.site: head for head in known})

    def keep(self, book: HeadBook) -> None:
        """Make the file hold the heads in `book`, where they are newer.

        Raises:
            LedgerError: the file cannot be trusted or written.
        """
        with self._path.with_name(f".{self._path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self._read()
            after = dict(before)
            for head in book.heads.values():
                known = after.get(head.public_key)
                if known is None or known.seq < head.seq:
                    after[head.public_key] = head
            if after != before:
                self._write(_File(heads=tuple(after.values())))

    def _write(self, file: _File) -> None:
        try:
            write_atomically(self._path, file.model_dump_json(indent=2).encode())
        except OSError as error:
            raise LedgerError(
                f"'{self._path.name}' of the coordinator cannot be written",
                why=error.strerror or type(error).__name__,
                fix="make room in the coordinator's folder, then resume: nothing is lost",
            ) from None

    def _read(self) -> dict[str, SignedHead]:
        """Public key to head."""
        if not self._path.exists():
            return {}
        try:
            heads = _File.model_validate_json(self._path.read_bytes()).heads
        except ValidationError:
            raise self._untrusted("it does not hold what this version writes") from None
        if not all(head.is_genuine() for head in heads):
            raise self._untrusted("a head in it is not signed by the key that it names")
        return {head.public_key: head for head in heads}

    def _untrusted(self, why: str) -> LedgerError:
        return LedgerError(
            f"'{self._path.name}' of the coordinator cannot be trusted",
            why=why,
            fix="restore it from a backup; without it no rollback between runs is noticed",
        )
