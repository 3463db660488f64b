"""The supervisor, with small stand-ins for the three processes of a server."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.server.deployment.gateway_case import wait_until

from tacit_common.errors import TacitError
from tacit_server.deployment.parts import NO_ANSWER, Part
from tacit_server.deployment.supervisor import Pace, Supervisor

QUICK = Pace(
    look_s=0.05,
    first_look_s=0.05,
    first_delay_s=0.05,
    longest_delay_s=0.1,
    silence_s=0.5,
    first_starts=3,
)

# Says in a file what it does: `works` once it is up, until it is told to end.
STAND_IN = """
import pathlib, signal, sys, time
name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
def note(what):
    with (folder / "events").open("a") as events:
        events.write(f"{name} {what}\\n")
def end(*_):
    note("ends")
    (folder / name).unlink()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
print(name, "speaks")
note("starts")
(folder / name).write_text("works")
while True:
    time.sleep(0.02)
"""


def part(name: str, folder: Path, code: str = STAND_IN) -> Part:
    async def trouble() -> str | None:
        return None if (folder / name).exists() else NO_ANSWER

    return Part(
        name=name,
        command=(sys.executable, "-I", "-c", code, name, str(folder)),
        trouble=trouble,
        forgets=(folder / name,),
    )


class Watched:
    """A supervisor that runs, and what a test does meanwhile."""

    def __init__(self, folder: Path, parts: list[Part], pace: Pace = QUICK) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.supervisor = Supervisor(
            parts,
            folder=folder,
            logs=folder / "logs",
            environment=os.environ,
            say=self.said.append,
            pace=pace,
        )

    def run(self, meanwhile: Callable[[], None]) -> None:
        """Run until `meanwhile` has returned; it may block, as it has a thread of its own."""

        async def both() -> None:
            running = asyncio.create_task(self.supervisor.run())
            try:
                await asyncio.to_thread(meanwhile)
            finally:
                self.supervisor.stop()
                await running

        asyncio.run(both())

    @property
    def events(self) -> list[str]:
        file = self.folder / "events"
        return file.read_text().splitlines() if file.exists() else []

    def process(self, name: str) -> int:
        """The number of the process that was started last under a name."""
        starts = [line for line in self.said if line.startswith(f"{name} starts (process")]
        return int(starts[-1].split()[-1].rstrip(")"))

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.supervisor.is_ready)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_parts_start_in_order_and_end_in_the_opposite_order(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [part(name, tmp_path) for name in ("first", "second", "third")])
    watched.run(watched.wait_until_ready)
    assert watched.events == [
        *("first starts", "second starts", "third starts"),
        *("third ends", "second ends", "first ends"),
    ]
    assert "the server is ready" in watched.said


def test_a_part_starts_only_once_those_before_it_answer(tmp_path: Path) -> None:
    silent = "import time; time.sleep(600)"
    watched = Watched(tmp_path, [part("first", tmp_path, silent), part("second", tmp_path)])
    watched.run(lambda: wait_until(lambda: any("first starts" in one for one in watched.said)))
    assert not any("second" in one for one in watched.said)
    assert not watched.supervisor.is_ready


def test_a_part_that_is_killed_is_started_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [part("first", tmp_path), part("second", tmp_path)])

    def kill() -> None:
        watched.wait_until_ready()
        os.kill(watched.process("first"), signal.SIGKILL)
        wait_until(lambda: watched.events.count("first starts") == 2)
        watched.wait_until_ready()

    watched.run(kill)
    assert watched.events.count("second starts") == 1
    assert any("first was ended by SIGKILL; it starts again" in one for one in watched.said)


def test_it_is_not_ready_while_a_part_is_away(tmp_path: Path) -> None:
    slow = replace(QUICK, first_delay_s=600.0)
    watched = Watched(tmp_path, [part("first", tmp_path)], slow)

    def kill() -> None:
        watched.wait_until_ready()
        os.kill(watched.process("first"), signal.SIGKILL)
        wait_until(lambda: not watched.supervisor.is_ready)

    watched.run(kill)
    assert watched.said[-1] != "first works"


def test_a_part_that_never_works_is_given_up_and_nothing_is_left(tmp_path: Path) -> None:
    failing = part("second", tmp_path, "import sys; print('no luck'); sys.exit(3)")
    watched = Watched(tmp_path, [part("first", tmp_path), failing])
    with pytest.raises(TacitError, match="second does not start: it ended with exit code 3, 3 "):
        watched.run(lambda: wait_until(lambda: "first ends" in watched.events))
    assert (tmp_path / "logs" / "second.log").read_text() == "no luck\n" * 3
    assert not is_alive(watched.process("first"))


def test_a_part_that_stops_answering_is_started_again(tmp_path: Path) -> None:
    watched = Watched(tmp_path, [part("first", tmp_path)])

    def fall_silent() -> None:
        watched.wait_until_ready()
        (tmp_path / "first").unlink()
        wait_until(lambda: watched.events.count("first starts") == 2)

    watched.run(fall_silent)
    assert any("did not answer for 0.5 s" in one for one in watched.said)


def test_a_part_is_not_blamed_for_the_silence_of_one_that_it_needs(tmp_path: Path) -> None:
    needed, needing = part("first", tmp_path), part("second", tmp_path)

    async def trouble() -> str | None:
        return "has lost its database" if (tmp_path / "broken").exists() else None

    watched = Watched(tmp_path, [replace(needed, trouble=trouble), needing])

    def fall_silent() -> None:
        watched.wait_until_ready()
        (tmp_path / "broken").touch()
        wait_until(lambda: "first has lost its database" in watched.said)
        (tmp_path / "second").unlink()
        wait_until(lambda: f"second {NO_ANSWER}" in watched.said)
        time.sleep(2 * QUICK.silence_s)  # long enough to be blamed
        (tmp_path / "second").touch()
        wait_until(lambda: watched.said.count("second works") == 2)

    watched.run(fall_silent)
    assert watched.events.count("second starts") == 1


def test_renewed_certificates_are_taken_up_by_a_restart(tmp_path: Path) -> None:
    certificate = tmp_path / "server.crt"
    certificate.write_text("old")
    watched = Watched(tmp_path, [replace(part("first", tmp_path), restarts_with=(certificate,))])

    def renew() -> None:
        watched.wait_until_ready()
        certificate.unlink()
        certificate.write_text("new")
        wait_until(lambda: watched.events.count("first starts") >= 2)
        watched.wait_until_ready()

    watched.run(renew)
    assert "first ends" in watched.events


def test_a_part_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    deaf = STAND_IN.replace("signal.SIGTERM, end", "signal.SIGTERM, signal.SIG_IGN")
    watched = Watched(tmp_path, [replace(part("first", tmp_path, deaf), stop_grace_s=0.2)])
    watched.run(watched.wait_until_ready)
    assert not is_alive(watched.process("first"))


def test_what_a_part_has_started_ends_with_it(tmp_path: Path) -> None:
    parent = STAND_IN.replace(
        'note("starts")',
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        'note(f"starts {child.pid}")',
    )
    watched = Watched(tmp_path, [part("first", tmp_path, parent)])

    def kill() -> None:
        watched.wait_until_ready()
        os.kill(watched.process("first"), signal.SIGKILL)
        wait_until(lambda: len(watched.events) == 2)

    watched.run(kill)
    started = [int(line.split()[-1]) for line in watched.events if "starts" in line]
    assert len(started) == 2
    assert not any(map(is_alive, started))


def test_what_a_part_writes_is_in_its_log(tmp_path: Path) -> None:
    talkative = STAND_IN.replace('"speaks"', "'x' * 200_000")
    watched = Watched(tmp_path, [part("first", tmp_path, talkative)])
    watched.run(watched.wait_until_ready)
    assert (tmp_path / "logs" / "first.log").read_text().count("x") == 200_000


SUPERVISE = """
import asyncio, os, pathlib, sys
from tests.server.deployment.test_supervisor import Watched, part
folder = pathlib.Path(sys.argv[1])
watched = Watched(folder, [part("first", folder), part("second", folder)])
asyncio.run(watched.supervisor.run())
"""


def test_children_do_not_outlive_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path)], env=environment, cwd=root
    )
    try:
        wait_until(lambda: (tmp_path / "second").exists() or supervisor.poll() is not None)
        children = [
            int(line.name)
            for line in Path("/proc").glob("[0-9]*")
            if str(tmp_path).encode() in _command_of(line) and int(line.name) != supervisor.pid
        ]
        assert len(children) == 2
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_until(lambda: not any(map(is_alive, children)))
    assert not any("ends" in line for line in (tmp_path / "events").read_text().splitlines())


def _command_of(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
