"""Files and folders that survive a kill -9: whole content, and one owner at a time."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tacit_common.errors import UsageError

OTHERS = 0o077
"""The permissions of whoever is not a file's owner."""


def write_atomically(
    path: Path,
    *parts: bytes | memoryview,
    survive_power_loss: bool = True,
    over: Path | None = None,
) -> None:
    """Write `parts` to `path`: a temporary file, fsync, rename, fsync of the folder.

    Without `survive_power_loss` it is not flushed to the disk: that survives the process
    being killed, at a tenth of the time. `over` names a file that is not needed any more: it
    is gone afterwards, and its place on the disk is written anew, which is faster still.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if over is not None:
            over.replace(temporary)
        with temporary.open("wb" if over is None else "r+b") as file:
            for part in parts:
                file.write(part)
            file.truncate()
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


@contextmanager
def locked_folder(folder: Path, owner: str) -> Iterator[None]:
    """Be the only process that works in a folder. The lock dies with its process.

    Raises:
        UsageError: another process does, or the folder cannot be written.
    """
    try:
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise UsageError(
            f"'{folder}' cannot be used",
            why=error.strerror or type(error).__name__,
            fix="name a folder that exists and that this user may write",
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"'{folder}' is in use",
                why=f"another process is {owner}",
                fix="wait for it to end, or stop it",
            ) from None
        yield


@contextmanager
def owner_only() -> Iterator[None]:
    """What is made inside can be read, written and entered by its owner alone."""
    previous = os.umask(OTHERS)
    try:
        yield
    finally:
        os.umask(previous)
