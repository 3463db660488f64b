"""The process of one run: it leads what was submitted here and nothing else, and says how it is."""

import io
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace, TracebackType

import httpx
import pytest

from tacit_common.enrolment import SiteCard
from tacit_common.errors import LinkError, QuorumError, UsageError
from tacit_common.files import locked_folder
from tacit_common.study import StudyFile
from tacit_server.deployment import run_task as module
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import (
    AT_SUPERLINK,
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Status,
    Submission,
)
from tacit_server.deployment.run_task import StatusWriter, lead_run, main
from tacit_server.deployment.submission import submit
from tacit_server.run_log import Gathering, Progress, RunFinished


class Task:
    """A run at the SuperLink, taken up by its token."""

    name = ""
    number = 1
    ended: list[str]

    def __init__(self, *_: object) -> None:
        self.grid = SimpleNamespace(run=SimpleNamespace(run_id=self.number))

    def __enter__(self) -> "Task":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ended.append("completed" if kind is None else kind.__name__)


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> type[Task]:
    """The task that the token stands for: its name is set by the test."""
    made = type("Task", (Task,), {"ended": []})
    monkeypatch.setattr(module, "RunTask", made)
    return made


@pytest.fixture
def hub(coordinator: ServerFolder, make_card: Callable[..., SiteCard]) -> ServerFolder:
    """A coordinator with one enrolled site."""
    Roster(coordinator.roster).add(make_card("clinic"))
    return coordinator


@pytest.fixture
def run(hub: ServerFolder, study_file: Callable[..., StudyFile], task: type[Task]) -> Path:
    """A run that was submitted and begun, and for which the token stands."""
    folder = submit(hub, study_file(), sites=1, patience_s=0.0)
    AtSuperlink(flower_run=1).write(folder / AT_SUPERLINK)
    task.name = folder.name
    return folder


