"""The executor: a run is begun once, taken up again after a kill, and left alone when over."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, LinkError, UsageError
from tacit_common.files import locked_folder
from tacit_common.flower.control import FlowerRun, NodeState
from tacit_common.study import StudyFile
from tacit_server.deployment import executor as module
from tacit_server.deployment.executor import Executor
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import (
    AT_SUPERLINK,
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Stage,
    Status,
    Submission,
)
from tacit_server.deployment.submission import resume, submit


class SuperLink:
    """What a SuperLink has of runs: the executor's `Control`, without a network."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.stopped: list[int] = []
        self.over: set[int] = set()
        self.forgotten: set[int] = set()
        self.away = False
        self.refuses = False

    def __call__(self, *_: object) -> "SuperLink":
        return self

    def __enter__(self) -> "SuperLink":
        return self

    def __exit__(self, *_: object) -> None: ...

    def nodes(self) -> list[NodeState]:
        if self.away:
            raise LinkError("the SuperLink cannot be reached", why="", fix="")
        return []

    def register_node(self, public_key: bytes, name: str) -> None:
        if self.refuses:
            raise IdentityError("a key is not accepted", why="", fix="")

    def runs(self) -> dict[int, FlowerRun]:
        return {
            number: FlowerRun(number, "finished:failed" if number in self.over else "running", "")
            for number in range(1, len(self.started) + 1)
            if number not in self.forgotten
        }

    def start_run(self, name: str) -> int:
        self.started.append(name)
        return len(self.started)

    def stop_run(self, number: int) -> None:
        self.stopped.append(number)
        self.over.add(number)


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    """The SuperLink."""
    made = SuperLink()
    monkeypatch.setattr(module, "Control", made)
    return made


@pytest.fixture
def hub(coordinator: ServerFolder, make_card: Callable[..., SiteCard]) -> ServerFolder:
    """A coordinator with one enrolled site."""
    Roster(coordinator.roster).add(make_card("clinic"))
    return coordinator


class Server:
    """A coordinator at work: its executor looks around when it is told to."""

    def __init__(self, hub: ServerFolder, superlink: SuperLink) -> None:
        self.hub = hub
        self.superlink = superlink
        self.executor = Executor(hub)

    def look(self, times: int = 1) -> list[str]:
        for _ in range(times):
            self.executor._look_around()
        return self.superlink.started

    def restart(self) -> None:
        self.executor = Executor(self.hub)


@pytest.fixture
def server(hub: ServerFolder, superlink: SuperLink) -> Server:
    """A server at work."""
    return Server(hub, superlink)


@pytest.fixture
def run(hub: ServerFolder, study_file: Callable[..., StudyFile]) -> Path:
    """A run that was submitted."""
    return submit(hub, study_file(), sites=1, patience_s=0.0)


@pytest.fixture
def led() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """`end = led(run)`: a process leads the run until `end()`."""
    with ExitStack() as everything:

        def begin(run: Path) -> Callable[[], None]:
            one = everything.enter_context(ExitStack())
            one.enter_context(locked_folder(run, "leading this run"))
            return one.close

        yield begin


Led = Callable[[Path], Callable[[], None]]


def at(run: Path, stage: Stage, begun: int = 1) -> None:
    Status(stage=stage, begun=begun).write(run / STATUS)


def stage_of(run: Path) -> str:
    return Status.read(run / STATUS).stage


# --- beginning -------------------------------------------------------------------------------


def test_a_submitted_run_is_begun_once_and_under_its_number(server: Server, run: Path) -> None:
    assert server.look(times=5) == [run.name]
    assert AtSuperlink.number(run) == 1


def test_a_run_whose_process_is_at_work_is_left_alone(server: Server, run: Path, led: Led) -> None:
    server.look()
    led(run)
    at(run, "running")
    server.look(times=3)
    server.restart()  # the executor alone was killed
    server.look(times=3)
    assert server.superlink.started == [run.name]
    assert server.superlink.stopped == []


def test_a_folder_that_is_only_half_submitted_is_no_run(server: Server, run: Path) -> None:
    (run / SUBMISSION).unlink()
    assert server.look() == []


