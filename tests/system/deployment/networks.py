"""Machines on networks of their own: each site reaches the coordinator, and nobody else.

Linux lets a user make namespaces of networks, where that is not forbidden:

    site ── veth ── coordinator (10.77.0.1) ── veth ── site

No machine has a way out; what looks for one is counted by the kernel.
"""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.system.deployment.processes import wait_for

COORDINATOR = "10.77.0.1"
_ALONE = "sleep", "infinity"


@dataclass
class Networks:
    """The networks of one world. Close it."""

    holders: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def open(self) -> str | None:
        """Make the coordinator's network; returns why that cannot be, if it cannot."""
        missing = [name for name in ("unshare", "nsenter", "ip") if shutil.which(name) is None]
        if missing:
            return f"{', '.join(missing)} is not installed"
        trial = subprocess.run(
            ["unshare", "-rn", "ip", "link", "add", "here", "type", "veth", "peer", "there"],
            capture_output=True,
            text=True,
            check=False,
        )
        if trial.returncode:
            return f"this user may not make networks ({trial.stderr.strip()[:80]})"
        self._hold(["unshare", "-rn", *_ALONE])
        self._ip(self.coordinator, "link", "set", "lo", "up")
        self._ip(self.coordinator, "addr", "add", f"{COORDINATOR}/32", "dev", "lo")
        return None

    @property
    def coordinator(self) -> tuple[str, ...]:
        """Before a command on the coordinator's machine."""
        return self._enter(self.holders[0])

    def site(self) -> tuple[str, ...]:
        """Make the network of another site; returns what stands before a command there."""
        number = len(self.holders)
        holder = self._hold([*self.coordinator, "unshare", "-n", *_ALONE])
        here, there = f"10.77.{number}.1", f"10.77.{number}.2"
        name, site = f"site{number}", self._enter(holder)
        self._ip(
            self.coordinator,
            *("link", "add", name, "type", "veth"),
            *("peer", "name", "eth0", "netns", str(holder.pid)),
        )
        self._ip(self.coordinator, "addr", "add", f"{here}/30", "dev", name)
        self._ip(self.coordinator, "link", "set", name, "up")
        self._ip(site, "addr", "add", f"{there}/30", "dev", "eth0")
        self._ip(site, "link", "set", "lo", "up")
        self._ip(site, "link", "set", "eth0", "up")
        self._ip(site, "route", "add", f"{COORDINATOR}/32", "via", here)
        return site

    def ways_out_looked_for(self) -> list[int]:
        """Of each machine: how often anything was to be sent where no way leads."""
        found = []
        for holder in self.holders:
            with Path(f"/proc/{holder.pid}/net/snmp").open(encoding="ascii") as file:
                names, values = (line.split() for line in file if line.startswith("Ip:"))
            found.append(int(values[names.index("OutNoRoutes")]))
        return found

    def close(self) -> None:
        """Let go of the networks; they vanish with their last process."""
        for holder in reversed(self.holders):
            os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()

    def _hold(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start the process that keeps a network alive."""
        holder = subprocess.Popen(command, start_new_session=True)
        self.holders.append(holder)
        comm = Path(f"/proc/{holder.pid}/comm")
        wait_for(lambda: comm.read_text() == "sleep\n", "a network of its own")
        return holder

    def _enter(self, holder: subprocess.Popen[bytes]) -> tuple[str, ...]:
        return ("nsenter", "-t", str(holder.pid), "-U", "--preserve-credentials", "-n", "--")

    def _ip(self, enter: tuple[str, ...], *arguments: str) -> None:
        subprocess.run([*enter, "ip", *arguments], check=True)
