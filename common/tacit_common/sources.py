"""Which code is installed: one hash over all of Tacit's own Python files."""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGES = ("tacit_client", "tacit_common", "tacit_server", "tacit_simulations")


@cache
def sources_sha256() -> str:
    """SHA-256 over names and contents of the packages' files, hexadecimal.

    Equal for equal code, wherever it is installed; a package that is not there adds nothing.
    """
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        folder = Path(spec.origin).parent
        for file in sorted(folder.rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{package}/{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()
