"""Remembering where ledgers stood, so that one that was rolled back is caught.

A site could restore yesterday's ledger and spend today's budget again. So each message
from a site carries the signed head of its ledger, whoever talks with sites keeps the
newest head of each, and hands it back with the next request: a site whose ledger is
behind its own signed word refuses to work. Two heads with one number prove a fork.
"""

from collections.abc import Mapping

from tacit_common.errors import LedgerError
from tacit_common.ledger_chain import SignedHead


class HeadBook:
    """The newest signed head of every site's ledger, as far as this party has seen."""

    def __init__(self) -> None:
        self._heads: dict[str, SignedHead] = {}
        self._contradicted: set[str] = set()

    @property
    def heads(self) -> dict[str, SignedHead]:
        """Site to newest head: what a checkpoint keeps."""
        return dict(self._heads)

    def newest(self, site: str) -> SignedHead | None:
        """The newest head of one site; None if it was never seen."""
        return self._heads.get(site)

    def restore(self, heads: Mapping[str, SignedHead]) -> None:
        """Add heads from a checkpoint; of two for one site the newer stays.

        Raises:
            LedgerError: they do not fit those that were seen since.
        """
        for head in heads.values():
            known = self._heads.get(head.site)
            if known is not None:
                older, newer = sorted((known, head), key=lambda one: one.seq)
                self._check(older, newer)
                head = newer  # noqa: PLW2901
            self._heads[head.site] = head

    def merge(self, heads: Mapping[str, SignedHead]) -> None:
        """Add heads that were seen elsewhere; of two for one site the newer stays.

        A site whose two heads contradict each other is not believed from here on: it cannot
        keep the others from going on.
        """
        for head in heads.values():
            try:
                self.restore({head.site: head})
            except LedgerError:
                self._contradicted.add(head.site)

    def observe(self, head: SignedHead) -> None:
        """Take note of a head that a site sent.

        Raises:
            LedgerError: the site did not sign it, the ledger was rolled back or forked, or
                the site has another key than before.
        """
        if not head.is_genuine():
            raise _untrusted(head.site, "its head is not signed by the key that it names")
        if head.site in self._contradicted:
            raise _untrusted(head.site, "it was forked: two heads that were seen do not agree")
        known = self._heads.get(head.site)
        if known is not None:
            self._check(known, head)
        self._heads[head.site] = head

    def _check(self, known: SignedHead, head: SignedHead) -> None:
        if head.public_key != known.public_key:
            raise _untrusted(head.site, "it signs with another key than before")
        if head.seq < known.seq:
            raise _untrusted(head.site, "it was rolled back: it is behind a head that was seen")
        if head.seq == known.seq and head.hash != known.hash:
            raise _untrusted(head.site, "it was forked: two rows have one number")


def _untrusted(site: str, why: str) -> LedgerError:
    return LedgerError(
        f"the ledger of '{site}' cannot be trusted",
        why=why,
        fix="let the site restore its newest ledger; until then it takes no part",
    )
