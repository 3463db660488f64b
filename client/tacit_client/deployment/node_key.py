"""The key with which Flower knows a site's node: ECDSA P-384, in OpenSSH's format.

It opens the door and signs nothing of weight: answers are signed with the site's identity.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from tacit_common.errors import IdentityError
from tacit_common.identity import write_private_once


def load_or_create_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file that only its owner may read, made on first use.

    Raises:
        IdentityError: the file is there and is no such key.
        OSError: it cannot be written.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        text = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        write_private_once(path, text)
    return load_node_key(path)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in a file.

    Raises:
        IdentityError: it is missing, cannot be read, or is no ECDSA P-384 key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise IdentityError(
            f"the key '{path.name}' cannot be used",
            why=error.strerror or type(error).__name__,
            fix="restore it from a backup; with a new one the site has to be enrolled anew",
        ) from None
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_node_key(path) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _no_node_key(path)
    return key


def openssh_line(key: ec.EllipticCurvePrivateKey, comment: str) -> str:
    """The public half as one line in OpenSSH's format."""
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{line.decode('ascii')} {comment}"


def _no_node_key(path: Path) -> IdentityError:
    return IdentityError(
        f"'{path.name}' is not a node's key",
        why="it is no ECDSA P-384 key in OpenSSH's format, or it is encrypted",
        fix="restore it from a backup; with a new one the site has to be enrolled anew",
    )
