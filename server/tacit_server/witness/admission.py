"""Which sites a witness serves: a folder of their cards, read again when it changes.

A site is known by the certificate on its card, byte for byte, and by nothing that a
certificate says.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tacit_common.certificates import (
    certificate_sha256,
    client_certificate,
    expires_at,
    make_client_certificate,
)
from tacit_common.enrolment import SiteCard, read_site_card
from tacit_common.errors import IdentityError
from tacit_common.files import write_atomically

_SUFFIX = ".site.json"


class _Read(NamedTuple):
    stands: frozenset[tuple[str, int, int]]
    cards: dict[str, SiteCard]  # by `certificate_sha256`


class Admission:
    """The cards in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._last = _Read(frozenset(), {})
        # TLS needs somebody to trust where no site is admitted yet. The key of this one is
        # forgotten as soon as it is made, so nobody can use it.
        self._nobody = make_client_certificate("nobody").certificate

    def cards(self) -> list[SiteCard]:
        """The cards of all sites that are admitted now.

        Raises:
            UsageError: a file in the folder is no card.
            IdentityError: a card is not genuine.
        """
        return list(self._now().values())

    def site_of(self, certificate: bytes) -> SiteCard | None:
        """The card of the site whose certificate this is; None if it counts for nobody.

        Raises: as `cards`.
        """
        if expires_at(certificate) <= datetime.now(UTC):
            return None
        return self._now().get(certificate_sha256(certificate))

    def trusted(self) -> bytes:
        """The certificates of all sites that are admitted now, one PEM after another.

        Raises: as `cards`.
        """
        certificates = [
            client_certificate(card.witness_certificate.encode(), card.site)
            for card in self._now().values()
        ]
        return b"".join(certificates) or self._nobody

    def admit(self, card: SiteCard) -> Path:
        """Serve the site whose card this is, from the next connection on.

        Returns:
            The file that was written.

        Raises:
            IdentityError: the card is not genuine, its certificate is not one that a site
                makes for itself, or the site or its key is known otherwise.
        """
        card.require_genuine()
        certificate = client_certificate(card.witness_certificate.encode(), card.site)
        if expires_at(certificate) <= datetime.now(UTC):
            raise IdentityError(
                f"the card of '{card.site}' has expired",
                why=f"its certificate counted until {expires_at(certificate):%Y-%m-%d}",
                fix="ask the site for a new card",
            )
        for known in self.cards():
            if (known.site == card.site) != (known.public_key == card.public_key):
                raise IdentityError(
                    f"'{card.site}' cannot be admitted",
                    why=f"its name or its key is that of '{known.site}', which is admitted",
                    fix="a new key is a new site: let it take a name that nobody had",
                )
        path = self._folder / f"{card.site}{_SUFFIX}"
        write_atomically(path, (card.model_dump_json(indent=2) + "\n").encode())
        return path

    def _now(self) -> dict[str, SiteCard]:
        paths = [path for path in self._folder.iterdir() if path.name.endswith(_SUFFIX)]
        paths = [path for path in paths if not path.name.startswith(".")]
        states = [(path.name, path.stat()) for path in paths]
        stands = frozenset((name, state.st_mtime_ns, state.st_ino) for name, state in states)
        last = self._last
        if stands != last.stands:
            read = [read_site_card(path) for path in paths]
            cards = {certificate_sha256(card.witness_certificate.encode()): card for card in read}
            last = self._last = _Read(stands, cards)
        return last.cards
