"""A data site's folder: where everything stands, and its keys read with care.

    DIR/
      site.toml              the configuration
      policy.toml            what the site allows
      identity.key           Ed25519: signs answers, the ledger and the journal
      node.key node.pub      ECDSA P-384: with which Flower knows this node
      node.id                the number that the SuperLink last gave the node
      coordinator-ca.crt     the only authority whose certificate the site believes
      ledger.db              what was spent (beside it SQLite's own files and locks)
      outbox/                the newest answers, to be given again and not made again
      sessions.db            which of the coordinator's requests were taken
      log.jsonl              the journal: every request and what became of it
      approvals.json         the studies that a person consented to
      pending/               the studies that wait for it
      witness/               client.crt client.key, and the witness's ca.crt
      NAME.site.json         the card that the coordinator and the witness are sent
      separability.json      checks of objectives that were passed, so that they run once
      site-errors.log        what went wrong, in words: it never leaves
      service/               a systemd unit and a compose file

The folder is its owner's alone (0700), and every secret in it too (0600).
"""

from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from tacit_client.budget import IDENTITY_NAME, LEDGER_NAME
from tacit_client.deployment.node_key import load_node_key
from tacit_client.deployment.site_config import SiteConfig
from tacit_client.policy import SitePolicy
from tacit_client.policy.approvals import APPROVALS_NAME, PENDING_NAME, Approvals
from tacit_client.policy.file import read_policy
from tacit_common.countersign import WitnessClient
from tacit_common.errors import IdentityError, UsageError
from tacit_common.files import OTHERS
from tacit_common.identity import Identity
from tacit_common.toml_file import read_toml_file

CONFIG_NAME = "site.toml"
POLICY_NAME = "policy.toml"


class SiteFolder:
    """The names of everything in a site's folder, and what is read from there."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.site_toml = self.path / CONFIG_NAME
        self.policy_toml = self.path / POLICY_NAME
        self.identity_key = self.path / IDENTITY_NAME
        self.node_key = self.path / "node.key"
        self.node_public_key = self.path / "node.pub"
        self.coordinator_ca = self.path / "coordinator-ca.crt"
        self.ledger = self.path / LEDGER_NAME
        self.outbox = self.path / "outbox"
        self.sessions = self.path / "sessions.db"
        self.node_id = self.path / "node.id"
        self.journal = self.path / "log.jsonl"
        self.approvals = self.path / APPROVALS_NAME
        self.pending = self.path / PENDING_NAME
        self.witness = self.path / "witness"
        self.witness_certificate = self.witness / "client.crt"
        self.witness_key = self.witness / "client.key"
        self.witness_ca = self.witness / "ca.crt"
        self.certificates = self.path / "separability.json"
        self.errors_log = self.path / "site-errors.log"
        self.service = self.path / "service"

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a site that `tacit site init` has made.

        Raises:
            UsageError: it is not one.
            IdentityError: somebody else than its owner may use it, or read a secret in it.
        """
        folder = cls(path)
        folder.require_site()
        folder.require_private()
        return folder

    @property
    def config(self) -> SiteConfig:
        """What `site.toml` says now.

        Raises:
            UsageError: it cannot be read, or a field is wrong.
        """
        return read_toml_file(
            self.site_toml,
            SiteConfig,
            what="the site's configuration",
            fix="mend the file; above every field stands what it means",
        )

    def read_policy(self) -> SitePolicy:
        """What `policy.toml` says now.

        Raises:
            UsageError: it cannot be read, or a field is wrong.
        """
        return read_policy(self.policy_toml)

    def read_identity(self) -> Identity:
        """The site's key.

        Raises:
            IdentityError: it is missing, is no key, or others may read it.
        """
        if not self.identity_key.is_file():
            raise IdentityError(
                f"the key '{self.identity_key.name}' is missing",
                why="the ledger and the coordinator know this site by it, so none is made anew",
                fix="restore it from a backup",
            )
        return Identity.load_or_create(self.identity_key)

    def read_node_key(self) -> EllipticCurvePrivateKey:
        """The key with which Flower knows this node.

        Raises:
            IdentityError: it is missing, or cannot be used.
        """
        return load_node_key(self.node_key)

    def read_coordinator_ca(self) -> bytes:
        """The certificate of the coordinator's authority, PEM.

        Raises:
            IdentityError: it cannot be read.
        """
        return _certificate(self.coordinator_ca, "the coordinator's invitation")

    def open_approvals(self) -> Approvals:
        """What a person consented to, of this site's coordinator.

        Raises:
            UsageError: the configuration cannot be used.
        """
        return Approvals(self.path, coordinator=self.config.coordinator.public_key)

    def open_witness(self) -> WitnessClient | None:
        """Who countersigns the ledger; None where the site has no witness. Nobody is asked yet.

        Raises:
            UsageError: the configuration cannot be used.
            IdentityError: a certificate or the key cannot be read.
        """
        witness = self.config.witness
        if witness is None:
            return None
        return WitnessClient(
            witness.address,
            _certificate(self.witness_ca, "the witness's card"),
            _certificate(self.witness_certificate, "a backup"),
            _certificate(self.witness_key, "a backup"),
            witness.public_key,
        )

    def card(self, site: str) -> Path:
        """Where the card of the site of that name is."""
        return self.path / f"{site}.site.json"

    def require_site(self) -> None:
        """Raises UsageError if no site was made here."""
        if not self.site_toml.is_file():
            raise UsageError(
                f"'{self.path}' is not a site's folder",
                why=f"it has no {CONFIG_NAME}",
                fix="name another, or make one: tacit site init --help",
            )

    def require_private(self) -> None:
        """Raises IdentityError if others than the owner may read a secret that is here."""
        for path in self.exposed():
            raise IdentityError(
                f"'{path.name}' is not secret",
                why="others than its owner may use it",
                fix=f"{mend_mode(path)}, and make a new site if somebody may have read it",
            )

    def exposed(self) -> list[Path]:
        """The folder and its secrets, where others than the owner may use them."""
        secrets = (self.identity_key, self.node_key, self.ledger, self.witness_key)
        present = (self.path, *(secret for secret in secrets if secret.exists()))
        return [path for path in present if path.stat().st_mode & OTHERS]


def mend_mode(path: Path) -> str:
    """The command that takes a file or folder away from others."""
    return f"chmod {'700' if path.is_dir() else '600'} '{path}'"


def _certificate(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"'{path.name}' cannot be read",
            why=error.strerror or type(error).__name__,
            fix=f"restore it from {source}",
        ) from None
