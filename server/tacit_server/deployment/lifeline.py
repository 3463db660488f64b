"""A process that does not outlive the one that started it, even if that one is killed.

`python -m tacit_server.deployment.lifeline PARENT COMMAND…` ties itself to PARENT and then
becomes COMMAND. Without it a supervisor that is killed with -9 would leave a SuperLink
behind that holds the port and the database.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h; it survives execve


def tied_to_this_process(command: Sequence[str]) -> list[str]:
    """`command`, such that the kernel kills it (SIGKILL) when this process ends.

    Start it from the main thread: Linux means the thread that forked, not the process.
    Elsewhere than on Linux the command is not tied to anything.
    """
    lifeline = [sys.executable, "-P", "-m", "tacit_server.deployment.lifeline"]
    return [*lifeline, str(os.getpid()), *command]


def main() -> None:
    """Tie this process to the parent named first, and become the command named after it."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit(1)  # it ended before it could be watched
    os.execvp(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
