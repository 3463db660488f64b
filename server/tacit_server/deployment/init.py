"""`tacit server init`: a coordinator out of nothing, and what its owner does next.

`server.toml` is written last. A folder that has one is taken; one that was left half made
is finished, with the keys that it has.
"""

import secrets
import shlex
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from tacit_common.certificates import make_ca
from tacit_common.enrolment import Invitation
from tacit_common.errors import UsageError
from tacit_common.files import owner_only, write_atomically
from tacit_common.identity import Identity, write_private_once
from tacit_common.service_files import service_files, write_service_files
from tacit_server.deployment.certificate import issue_server_certificate
from tacit_server.deployment.folder import ServerConfig, ServerFolder

_SECRET_BYTES = 32


class Prepared(NamedTuple):
    """A coordinator's folder that is ready to run."""

    folder: ServerFolder
    invitation: Invitation
    certificate_expires: datetime


def init_server(path: Path, config: ServerConfig, *, days: int) -> Prepared:
    """Make the folder of a coordinator: certificates, secrets, key, invitation, services.

    Guarantees: no key or file that is there is overwritten, unless an earlier `init` was
    interrupted and nobody can have seen it; everything is its owner's alone.

    Raises:
        UsageError: the folder is taken or cannot be made, or the configuration is wrong.
    """
    folder = ServerFolder(path)
    _require_free(folder)
    try:
        with owner_only():
            return _make(folder, config, days)
    except OSError as error:
        raise UsageError(
            f"the folder '{path}' cannot be made",
            why=error.strerror or type(error).__name__,
            fix="choose a place where this user may write and that has space left",
        ) from None


def next_steps(prepared: Prepared) -> str:
    """What the owner of a new coordinator does next."""
    folder = shlex.quote(str(prepared.folder.path))
    unit = prepared.folder.service / "tacit-server.service"
    return "\n".join(
        [
            f"The coordinator '{prepared.invitation.coordinator}' is ready in {folder}. Next:",
            f"  1. start it        tacit server run {folder}",
            f"                     (or as a service: {unit})",
            f"  2. invite a site   send it {prepared.folder.invitation}",
            f"                     and compare by telephone: {prepared.invitation.fingerprint}",
            f"  3. enroll it       tacit server enroll {folder} NAME.site.json",
            "                     with the card that it sends back",
            f"Its certificate counts until {prepared.certificate_expires:%Y-%m-%d}; "
            f"before then: tacit server renew {folder}",
        ]
    )


def _make(folder: ServerFolder, config: ServerConfig, days: int) -> Prepared:
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.path.chmod(0o700)
    for inner in (folder.tls, folder.runs, folder.logs, folder.service, folder.flower_home):
        inner.mkdir(exist_ok=True)
    identity = Identity.load_or_create(folder.identity_key)
    write_private_once(folder.superexec_secret, secrets.token_bytes(_SECRET_BYTES))
    if not folder.ca_certificate.exists():  # written last, so the key beside it is its own
        authority = make_ca(f"Tacit {config.name}"[:64])
        write_atomically(folder.ca_key, authority.key)
        write_atomically(folder.ca_certificate, authority.certificate)
    expires = issue_server_certificate(folder, config.host, days)
    invitation = Invitation(
        coordinator=config.name,
        address=config.address,
        public_key=identity.public_key,
        ca_certificate=folder.ca_certificate.read_text(encoding="utf-8"),
    )
    invitation.write(folder.invitation)
    files = service_files(
        "server",
        folder.path,
        name=config.name,
        health_address=config.health_address,
        listen=config.listen,
    )
    write_service_files(folder.service, files)
    config.save(folder.config_file)
    return Prepared(folder, invitation, expires)


def _require_free(folder: ServerFolder) -> None:
    if folder.config_file.exists():
        raise UsageError(
            f"'{folder.path}' is taken",
            why="a coordinator lives there, and enrolled sites know its keys",
            fix=f"name another folder; to change its settings edit {folder.config_file}, for a "
            "new certificate use `tacit server renew`",
        )
    ours = {path.name for path in vars(folder).values()}
    try:
        # What starts with a dot is a draft of an `init` that was killed.
        present = (path.name for path in folder.path.iterdir())
        strangers = [name for name in present if name not in ours and not name.startswith(".")]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(
            f"'{folder.path}' cannot be used",
            why=error.strerror or type(error).__name__,
            fix="name a folder of yours, or one that does not exist yet",
        ) from None
    if strangers:
        raise UsageError(
            f"'{folder.path}' is not empty",
            why=f"it holds '{min(strangers)}', which is no part of a coordinator",
            fix="name an empty folder, or one that does not exist yet",
        )
