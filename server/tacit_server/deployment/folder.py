"""A coordinator's folder: where everything stands, and what its configuration means.

    DIR/
      server.toml          the configuration
      coordinator.key      Ed25519: signs every request to a site, and reports
      invitation.json      what sites are sent
      roster.json          the sites that may take part, and their keys
      heads.json           where their ledgers stood when they last answered, in any run
      tls/                 ca.crt ca.key, and links to the present server.crt server.key
      superexec.secret     with which the executor shows the SuperLink that it is ours
      superlink.db         Flower's state; flower/ is its home
      runs/NAME/           one folder a run, as simulations make them
      logs/                one log a process
      service/             a systemd unit and a compose file

The folder is its owner's alone (0700), and every secret in it too (0600).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.enrolment import Address, SiteName
from tacit_common.errors import IdentityError, UsageError
from tacit_common.files import OTHERS
from tacit_common.identity import Identity
from tacit_common.toml_file import read_toml_file, write_toml_file, wrong_fields

_OPENING = "The configuration of a Tacit coordinator. A change counts at the next start."
_RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ServerConfig(BaseModel):
    """What `server.toml` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: SiteName = Field(
        description="The coordinator's name, for people: small letters, digits and hyphens."
    )
    address: Address = Field(
        description="host:port at which sites reach the gateway from outside. Its certificate "
        "is for this host, and sites that are enrolled keep it: it does not change."
    )
    listen: Address = Field(
        default="0.0.0.0:9443",
        description="host:port at which the gateway listens on this machine.",
    )
    superlink_port: int = Field(
        default=9092,
        ge=1,
        le=65535,
        description="Port of Flower's SuperLink, on 127.0.0.1 and never reachable from outside.",
    )
    health_address: Address | None = Field(
        default=None,
        description="host:port of the gRPC health service (`tacit health`). It answers whoever "
        "reaches it, and says no more than whether the server works. Left out: none.",
        examples=["127.0.0.1:9444"],
    )
    largest_message_mb: int = Field(
        default=64,
        ge=1,
        le=2048,
        description="Largest single message that the gateway lets through, in MB. Updates travel "
        "in chunks of 5 MB, so a large model needs no more.",
    )

    @property
    def host(self) -> str:
        """The host of `address`, without brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def superlink_address(self) -> str:
        """Where the gateway and the executor reach the SuperLink."""
        return f"127.0.0.1:{self.superlink_port}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """The configuration in a file.

        Raises:
            UsageError: it cannot be read, is not TOML, or a field is wrong.
        """
        fix = "mend it; above every field stands what it means"
        return read_toml_file(path, cls, what="the coordinator's configuration", fix=fix)

    @classmethod
    def parse(cls, settings: Mapping[str, object]) -> Self:
        """The configuration that these fields are, given on a command line.

        Raises:
            UsageError: a field is wrong, unknown or missing.
        """
        try:
            return cls.model_validate(dict(settings))
        except ValidationError as error:
            raise UsageError(
                "the options do not make a coordinator",
                why="\n".join(wrong_fields(error, cls)),
                fix="give for example --name hub --address tacit.example.org:9443",
            ) from None

    def save(self, path: Path) -> None:
        """Write it, each field under a comment that says what it means.

        Guarantees: `load` gives the same again; a reader sees the old file or the new one.

        Raises:
            UsageError: it cannot be written.
        """
        write_toml_file(path, self, opening=_OPENING)


class ServerFolder:
    """The names of everything in a coordinator's folder, and its secrets read with care."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.config_file = self.path / "server.toml"
        self.identity_key = self.path / "coordinator.key"
        self.invitation = self.path / "invitation.json"
        self.roster = self.path / "roster.json"
        self.heads = self.path / "heads.json"
        self.tls = self.path / "tls"
        self.ca_certificate = self.tls / "ca.crt"
        self.ca_key = self.tls / "ca.key"
        self.server_certificate = self.tls / "server.crt"
        self.server_key = self.tls / "server.key"
        self.superexec_secret = self.path / "superexec.secret"
        self.superlink_database = self.path / "superlink.db"
        self.flower_home = self.path / "flower"
        self.lock = self.path / ".lock"
        self.runs = self.path / "runs"
        self.logs = self.path / "logs"
        self.service = self.path / "service"

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of a coordinator that `tacit server init` has made.

        Raises:
            UsageError: it is not one, or another user's.
            IdentityError: somebody else than its owner may read a secret in it.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise UsageError(
                f"'{path}' is not a coordinator's folder",
                why="it has no server.toml",
                fix=f"make one: tacit server init {path} --name NAME --address HOST:PORT",
            )
        if folder.path.stat().st_uid != os.geteuid():
            # Files that root makes here could not be read by the service, for example.
            raise UsageError(
                f"'{path}' is another user's",
                why="what this user writes there, its owner could not use",
                fix="run the command as the owner, for example with sudo -u OWNER",
            )
        folder.require_private()
        return folder

    def config(self) -> ServerConfig:
        """What `server.toml` says now.

        Raises:
            UsageError: it cannot be used.
        """
        return ServerConfig.load(self.config_file)

    def identity(self) -> Identity:
        """The coordinator's key.

        Raises:
            IdentityError: it is missing, is no key, or others may read it.
        """
        if not self.identity_key.is_file():
            raise IdentityError(
                f"the key '{self.identity_key.name}' is missing",
                why="every enrolled site knows this coordinator by it, so none is made anew",
                fix="restore it from a backup",
            )
        return Identity.load_or_create(self.identity_key)

    def run_folder(self, name: str) -> Path:
        """The folder of one run, which need not exist yet.

        Raises:
            UsageError: it is no name of a run.
        """
        if not _RUN_NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not the name of a run",
                why="it is made of letters, digits, '.', '_' and '-', and starts with one of the "
                "first two",
                fix="`tacit server status` lists the runs",
            )
        return self.runs / name

    def require_private(self) -> None:
        """Raises IdentityError if others than the owner may read a secret that is here."""
        secrets = (self.identity_key, self.ca_key, self.server_key, self.superexec_secret)
        for path in (self.path, *(secret for secret in secrets if secret.exists())):
            if path.stat().st_mode & OTHERS:
                mode = "700" if path.is_dir() else "600"
                raise IdentityError(
                    f"'{path.name}' is not secret",
                    why="others than its owner may use it",
                    fix=f"chmod {mode} '{path}', and make a new coordinator if somebody may have "
                    "read it",
                )