# --- taking up again ---------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["submitted", "gathering", "running"])
def test_a_run_whose_process_was_killed_is_begun_again(
    server: Server, run: Path, led: Led, stage: Stage
) -> None:
    server.look()
    end = led(run)
    at(run, stage)
    server.look()
    end()  # kill -9
    assert server.look(times=3) == [run.name] * 2
    assert AtSuperlink.number(run) == 2


def test_a_run_that_the_superlink_gave_up_is_begun_again_once_its_process_has_ended(
    server: Server, run: Path, led: Led
) -> None:
    """The SuperLink was away for over a minute, and missed the heartbeats."""
    server.look()
    end = led(run)
    at(run, "running")
    server.superlink.over.add(1)
    assert server.look() == [run.name]  # two processes would fight for one folder
    end()
    assert server.look() == [run.name] * 2


def test_a_run_of_which_the_superlink_knows_nothing_is_begun_again(
    server: Server, run: Path
) -> None:
    """Its database was lost."""
    server.look()
    at(run, "running")
    server.superlink.forgotten.add(1)
    assert server.look() == [run.name] * 2


def test_runs_go_on_after_the_whole_machine_was_switched_off(server: Server, run: Path) -> None:
    server.look()
    at(run, "running")
    server.restart()
    assert server.look(times=2) == [run.name] * 2  # the first look ends the run of before
    assert server.superlink.stopped == [1]


