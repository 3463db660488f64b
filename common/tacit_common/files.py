"""Writing a file so that a reader, or a kill -9, sees the old content or the new, whole."""

import os
from pathlib import Path


def write_atomically(path: Path, *parts: bytes) -> None:
    """Write `parts` to `path`: a temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