class Work:
    """What leading a run comes to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.during: Callable[[], object] = lambda: None
        self.led: list[Path] = []

    def __call__(self, folder: ServerFolder, run: Path, task: Task, status: StatusWriter) -> None:
        self.led.append(run)
        self.during()
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """The rounds, which other tests run."""
    made = Work()
    monkeypatch.setattr(module, "_lead", made)
    return made


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """The log of a run belongs to its process."""
    logger = logging.getLogger("tacit_server")
    handlers, propagate = list(logger.handlers), logger.propagate
    yield
    for handler in logger.handlers[len(handlers) :]:
        handler.close()
    logger.handlers, logger.propagate = handlers, propagate


def want_stopped(run: Path) -> None:
    wanted = Submission.read(run / SUBMISSION)
    wanted.model_copy(update={"stopped": True}).write(run / SUBMISSION)


# --- whose run it is ---------------------------------------------------------------------------


def test_a_submitted_run_is_led_to_its_end(
    hub: ServerFolder, run: Path, work: Work, task: type[Task]
) -> None:
    lead_run(hub, "token")
    assert work.led == [run]
    assert task.ended == ["completed"]
    now = Status.read(run / STATUS)
    assert (now.stage, now.begun, now.trouble) == ("finished", 1, None)


@pytest.mark.parametrize("name", ["", "..", "/etc", "of-a-stranger", "study.toml", "a/../b"])
def test_a_run_that_a_stranger_started_at_the_control_api_is_refused(
    hub: ServerFolder, run: Path, work: Work, task: type[Task], name: str
) -> None:
    task.name = name
    with pytest.raises(UsageError):
        lead_run(hub, "token")
    assert work.led == []
    assert task.ended == ["UsageError"]
    assert sorted(path.name for path in hub.runs.iterdir()) == [run.name]


def test_a_run_that_a_stranger_started_in_the_name_of_a_submitted_one_is_refused(
    hub: ServerFolder, run: Path, work: Work, task: type[Task]
) -> None:
    """Else a run that a person had stopped, or that is over, could be begun by anybody."""
    task.number = 2
    before = (run / STATUS).read_bytes()
    with pytest.raises(UsageError, match="nobody submitted here"):
        lead_run(hub, "token")
    assert work.led == []
    assert (run / STATUS).read_bytes() == before


def test_a_run_that_was_submitted_and_never_begun_is_nobody_s_to_begin(
    hub: ServerFolder, run: Path, work: Work
) -> None:
    (run / AT_SUPERLINK).unlink()
    with pytest.raises(UsageError, match="nobody submitted here"):
        lead_run(hub, "token")
    assert work.led == []


def test_two_processes_do_not_lead_one_run(hub: ServerFolder, run: Path, work: Work) -> None:
    with (
        locked_folder(run, "leading this run"),
        pytest.raises(UsageError, match="another process is leading this run"),
    ):
        lead_run(hub, "token")
    assert work.led == []
    assert Status.read(run / STATUS).stage == "submitted"


# --- how it ends -----------------------------------------------------------------------------


def test_a_run_that_fails_says_why_and_waits_for_a_person(
    hub: ServerFolder, run: Path, work: Work, task: type[Task]
) -> None:
    work.error = QuorumError("round 3 failed", why="1 of 3 answered", fix="resume")
    with pytest.raises(QuorumError):
        lead_run(hub, "token")
    now = Status.read(run / STATUS)
    assert now.stage == "failed"
    assert now.trouble is not None
    assert (now.trouble.what, now.trouble.why) == ("round 3 failed", "1 of 3 answered")
    assert task.ended == ["QuorumError"]
    assert "round 3 failed" in (run / "log.txt").read_text()


def test_a_fault_of_ours_is_told_by_its_kind_and_the_log_has_the_rest(
    hub: ServerFolder, run: Path, work: Work
) -> None:
    work.error = ValueError("something of the inside")
    with pytest.raises(ValueError, match="inside"):
        lead_run(hub, "token")
    said = Status.read(run / STATUS)
    assert said.trouble is not None
    assert "ValueError" in said.trouble.what
    assert "of the inside" not in said.model_dump_json()
    assert "of the inside" in (run / "log.txt").read_text()


LOST: list[BaseException] = [
    LinkError("the SuperLink cannot be reached", why="", fix=""),
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    KeyboardInterrupt(),  # of Flower, which has given the run up for its missing heartbeats
    SystemExit(143),  # SIGTERM: the server is stopped, and the run goes on with it
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_run_that_lost_its_superlink_goes_on_by_itself(
    hub: ServerFolder, run: Path, work: Work, error: BaseException
) -> None:
    work.error = error
    work.during = lambda: StatusWriter(run / STATUS)._change(stage="running", doing="round 3")
    with pytest.raises(type(error)):
        lead_run(hub, "token")
    now = Status.read(run / STATUS)
    assert now.stage == "running"
    assert now.trouble is None


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), LinkError("gone", why="", fix=""), RuntimeError("the run is over")],
    ids=lambda error: type(error).__name__,
)
def test_a_run_that_a_person_stops_is_stopped_however_flower_says_it(
    hub: ServerFolder, run: Path, work: Work, error: BaseException
) -> None:
    work.error = error
    work.during = lambda: want_stopped(run)
    with pytest.raises(type(error)):
        lead_run(hub, "token")
    now = Status.read(run / STATUS)
    assert (now.stage, now.trouble) == ("stopped", None)


def test_a_run_that_was_stopped_before_its_process_began_is_not_led(
    hub: ServerFolder, run: Path, work: Work
) -> None:
    want_stopped(run)
    lead_run(hub, "token")
    assert work.led == []
    assert Status.read(run / STATUS).stage == "stopped"


def test_a_run_that_ends_as_it_is_being_stopped_is_finished(
    hub: ServerFolder, run: Path, work: Work
) -> None:
    work.during = lambda: want_stopped(run)
    lead_run(hub, "token")
    assert Status.read(run / STATUS).stage == "finished"


def test_it_is_counted_how_often_a_run_was_taken_up(
    hub: ServerFolder, run: Path, work: Work
) -> None:
    work.error = LinkError("the SuperLink cannot be reached", why="", fix="")
    for times in (1, 2, 3):
        with pytest.raises(LinkError):
            lead_run(hub, "token")
        assert Status.read(run / STATUS).begun == times


# --- what it says meanwhile ------------------------------------------------------------------


def test_the_status_follows_the_run(run: Path) -> None:
    status = StatusWriter(run / STATUS)
    assert Status.read(run / STATUS).stage == "gathering"
    status.watch(Gathering(joined=["a", "b"], refused={"c": "approval"}))
    gathered = Status.read(run / STATUS)
    assert (gathered.stage, gathered.joined) == ("gathering", ("a", "b"))
    assert gathered.refused == {"c": "approval"}
    status.watch(Progress(stage="round", label="round 1", done=2, total=2))
    working = Status.read(run / STATUS)
    assert (working.stage, working.doing, working.done, working.total) == (
        *("running", "round 1", 2, 2),
    )
    status.watch(RunFinished(rounds=1))
    assert Status.read(run / STATUS).stage == "running"
    status.finish()
    over = Status.read(run / STATUS)
    assert (over.stage, over.doing, over.joined) == ("finished", "", ("a", "b"))
    assert over.at >= working.at


def test_progress_is_written_now_and_then_and_always_at_the_end(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    status = StatusWriter(run / STATUS)
    seen = []
    for done in range(1, 101):
        now[0] += 0.05
        status.watch(Progress(stage="round", label="round 1", done=done, total=100))
        seen.append(Status.read(run / STATUS).done)
    assert len(set(seen)) < 10
    assert seen[-1] == 100


# --- the process -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (QuorumError("what", why="why", fix="fix"), 1),
        (UsageError("what", why="why", fix="fix"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda case: type(case).__name__,
)
def test_the_process_says_in_its_exit_code_how_the_run_ended(
    hub: ServerFolder,
    run: Path,
    work: Work,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException | None,
    code: int,
) -> None:
    work.error = error
    monkeypatch.setattr(sys, "argv", ["run_task", str(hub.path)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("token\n"))
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main() == code
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ("what: why; fix" in capsys.readouterr().err) == (code in (1, 2))
