"""One server to a folder, also after one that was killed."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.server.deployment.gateway_case import wait_until

from tacit_common.errors import TacitError
from tacit_server.deployment.claim import MARK, claimed, end_leftovers, require_free
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.heartbeat import LONGEST_SILENCE_S, beat, is_beating


def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    folder = ServerFolder(tmp_path)
    already = pytest.raises(TacitError, match=f"process {os.getpid()} holds its lock")
    with claimed(folder), already:
        claimed(folder).__enter__()
    with claimed(folder):
        pass


HOLD = """
import pathlib, sys, time
from tacit_server.deployment.claim import claimed
from tacit_server.deployment.folder import ServerFolder
with claimed(ServerFolder(pathlib.Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_a_server_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, env=environment
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TacitError, match="already"):
            claimed(ServerFolder(tmp_path)).__enter__()
        holder.kill()
    with claimed(ServerFolder(tmp_path)):
        pass


def test_only_processes_of_this_very_folder_are_ended(tmp_path: Path) -> None:
    ours, other = ServerFolder(tmp_path / "a"), ServerFolder(tmp_path / "ab")
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    leftover, neighbour = (
        subprocess.Popen(sleep, env=os.environ | {MARK: str(folder.path)})
        for folder in (ours, other)
    )
    try:
        # Between fork and exec a process has its parent's environment.
        ended: list[int] = []
        wait_until(lambda: bool(ended.extend(end_leftovers(ours)) or ended))
        assert ended == [leftover.pid]
        assert leftover.wait() == -signal.SIGKILL
        assert neighbour.poll() is None
    finally:
        for process in (leftover, neighbour):
            process.kill()
            process.wait()


def test_a_port_that_another_program_uses_is_said_to_be_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TacitError, match=r"change 'listen' in server\.toml"):
            require_free({"listen": address}, within_s=0.0)
    require_free({"listen": address})


def test_a_heart_that_does_not_beat_is_dead(tmp_path: Path) -> None:
    file = tmp_path / "beat"
    assert not is_beating(file)
    beat(file)
    assert is_beating(file)
    now = time.monotonic()
    file.write_text(f"{now - LONGEST_SILENCE_S - 1}\n")
    assert not is_beating(file)
    file.write_text(f"{now + 3600}\n")  # of a machine that has started anew since
    assert not is_beating(file)
    file.write_text("")
    assert not is_beating(file)
