"""One owner at a time: a folder is held by one process, and given up with it, kill -9 too."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tacit_common.errors import UsageError
from tacit_common.files import locked_folder

HOLD = """
import sys
from pathlib import Path
from tacit_common.files import locked_folder
with locked_folder(Path(sys.argv[1]), "another test"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path, "this site's agent"),
        pytest.raises(UsageError, match="is in use") as refused,
        locked_folder(tmp_path, "another"),
    ):
        pass
    assert "another process is another" in refused.value.why
    with locked_folder(tmp_path, "the next"):
        pass


def test_a_folder_is_given_up_when_its_owner_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked_folder(tmp_path, "a test"):
        raise KeyError
    with locked_folder(tmp_path, "a test"):
        pass


def test_a_process_that_is_killed_gives_its_folder_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="is in use"), locked_folder(tmp_path, "a test"):
            pass
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    with locked_folder(tmp_path, "a test"):
        pass


@pytest.mark.parametrize("kind", ["absent", "a file"])
def test_what_is_no_folder_cannot_be_held(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "folder"
    if kind == "a file":
        path.touch()
    with pytest.raises(UsageError, match="cannot be used"), locked_folder(path, "a test"):
        pass
