"""Writing a file so that a reader, or a kill -9, sees the old content or the new, whole."""

import os
from pathlib import Path


def write_atomically(
    path: Path, *parts: bytes | memoryview, survive_power_loss: bool = True
) -> None:
    """Write `parts` to `path`: a temporary file, fsync, rename, fsync of the folder.

    Without `survive_power_loss` it is not flushed to the disk: that survives the process
    being killed, at a tenth of the time.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
            if survive_power_loss:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if not survive_power_loss:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
