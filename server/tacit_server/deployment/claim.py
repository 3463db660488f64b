"""One server to a folder: the lock, and what is left of a server that was killed."""

import fcntl
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tacit_common.errors import TacitError
from tacit_server.deployment.folder import ServerFolder

MARK = "TACIT_SERVER_FOLDER"
"""An environment variable that every process of a server has; its value is the folder."""

_PROC = Path("/proc")


@contextmanager
def claimed(folder: ServerFolder) -> Iterator[None]:
    """Hold the folder for this process alone.

    Guarantees: of two servers on one folder, one does not start; a lock never outlives the
    process that took it, however that ended.

    Raises:
        TacitError: another server runs on it, or the folder cannot be written.
    """
    try:
        lock = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise TacitError(
            f"'{folder.path}' cannot be used",
            why=error.strerror or type(error).__name__,
            fix="run this as the user who owns the folder",
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 32).decode("ascii", "replace").strip()
            raise TacitError(
                f"a server runs on '{folder.path}' already",
                why=f"process {owner or '?'} holds its lock, and two would share one database",
                fix="end that one first, or leave it be",
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(lock)


def end_leftovers(folder: ServerFolder) -> list[int]:
    """Kill the processes of an earlier server on this folder, and return their numbers.

    Call it with the folder claimed: then no process of a living server is among them. They
    are known by their environment, which a recycled process number does not have.
    """
    mark = f"{MARK}={folder.path}".encode()
    ended = []
    for entry in _PROC.glob("[0-9]*"):
        process = int(entry.name)
        try:
            marked = mark in (entry / "environ").read_bytes().split(b"\0")
            if marked and process != os.getpid():
                os.kill(process, signal.SIGKILL)
                ended.append(process)
        except OSError:
            continue  # it has ended, or is somebody else's
    return ended


def require_free(ports: Mapping[str, str], *, within_s: float = 10.0) -> None:
    """Wait until each `host:port` can be bound; a killed process gives its port back soon.

    Raises:
        TacitError: one is still taken.
    """
    end = time.monotonic() + within_s
    for setting, address in ports.items():
        while (problem := _why_taken(address)) is not None:
            if time.monotonic() > end:
                raise TacitError(
                    f"the server cannot listen at {address}",
                    why=problem,
                    fix=f"end what uses it, or change '{setting}' in server.toml",
                )
            time.sleep(0.1)


def _why_taken(address: str) -> str | None:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