def test_a_run_that_was_just_asked_for_is_given_time_to_start(
    server: Server, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    server.look()
    now[0] = 60.0
    server.look()
    assert server.superlink.stopped == []
    now[0] = 600.0
    server.look(times=2)
    assert server.superlink.stopped == [1]
    assert server.superlink.started == [run.name] * 2


@pytest.mark.parametrize("stage", ["finished", "failed", "stopped"])
def test_a_run_that_is_over_is_left_alone(server: Server, run: Path, stage: Stage) -> None:
    at(run, stage)
    assert server.look(times=3) == []
    assert stage_of(run) == stage


def test_a_run_that_failed_goes_on_when_a_person_resumes_it(server: Server, run: Path) -> None:
    server.look()
    server.superlink.over.add(1)
    at(run, "failed")
    server.look()
    resume(server.hub, run.name)
    assert server.look(times=3) == [run.name] * 2


def test_a_run_that_dies_again_and_again_is_left_to_a_person(server: Server, run: Path) -> None:
    server.look()
    server.superlink.over.add(1)
    at(run, "running", begun=20)
    server.look(times=2)
    now = Status.read(run / STATUS)
    assert now.stage == "failed"
    assert now.trouble is not None
    assert "died 20 times" in now.trouble.what
    assert "resume" in now.trouble.fix
    assert server.superlink.started == [run.name]
    resume(server.hub, run.name)
    assert server.look() == [run.name] * 2


# --- stopping --------------------------------------------------------------------------------


def want_stopped(run: Path) -> None:
    wanted = Submission.read(run / SUBMISSION)
    wanted.model_copy(update={"stopped": True}).write(run / SUBMISSION)


def test_a_run_that_was_stopped_before_it_began_is_not_begun(server: Server, run: Path) -> None:
    want_stopped(run)
    assert server.look() == []
    assert stage_of(run) == "stopped"


def test_a_run_that_was_stopped_is_not_begun_again(server: Server, run: Path) -> None:
    server.look()
    at(run, "running")
    want_stopped(run)
    server.superlink.over.add(1)
    assert server.look(times=2) == [run.name]
    assert stage_of(run) == "stopped"


def test_a_run_that_was_stopped_while_the_superlink_was_away_is_stopped_there_later(
    server: Server, run: Path, led: Led
) -> None:
    server.look()
    end = led(run)
    at(run, "running")
    want_stopped(run)
    server.look()
    assert server.superlink.stopped == [1]
    end()
    server.look()
    assert stage_of(run) == "stopped"
    assert server.superlink.started == [run.name]


# --- what goes wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [STATUS, SUBMISSION, AT_SUPERLINK])
def test_one_damaged_run_does_not_keep_the_others_from_going_on(
    server: Server,
    run: Path,
    study_file: Callable[..., StudyFile],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = submit(server.hub, study_file("name=zebra"), sites=1, patience_s=0.0)
    (run / name).write_text("{")
    server.look(times=4)
    assert server.superlink.started == [other.name]
    told = [record.message for record in caplog.records if run.name in record.message]
    assert len(told) == 1  # and not with each look
    assert name in told[0]


@pytest.mark.parametrize("trouble", ["a key that is not taken", "a damaged roster"])
def test_what_is_wrong_with_sites_does_not_keep_runs_from_going_on(
    server: Server, run: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    if trouble == "a damaged roster":
        server.hub.roster.write_text("{")
    else:
        server.superlink.refuses = True
    server.look(times=3)
    assert server.superlink.started == [run.name]
    assert sum("the roster: " in record.message for record in caplog.records) == 1


def test_while_the_superlink_is_away_nothing_is_begun_and_nothing_lost(
    server: Server, run: Path
) -> None:
    server.superlink.away = True
    with pytest.raises(LinkError):
        server.look()
    server.superlink.away = False
    assert server.look() == [run.name]


# --- processes -------------------------------------------------------------------------------


class Queue:
    """Tokens that wait at the SuperLink; then the executor is told to end."""

    def __init__(self, tokens: list[str | Exception]) -> None:
        self._tokens = tokens

    def __call__(self, *_: object) -> "Queue":
        return self

    def acquire(self) -> str | None:
        if not self._tokens:
            raise SystemExit(0)
        token = self._tokens.pop(0)
        if isinstance(token, Exception):
            raise token
        return token


class Process:
    """A process of a run."""

    def __init__(self, command: list[str], **options: object) -> None:
        self.command = command
        self.written: list[bytes] = []
        self.ended: list[str] = []
        self.stdin = self

    def write(self, content: bytes) -> None:
        self.written.append(content)

    def close(self) -> None: ...

    def poll(self) -> int | None:
        return None

    def terminate(self) -> None:
        self.ended.append("terminate")

    def wait(self) -> None:
        self.ended.append("wait")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    """The processes that the executor starts."""
    started: list[Process] = []

    def start(command: list[str], **options: object) -> Process:
        if command == ["no memory"]:
            raise OSError(12, "Cannot allocate memory")
        started.append(Process(command, **options))
        return started[-1]

    monkeypatch.setattr(module.subprocess, "Popen", start)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return started


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`waiting("token", LinkError(…))`: what the SuperLink says, one by one."""
    return lambda *tokens: monkeypatch.setattr(module, "TaskQueue", Queue(list(tokens)))


def ended(server: Server) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            server.executor.run()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_each_token_starts_one_process_of_installed_code_and_is_in_no_list_of_processes(
    server: Server, processes: list[Process], waiting: Callable[..., None]
) -> None:
    waiting("secret-1", None, "secret-2")
    ended(server)
    assert [process.written for process in processes] == [[b"secret-1\n"], [b"secret-2\n"]]
    for process in processes:
        assert not any("secret" in part for part in process.command)
        assert sys.executable in process.command
        assert process.command[-3:] == [
            "-m",
            "tacit_server.deployment.run_task",
            str(server.hub.path),
        ]


def test_the_processes_of_runs_end_with_the_executor(
    server: Server, processes: list[Process], waiting: Callable[..., None]
) -> None:
    waiting("one", "two")
    ended(server)
    assert [process.ended for process in processes] == [["terminate", "wait"]] * 2


@pytest.mark.parametrize(
    "error",
    [
        LinkError("the SuperLink cannot be reached", why="", fix=""),
        UsageError("the roster", why="", fix=""),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_superlink_that_fails_for_a_moment_does_not_end_the_executor(
    server: Server, processes: list[Process], waiting: Callable[..., None], error: Exception
) -> None:
    waiting(error, "token")
    ended(server)
    assert len(processes) == 1


def test_a_process_that_cannot_be_started_does_not_end_those_of_other_runs(
    server: Server,
    processes: list[Process],
    waiting: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = iter([["no memory"], ["a command"]])
    monkeypatch.setattr(module, "tied_to_this_process", lambda _: next(commands))
    waiting("first", "second")
    ended(server)
    assert [process.written for process in processes] == [[b"second\n"]]
