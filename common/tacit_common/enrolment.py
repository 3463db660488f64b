"""The two files that people hand each other before a site takes part.

    coordinator ── Invitation ──► site      where to connect, and whom to believe
    site        ── SiteCard ───► coordinator   which keys are this site's

Neither is secret. Both are worthless if exchanged on the way, so each has a fingerprint
that two people compare over another channel, by telephone for instance.
"""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import IdentityError, UsageError
from tacit_common.identity import Identity, is_signed
from tacit_common.ledger_chain import Hex64, Signature

FORMAT: Literal[1] = 1

_CARD = "site card"  # the domain of a site's signature over its own card
_LONGEST_FILE = 64 * 1024

SiteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=64)]


def _with_a_real_port(address: str) -> str:
    if not 1 <= int(address.rpartition(":")[2]) <= 65535:
        raise ValueError("the port after the last colon must be between 1 and 65535")
    return address


Address = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9.\-\[\]:]+:[0-9]{1,5}$", max_length=300),
    AfterValidator(_with_a_real_port),
]
"""host:port"""
Pem = Annotated[str, Field(pattern=r"^-----BEGIN CERTIFICATE-----\n", max_length=32_768)]


class HandedFile(BaseModel):
    """A file that one person hands another."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = FORMAT

    def write(self, path: Path) -> None:
        """Write it as JSON that a person can read."""
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


class Invitation(HandedFile):
    """What a site needs to know of a coordinator."""

    coordinator: SiteName = Field(description="The coordinator's name, for people.")
    address: Address = Field(description="host:port of the coordinator's gateway.")
    public_key: Hex64 = Field(description="Ed25519 key that signs every request.")
    ca_certificate: Pem = Field(description="Signs the gateway's certificate; trust no other.")

    @property
    def fingerprint(self) -> str:
        """What two people compare: it covers the key, the address and the certificate."""
        return fingerprint(self.model_dump_json().encode())


class SiteCard(HandedFile):
    """What a coordinator, and a witness, need to know of a site."""

    site: SiteName
    public_key: Hex64 = Field(description="Ed25519 key that signs its replies and its ledger.")
    node_key: str = Field(
        pattern=r"^ecdsa-sha2-nistp384 [A-Za-z0-9+/=]+( .*)?$",
        max_length=1000,
        description="OpenSSH public key with which it authenticates to Flower.",
    )
    witness_certificate: Pem = Field(description="Its own certificate as a witness's client.")
    signature: Signature = Field(description="The site's, over all the rest.")

    @classmethod
    def signed(
        cls, identity: Identity, *, site: str, node_key: str, witness_certificate: str
    ) -> Self:
        """The card of a site, signed with the key that it names."""
        card = cls(
            site=site,
            public_key=identity.public_key,
            node_key=node_key,
            witness_certificate=witness_certificate,
            signature="0" * 128,
        )
        return card.model_copy(update={"signature": identity.sign(_CARD, card._signed_part())})

    @property
    def fingerprint(self) -> str:
        """What two people compare: it covers everything that is signed."""
        return fingerprint(self._signed_part())

    def require_genuine(self) -> None:
        """Raises IdentityError if the card is not signed by the key that it names."""
        if not is_signed(self.public_key, _CARD, self._signed_part(), self.signature):
            raise IdentityError(
                f"the card of '{self.site}' cannot be trusted",
                why="the key that it names did not sign it, so it was changed on the way",
                fix="ask the site for its card again, and compare fingerprints by telephone",
            )

    def require_fingerprint(self, read_out: str) -> None:
        """Raises IdentityError if `read_out` is not this card's fingerprint."""
        if read_out.strip().lower() != self.fingerprint:
            raise IdentityError(
                f"the card of '{self.site}' is not the one that its operator has",
                why=f"its fingerprint is {self.fingerprint}",
                fix="ask for the card again: somebody may have exchanged it on the way",
            )

    def _signed_part(self) -> bytes:
        return self.model_dump_json(exclude={"signature"}).encode()


def read_invitation(path: Path) -> Invitation:
    """The invitation in a file.

    Raises:
        UsageError: there is no such file, or it is no invitation.
    """
    return read_handed(Invitation, path, "an invitation", "invitation.json from the coordinator")


def read_site_card(path: Path) -> SiteCard:
    """The card in a file, its signature checked.

    Raises:
        UsageError: there is no such file, or it is no card.
        IdentityError: its signature does not hold.
    """
    card = read_handed(SiteCard, path, "a site's card", "NAME.site.json from the site")
    card.require_genuine()
    return card


def fingerprint(content: bytes) -> str:
    """80 bits of SHA-256 in groups of four, short enough to be read aloud."""
    digest = hashlib.sha256(content).hexdigest()[:20]
    return "-".join(digest[start : start + 4] for start in range(0, 20, 4))


FileT = TypeVar("FileT", bound=HandedFile)


def read_handed(kind: type[FileT], path: Path, what: str, expected: str) -> FileT:
    """The file of that kind at `path`; `what` and `expected` say in an error what it should be.

    Raises:
        UsageError: there is no such file, or it is another.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"'{path.name}' cannot be read",
            why=error.strerror or type(error).__name__,
            fix=f"name the file {expected}",
        ) from None
    try:
        return kind.model_validate_json(content[:_LONGEST_FILE])  # a longer one is none
    except ValidationError:
        raise UsageError(
            f"'{path.name}' is not {what}",
            why="it does not have the fields of one, or was written by another version",
            fix=f"name the file {expected}",
        ) from None
