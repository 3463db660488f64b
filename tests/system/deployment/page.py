"""Follows docs/deploy.md as two readers would: a coordinator, and the operators of sites.

A block of the page that has `<!-- follow: NAME -->` above it is typed line by line. What the
page calls the reader's own is replaced; a comment that begins with `send` or `ask` is done.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.system.deployment.processes import Machine

PAGE = Path(__file__).parents[3] / "docs/deploy.md"
_BLOCK = re.compile(r"^<!-- follow: ([\w ]+) -->\n```console\n(.*?)^```$", re.M | re.S)
_WATCHED_S = 300.0  # a whole run, on a slow machine
_GOES_ON = re.compile(r"tacit (server|site|witness) run ")


def blocks() -> dict[str, list[str]]:
    """The lines of each marked block; one that goes on in the next line is one."""
    found = _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    return {name: text.replace("\\\n", " ").splitlines() for name, text in found}


@dataclass(frozen=True)
class Reader:
    """A person with a machine, and what the page's examples mean there."""

    machine: Machine
    replaced: Mapping[str, str]

    def follow(self, name: str, obey: Callable[[str], None]) -> dict[str, str]:
        """Type a block's lines; returns what each said. What a person is to do goes to `obey`."""
        said = {}
        for line in blocks()[name]:
            mine = self.as_mine(line)
            if line.startswith("# "):
                obey(mine.removeprefix("# "))
            elif _GOES_ON.match(line):
                self.machine.begin(["bash", "-c", f"exec {mine.partition('#')[0]}"])
            else:
                said[_bare(line)] = self.machine.shell(mine, answer="y\n", within_s=_WATCHED_S)
        return said

    def as_mine(self, line: str) -> str:
        """The line with this reader's own names, addresses and files."""
        for example, own in self.replaced.items():
            line = line.replace(example, own)
        return line


def _bare(line: str) -> str:
    """A line without its comment, and with one space between words."""
    return " ".join(line.partition("#")[0].split())


def hand_over(file: Path, to: Machine) -> None:
    """Send a file to another person."""
    if file.parent != to.folder:
        shutil.copy(file, to.folder)
