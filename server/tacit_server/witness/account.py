"""What the operator of a witness is shown: where ledgers stand, and who keeps two of them."""

from contextlib import closing

from pydantic import BaseModel, ConfigDict

from tacit_common.certificates import expires_at
from tacit_server.witness.admission import Admission
from tacit_server.witness.book import Book, Fork, Seen
from tacit_server.witness.folder import WitnessFolder


class Standing(BaseModel):
    """One site, as the witness knows it."""

    model_config = ConfigDict(frozen=True)

    site: str
    certificate_until: str | None  # ISO 8601 date; None if the site is not admitted now
    newest: Seen | None  # None if it never showed a head


class Account(BaseModel):
    """All that a witness knows."""

    model_config = ConfigDict(frozen=True)

    sites: tuple[Standing, ...]
    forks: tuple[Fork, ...]

    def as_text(self) -> str:
        """One line a site; under them, the two heads of each fork."""
        if not self.sites:
            return "no site is admitted yet: tacit witness admit DIR NAME.site.json"
        width = max(len(standing.site) for standing in self.sites)
        lines = [f"{standing.site:<{width}}  {_stands(standing)}" for standing in self.sites]
        for fork in self.forks:
            lines += [
                "",
                f"FORK  {fork.first.site} signed two rows {fork.first.seq}; seen {fork.at}",
                f"      {fork.first.hash}",
                f"      {fork.second.hash}",
                "      --json shows both signed heads: proof for whoever has the site's key",
            ]
        return "\n".join(lines)


def account_of(folder: WitnessFolder) -> Account:
    """What the witness in this folder knows now; it may be running.

    Raises:
        UsageError: a file in admitted/ is no card.
        IdentityError: a card is not genuine.
        LedgerError: the book of heads cannot be opened.
    """
    until = {
        card.site: f"{expires_at(card.witness_certificate.encode()):%Y-%m-%d}"
        for card in Admission(folder.admitted).cards()
    }
    with closing(Book(folder.heads)) as book:
        standings = [
            Standing(site=site, certificate_until=until.get(site), newest=book.newest(site))
            for site in sorted({*until, *book.sites()})
        ]
        return Account(sites=tuple(standings), forks=tuple(book.forks()))


def _stands(standing: Standing) -> str:
    newest = standing.newest
    stands = (
        "no head yet"
        if newest is None
        else f"row {newest.head.seq}  {newest.head.hash[:16]}…  seen {newest.at}"
    )
    until = standing.certificate_until
    return f"{stands}  " + (f"certificate until {until}" if until else "not admitted")
