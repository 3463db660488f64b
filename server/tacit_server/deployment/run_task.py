"""One run at a coordinator: the process that leads it, started by the executor.

    take the run up at the SuperLink → read its folder → rounds (`tacit_server.run`) → report

It runs the installed coordinator on a folder that `tacit server submit` has made, under the
number that the executor began it with. Any other run at the SuperLink was started by somebody
else, and is refused.
"""

import logging
import signal
import sys
import time
from pathlib import Path

import httpx

from tacit_common.errors import LinkError, TacitError, UsageError
from tacit_common.files import locked_folder
from tacit_common.flower.apps import make_context
from tacit_common.flower.control import Control
from tacit_common.flower.tasks import RunTask
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import calibrate
from tacit_common.study_file import load_study
from tacit_server.app import make_server_app
from tacit_server.cohort import Patience
from tacit_server.deployment.channel import SignedChannel
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.kept_heads import KeptHeads
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import (
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Status,
    Submission,
    Trouble,
)
from tacit_server.exchange import Exchange
from tacit_server.report import write_deployed_report
from tacit_server.run import Coordinator, RunFolder
from tacit_server.run_log import Gathering, LoggedEvent, Passing, Progress

_TELL_EVERY_S = 1.0  # how often progress within a stage is worth a write

_log = logging.getLogger("tacit_server")


class StatusWriter:
    """A watcher of a run that keeps `status.json`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        before = Status.read(path)
        self._status = Status(stage="gathering", begun=before.begun + 1)
        self._status.write(path)
        self._told = 0.0

    def watch(self, event: LoggedEvent | Passing) -> None:
        """Write what has happened."""
        match event:
            case Gathering(joined=joined, refused=refused):
                self._change(joined=tuple(joined), refused=refused)
            case Progress(label=label, done=done, total=total):
                if done < total and time.monotonic() - self._told < _TELL_EVERY_S:
                    return
                self._told = time.monotonic()
                self._change(stage="running", doing=label, done=done, total=total)
            case _:
                self._change(stage="running")

    def finish(self) -> None:
        """The run is over, as planned."""
        self._change(stage="finished", doing="", done=0, total=0)

    def fail(self, error: Exception) -> None:
        """The run is over, and a person has to look."""
        self._change(stage="failed", trouble=Trouble.of(error))

    def stop(self) -> None:
        """The run is over, because a person wanted it so."""
        self._change(stage="stopped")

    def _change(self, **changes: object) -> None:
        at = Status(stage="running").at
        self._status = self._status.model_copy(update={"at": at, **changes})
        self._status.write(self._path)


def lead_run(folder: ServerFolder, token: str) -> None:
    """Lead the run that `token` stands for, from wherever its folder says it stands.

    Raises:
        TacitError: the run cannot go on; `status.json` says why.
    """
    config, ca = folder.config(), folder.ca_certificate.read_bytes()
    with RunTask(config.superlink_address, ca, token) as task:
        run = _submitted(folder, task)
        with locked_folder(run, "leading this run"):
            _keep_log(run / "log.txt")
            status = StatusWriter(run / STATUS)
            if _is_stopped(run):  # before it had begun
                status.stop()
                return
            try:
                _lead(folder, run, task, status)
            except (Exception, KeyboardInterrupt) as error:
                if _is_stopped(run):
                    status.stop()
                else:
                    _ended_early(error, status)
                raise
            status.finish()


def _submitted(folder: ServerFolder, task: RunTask) -> Path:
    """The folder of the run that a task is for."""
    run = folder.run_folder(task.name)
    if not (run / SUBMISSION).is_file() or AtSuperlink.number(run) != task.grid.run.run_id:
        raise UsageError(
            "a run was started that nobody submitted here",
            why="no folder in runs/ is of this run, so whoever reached the SuperLink started it",
            fix="start runs with: tacit server submit DIR STUDY.toml",
        )
    return run


def _is_stopped(run: Path) -> bool:
    return Submission.read(run / SUBMISSION).stopped


def _ended_early(error: BaseException, status: StatusWriter) -> None:
    """Leave a run to a person, unless it was the SuperLink that was lost.

    After that, or when its process is killed, the executor takes it up again by itself.
    Flower interrupts a run that it has given up.
    """
    if isinstance(error, LinkError | httpx.HTTPError | KeyboardInterrupt):
        _log.warning("the SuperLink was lost (%s)", type(error).__name__)
    elif isinstance(error, Exception):
        _log.exception("the run ended early")
        status.fail(error)


def _lead(folder: ServerFolder, run: Path, task: RunTask, status: StatusWriter) -> None:
    study = load_study(run / "study.toml")
    submission = Submission.read(run / SUBMISSION)
    schedule = calibrate(study.travelling())
    identity, roster, kept = folder.identity(), Roster(folder.roster), KeptHeads(folder.heads)
    ca = folder.ca_certificate.read_bytes()
    with Control(folder.config().superlink_address, ca) as control:
        channel = SignedChannel(identity, roster, control.nodes)

        def coordinate(exchange: Exchange) -> None:
            def keep_heads(event: LoggedEvent | Passing) -> None:
                if not isinstance(event, Progress):  # it comes with every answer
                    kept.keep(exchange.heads)

            kept.restore(exchange.heads, [site.card for site in roster.sites.values()])
            coordinator = Coordinator(
                study.travelling(),
                schedule,
                RunFolder(run),
                PluginTable(study.plugins),
                watchers=[status.watch, keep_heads],
                patience=Patience(submission.sites, submission.patience_s),
                asks_for_accounts=True,
            )
            state = coordinator.run(exchange)
            write_deployed_report(run, study, schedule, state, identity)

        server_app = make_server_app(coordinate, channel)
        server_app(task.grid, make_context(run_id=1, node_id=1, node_config={}))


def main() -> int:
    """Entry point of the process: the folder as its argument, the token on standard input."""
    # Not the end of the run: it goes on when the server is back.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    token = sys.stdin.readline().strip()
    try:
        lead_run(ServerFolder.open(Path(sys.argv[1])), token)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TacitError as error:
        print(f"{error.what}: {error.why}; {error.fix}", file=sys.stderr)
        return error.exit_code
    return 0


def _keep_log(path: Path) -> None:
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.propagate = False


if __name__ == "__main__":
    sys.exit(main())
