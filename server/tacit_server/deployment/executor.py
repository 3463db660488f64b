"""The process that takes up submitted runs, and keeps the list of nodes that of the roster.

Flower's own executor would unpack and run whatever code is in a run's bundle. This one
starts the installed coordinator (`run_task`), in a process of its own for each run, and
takes up again what a kill or a power cut has interrupted.
"""

import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tacit_common.errors import LinkError, TacitError, UsageError
from tacit_common.files import locked_folder
from tacit_common.flower.control import Control, FlowerRun
from tacit_common.flower.tasks import TaskQueue
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.heartbeat import beat
from tacit_server.deployment.lifeline import tied_to_this_process
from tacit_server.deployment.parts import heartbeat_file
from tacit_server.deployment.roster import Roster, register_all
from tacit_server.deployment.run_record import (
    AT_SUPERLINK,
    GOES_ON,
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Status,
    Submission,
    Trouble,
)

_LOOK_S = 0.5
_LOOK_AROUND_S = 2.0  # between two looks at roster and runs
_MAY_TAKE_S = 120.0  # from asking for a run until its process has taken it up
_MOST_TIMES = 20  # a run that dies as often without an error is left to a person

_RUN_TASK = "tacit_server.deployment.run_task"

_log = logging.getLogger("tacit_server")


class Executor:
    """Starts, and restarts, one process a run."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        self._address = folder.config().superlink_address
        self._ca = folder.ca_certificate.read_bytes()
        self._roster = Roster(folder.roster)
        self._running: list[subprocess.Popen[bytes]] = []
        self._troubled: dict[str, str] = {}  # what is wrong, as it was last said
        self._begun: dict[str, float] = {}  # run to when it was last asked for, time.monotonic()

    def run(self) -> None:
        """Work until SIGTERM, which ends the processes of all runs too; they go on later."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            self._work()
        finally:
            for process in self._running:
                process.terminate()
            for process in self._running:
                process.wait()

    def _work(self) -> None:
        queue = TaskQueue(self._address, self._ca, self._folder.superexec_secret.read_bytes())
        looked, beats = 0.0, heartbeat_file(self._folder)
        while True:
            try:
                if time.monotonic() - looked >= _LOOK_AROUND_S:
                    self._look_around()
                    looked = time.monotonic()
                token = queue.acquire()
                beat(beats)
            except LinkError as error:
                _log.warning("%s", error)
                token = None
            except TacitError as error:
                _log.error("%s", error)
                token = None
            if token is None:
                time.sleep(_LOOK_S)
            else:
                try:
                    self._start(token)
                except OSError as error:  # no memory for a process; it is begun again later
                    _log.error("a run cannot be started: %s", error)
            self._running = [one for one in self._running if one.poll() is None]

    def _start(self, token: str) -> None:
        """Start the process of a run. The token goes where no list of processes shows it."""
        self._folder.logs.mkdir(exist_ok=True)
        with (self._folder.logs / "runs.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own module
                tied_to_this_process(
                    [
                        *(sys.executable, "-P", "-m", "tacit_server.deployment.run_task"),
                        str(self._folder.path),
                    ]
                ),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
            )
        if process.stdin is not None:
            process.stdin.write(f"{token}\n".encode())
            process.stdin.close()
        self._running.append(process)

    def _look_around(self) -> None:
        with Control(self._address, self._ca) as control:
            with self._apart("the roster"):
                for site in register_all(self._roster, control):
                    _log.info("the SuperLink knows '%s' now", site)
            known = control.runs()
            for file in sorted(self._folder.runs.glob("*/" + SUBMISSION)):
                with self._apart(f"run '{file.parent.name}'"):
                    self._tend(file.parent, known, control)

    @contextmanager
    def _apart(self, what: str) -> Iterator[None]:
        """Let what is wrong with one thing not keep the others from going on; say it once.

        Raises:
            LinkError: the SuperLink does not answer, so nothing goes on.
        """
        trouble = ""
        try:
            yield
        except LinkError:
            raise
        except (TacitError, OSError) as error:
            trouble = str(error)
        if trouble and trouble != self._troubled.get(what):
            _log.error("%s: %s", what, trouble)
        self._troubled[what] = trouble

    def _tend(self, run: Path, known: dict[int, FlowerRun], control: Control) -> None:
        """Make of a run what a person wants of it.

        One that should go on and that nobody leads is started: it is new, or its process was
        killed, or the SuperLink was away for too long.
        """
        submission, status = Submission.read(run / SUBMISSION), Status.read(run / STATUS)
        if status.stage not in GOES_ON:
            return
        at_superlink = known.get(AtSuperlink.number(run) or 0)
        if at_superlink is not None and not at_superlink.is_over:
            # Stopped while the SuperLink was away, or led by a process that was killed with
            # the executor before this one: the SuperLink would notice in a minute or two.
            if submission.stopped or self._is_abandoned(run):
                control.stop_run(at_superlink.flower_run)
            return
        if _is_led(run):
            return
        if submission.stopped:
            status.model_copy(update={"stage": "stopped"}).write(run / STATUS)
        elif status.begun >= _MOST_TIMES:
            trouble = Trouble(
                what=f"the run died {status.begun} times",
                why="its process ended without saying why, perhaps for want of memory",
                fix="look at the run's log.txt and the machine's, then: tacit server resume",
            )
            status.model_copy(update={"stage": "failed", "trouble": trouble}).write(run / STATUS)
        else:
            AtSuperlink(flower_run=control.start_run(run.name)).write(run / AT_SUPERLINK)
            self._begun[run.name] = time.monotonic()
            _log.info("run '%s' begins", run.name)

    def _is_abandoned(self, run: Path) -> bool:
        """Whether nobody leads a run that the SuperLink takes for running.

        One that was just asked for has no process yet. One that had a process is at once
        given up with it, where the SuperLink would wait a minute for its heartbeat.
        """
        if _is_led(run):
            self._begun.pop(run.name, None)
            return False
        asked = self._begun.get(run.name)
        return asked is None or time.monotonic() - asked >= _MAY_TAKE_S


def _is_led(run: Path) -> bool:
    """Whether a process still leads a run."""
    try:
        with locked_folder(run, "leading this run"):
            return False
    except UsageError:
        return True


def main() -> None:
    """Entry point of the process: the coordinator's folder as its argument."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request says nothing
    Executor(ServerFolder.open(Path(sys.argv[1]))).run()


if __name__ == "__main__":
    main()
