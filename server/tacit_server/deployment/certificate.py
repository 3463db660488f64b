"""The server's TLS certificate: made at first, renewed later, replaced in one step.

A certificate and its key belong together, and two files cannot be replaced at once. So
each pair has a folder of its own, and one link says which is the present one:

    tls/server.crt -> present/server.crt       tls/present -> 20270131-1f3a…/
    tls/server.key -> present/server.key

The gateway and the SuperLink use the same pair: the one is reached under the public host,
the other on loopback.
"""

import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from tacit_common.certificates import expires_at, make_server_certificate
from tacit_common.errors import IdentityError
from tacit_common.files import owner_only, write_atomically
from tacit_server.deployment.folder import ServerFolder

LOOPBACK = ("localhost", "127.0.0.1")  # where the gateway and the executor reach the SuperLink

_PRESENT = "present"


class Renewal(NamedTuple):
    """When the certificate that was replaced stops counting, and the new one, UTC."""

    old_expires: datetime | None  # None where there was none that can be read
    new_expires: datetime


def issue_server_certificate(folder: ServerFolder, host: str, days: int) -> datetime:
    """Put a new certificate for `host` and loopback in the place of the present one, if any.

    Guarantees: at every moment, after a kill -9 too, `server.crt` and `server.key` are one
    pair. The authority stays, so no site notices. The pair before is kept for whoever is
    reading it now; those before that are deleted.

    Returns:
        When it stops counting, UTC; never later than its authority.

    Raises:
        IdentityError: the authority's certificate or key cannot be used, or expires first.
        UsageError: `host` is no host, or `days` is not positive.
    """
    authority, authority_key = _authority(folder)
    hosts = list(dict.fromkeys((host, *LOOPBACK)))
    issued = make_server_certificate(authority, authority_key, hosts, days)
    expires = expires_at(issued.certificate)
    if expires > expires_at(authority):
        raise IdentityError(
            f"no certificate can be made for {days} days",
            why=f"its authority expires on {expires_at(authority):%Y-%m-%d}",
            fix="give fewer --days, or make a new coordinator in time and enroll the sites there",
        )
    pair = folder.tls / f"{datetime.now(UTC):%Y%m%d}-{secrets.token_hex(4)}"
    with owner_only():
        write_atomically(pair / "server.key", issued.key)
        write_atomically(pair / "server.crt", issued.certificate)
        before = _present(folder)
        _link(folder.tls / _PRESENT, pair.name)
        for link in (folder.server_certificate, folder.server_key):
            _link(link, f"{_PRESENT}/{link.name}")
    for stale in folder.tls.iterdir():
        if stale.is_dir() and not stale.is_symlink() and stale not in (pair, before):
            shutil.rmtree(stale)
    return expires


def renew_server_certificate(folder: ServerFolder, days: int) -> Renewal:
    """Replace the present certificate by one of the same authority for the same address.

    It also mends a certificate that was lost or damaged.

    Raises:
        IdentityError: the authority's certificate or key cannot be used, or expires first.
        UsageError: the configuration cannot be used, or `days` is not positive.
    """
    try:
        old_expires = expires_at(folder.server_certificate.read_bytes())
    except (OSError, IdentityError):
        old_expires = None
    return Renewal(old_expires, issue_server_certificate(folder, folder.config().host, days))


def _authority(folder: ServerFolder) -> tuple[bytes, bytes]:
    try:
        return folder.ca_certificate.read_bytes(), folder.ca_key.read_bytes()
    except OSError as error:
        raise IdentityError(
            "the coordinator's authority cannot be read",
            why=error.strerror or type(error).__name__,
            fix="restore tls/ca.crt and tls/ca.key from a backup: enrolled sites know no other",
        ) from None


def _present(folder: ServerFolder) -> Path | None:
    present = folder.tls / _PRESENT
    return folder.tls / present.readlink() if present.is_symlink() else None


def _link(path: Path, target: str) -> None:
    """Make `path` a link to `target`, in one step, and let that survive a loss of power."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
