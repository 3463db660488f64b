"""Writes down every address that any Python process of a world contacts, or looks up.

It is a `sitecustomize`: Python imports it first in every process that has it on its path, in
those of Flower too.
"""

from dataclasses import dataclass
from pathlib import Path

_HOOK = """
import os, sys

_file = os.open(
    os.path.join(os.environ["TACIT_TEST_EGRESS"], f"{os.getpid()}"),
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    0o600,
)
os.set_inheritable(_file, False)
_WATCHED = {
    "socket.connect": 1,
    "socket.sendto": 1,
    "socket.sendmsg": 1,
    "socket.getaddrinfo": 0,
    "socket.gethostbyname": 0,
}


def _note(event, arguments):
    if event in _WATCHED:
        address = arguments[_WATCHED[event]]
        if isinstance(address, tuple):  # not a path of a socket on this machine
            host, port = address[0], address[1]
        elif event in ("socket.getaddrinfo", "socket.gethostbyname") and address is not None:
            host, port = address, arguments[1] if len(arguments) > 1 else 0
        else:
            return
        os.write(_file, f"contacts {host} {port}\\n".encode())


sys.addaudithook(_note)
os.write(_file, f"is {' '.join(sys.orig_argv)}\\n".replace("\\n", " ").encode() + b"\\n")
"""


@dataclass(frozen=True)
class Egress:
    """The hook and what it has written."""

    folder: Path

    def __post_init__(self) -> None:
        (self.folder / "hook").mkdir(parents=True)
        (self.folder / "noted").mkdir()
        (self.folder / "hook/sitecustomize.py").write_text(_HOOK)

    @property
    def environment(self) -> dict[str, str]:
        """What every process of the world has to have."""
        return {
            "PYTHONPATH": str(self.folder / "hook"),
            "TACIT_TEST_EGRESS": str(self.folder / "noted"),
        }

    def programs(self) -> set[str]:
        """The command lines of all processes that were watched."""
        return {text for kind, text in self._noted() if kind == "is"}

    def contacted(self) -> set[tuple[str, str]]:
        """Host and port of everything that was contacted or looked up."""
        found = set()
        for kind, text in self._noted():
            if kind == "contacts":
                host, _, port = text.rpartition(" ")
                found.add((host, port))
        return found

    def _noted(self) -> list[tuple[str, str]]:
        lines = []
        for file in (self.folder / "noted").iterdir():
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                kind, _, text = line.partition(" ")
                lines.append((kind, text))
        return lines
