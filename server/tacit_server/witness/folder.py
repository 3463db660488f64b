"""A witness's folder: where everything stands, and what its configuration means.

    DIR/
      witness.toml         the configuration
      witness.json         what sites are sent
      identity.key         Ed25519: signs everything that the witness says
      tls/                 ca.crt ca.key: the authority of its TLS certificate
      admitted/            the cards of the sites that it serves, NAME.site.json
      heads.db             every head that it has seen, and the proof of any fork
      service/             a systemd unit and a compose file

The folder is its owner's alone (0700), and every secret in it too (0600). A site whose card
is taken out of admitted/ is served no more.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.certificates import make_ca
from tacit_common.countersign import WitnessCard
from tacit_common.enrolment import Address, SiteName
from tacit_common.errors import IdentityError, UsageError
from tacit_common.files import owner_only, write_atomically
from tacit_common.identity import Identity
from tacit_common.service_files import service_files, write_service_files
from tacit_common.toml_file import read_toml_file, write_toml_file, wrong_fields
from tacit_server.witness.book import Book

_OTHERS = 0o077  # the permissions of whoever is not the owner
_OPENING = "The configuration of a Tacit witness. A change counts at the next start."


class WitnessConfig(BaseModel):
    """What `witness.toml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SiteName = Field(description="The witness's name, for people.")
    address: Address = Field(
        description="host:port at which sites reach it. Its certificate is for this host, and "
        "sites that have its card keep it: it does not change."
    )
    listen: Address = Field(description="host:port at which it listens on this machine.")
    health_address: Address | None = Field(
        default=None,
        examples=["127.0.0.1:9447"],
        description="host:port of the gRPC health service (`tacit health`), in plain text. It "
        "says no more than whether the witness works. Left out: none.",
    )

    @classmethod
    def parse(cls, document: Mapping[str, object]) -> Self:
        """The configuration that these fields are.

        Raises:
            UsageError: a field is wrong, unknown or missing.
        """
        try:
            return cls.model_validate(dict(document))
        except ValidationError as error:
            raise UsageError(
                "these options make no witness",
                why="\n".join(wrong_fields(error, cls)),
                fix="give them like --name witness --address witness.example.org:9446",
            ) from None

    @property
    def host(self) -> str:
        """The host of `address`."""
        return self.address.rpartition(":")[0]


class WitnessFolder:
    """The names of everything in a witness's folder, and its secrets read with care."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config_file = self.path / "witness.toml"
        self.card_file = self.path / "witness.json"
        self.identity_key = self.path / "identity.key"
        self.ca_certificate = self.path / "tls" / "ca.crt"
        self.ca_key = self.path / "tls" / "ca.key"
        self.admitted = self.path / "admitted"
        self.heads = self.path / "heads.db"
        self.service = self.path / "service"

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a witness that `tacit witness init` has made.

        Raises:
            UsageError: it is not one.
            IdentityError: a secret in it is missing, or others than its owner may read it.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UsageError(
                f"'{path}' is not a witness's folder",
                why="it has no witness.toml",
                fix=f"make one: tacit witness init {path} --address HOST:PORT",
            )
        for secret in (folder.path, folder.identity_key, folder.ca_key):
            if not secret.exists():
                raise IdentityError(
                    f"'{secret.name}' is missing",
                    why="sites know this witness by it, so none is made anew",
                    fix="restore it from a backup",
                )
            if secret.stat().st_mode & _OTHERS:
                raise IdentityError(
                    f"'{secret.name}' is not secret",
                    why="others than its owner may use it",
                    fix=f"chmod {'700' if secret.is_dir() else '600'} '{secret}', and make a new "
                    "witness if somebody may have read it",
                )
        return folder

    def config(self) -> WitnessConfig:
        """What `witness.toml` says now.

        Raises:
            UsageError: it cannot be used.
        """
        return read_toml_file(
            self.config_file,
            WitnessConfig,
            what="the configuration",
            fix="mend that line, or restore the file from a backup",
        )

    def identity(self) -> Identity:
        """The witness's key.

        Raises:
            IdentityError: it cannot be used.
        """
        return Identity.load_or_create(self.identity_key)


def init_witness(path: Path, config: WitnessConfig) -> WitnessCard:
    """Make the folder of a witness, and return the card that sites are sent.

    Guarantees: no key or file that is there is overwritten; everything is its owner's alone.

    Raises:
        UsageError: the folder is not empty or cannot be made.
    """
    folder = WitnessFolder(path)
    try:
        with owner_only():
            folder.path.mkdir(parents=True, exist_ok=True)
            if any(folder.path.iterdir()):
                raise UsageError(
                    f"'{path}' is not empty",
                    why="a witness may live there, and the sites know its keys",
                    fix="name an empty folder, or one that does not exist yet",
                )
            folder.path.chmod(0o700)
            return _make(folder, config)
    except OSError as error:
        raise UsageError(
            f"the folder '{path}' cannot be made",
            why=error.strerror or type(error).__name__,
            fix="choose a place where this user may write and that has space left",
        ) from None


def _make(folder: WitnessFolder, config: WitnessConfig) -> WitnessCard:
    folder.admitted.mkdir()
    authority = make_ca(f"Tacit witness {config.name}"[:64])
    write_atomically(folder.ca_key, authority.key)
    write_atomically(folder.ca_certificate, authority.certificate)
    Book.create(folder.heads).close()
    card = WitnessCard(
        witness=config.name,
        address=config.address,
        public_key=Identity.load_or_create(folder.identity_key).public_key,
        ca_certificate=authority.certificate.decode("ascii"),
    )
    card.write(folder.card_file)
    files = service_files(
        "witness",
        folder.path,
        name=config.name,
        health_address=config.health_address,
        listen=config.listen,
    )
    write_service_files(folder.service, files)
    # Written last: a folder that has it is whole.
    write_toml_file(folder.config_file, config, opening=_OPENING)
    return card
