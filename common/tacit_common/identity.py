"""Who signs: the Ed25519 key of a site or a coordinator.

Every signature is over a domain and a message, so that what was signed for one purpose
means nothing for another. The secret with which a site tags its records is derived from
the same key and never leaves the site either.
"""

import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit_common.errors import IdentityError
from tacit_common.files import write_atomically

_KEY_BYTES = 32


class Identity:
    """A private key, and what can be done with it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw().hex()

    @classmethod
    def create(cls) -> Self:
        """A new identity, kept in memory alone."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load_or_create(cls, path: Path, *, survive_power_loss: bool = True) -> Self:
        """The identity in a file that only its owner may read, made on first use.

        Without `survive_power_loss` a new one is not flushed to the disk (see `write_atomically`).

        Raises:
            IdentityError: the file is no key, or others may read it.
        """
        try:
            if not path.exists():
                created = cls.create()
                # Linked, not renamed: of two processes that start at once, one key stays.
                key = created._key.private_bytes_raw()
                write_private_once(path, key, survive_power_loss=survive_power_loss)
            if path.stat().st_mode & 0o077:
                raise IdentityError(
                    f"the key '{path.name}' is not secret",
                    why="others than its owner may read the file",
                    fix=f"chmod 600 {path.name}, and make a new key if somebody may have read it",
                )
            content = path.read_bytes()
        except OSError as error:
            raise IdentityError(
                f"the key '{path.name}' cannot be used",
                why=error.strerror or type(error).__name__,
                fix="make its folder writable and the file readable for this user",
            ) from None
        if len(content) != _KEY_BYTES:
            raise IdentityError(
                f"'{path.name}' is not a key",
                why=f"an Ed25519 key has {_KEY_BYTES} bytes, the file has {len(content)}",
                fix="restore it from a backup; a new key would be a new site",
            )
        return cls(Ed25519PrivateKey.from_private_bytes(content))

    def sign(self, domain: str, message: bytes) -> str:
        """The signature of `message` for one purpose, hexadecimal."""
        return self._key.sign(_bound(domain, message)).hex()

    def secret(self, purpose: str) -> bytes:
        """32 secret bytes for one purpose (HKDF, RFC 5869): the same ones each time."""
        derive = HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=purpose.encode())
        return derive.derive(self._key.private_bytes_raw())


def is_signed(public_key: str, domain: str, message: bytes, signature: str) -> bool:
    """Whether `signature` is that of `public_key` under `message`, for this purpose.

    Malformed keys and signatures are signatures of nobody.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(bytes.fromhex(signature), _bound(domain, message))
    except (ValueError, InvalidSignature):
        return False
    return True


def write_private_once(path: Path, content: bytes, *, survive_power_loss: bool = True) -> None:
    """Write a file that only its owner may read, unless it is there already.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    previous = os.umask(0o077)
    try:
        write_atomically(draft, content, survive_power_loss=survive_power_loss)
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        os.umask(previous)
        draft.unlink(missing_ok=True)


def _bound(domain: str, message: bytes) -> bytes:
    return f"tacit {domain}\n".encode() + message
