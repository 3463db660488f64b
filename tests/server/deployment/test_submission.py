"""What people ask of runs: a study that cannot run makes no folder, and no word is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tacit_common.enrolment import SiteCard
from tacit_common.errors import (
    CheckpointError,
    LinkError,
    PluginError,
    PrivacyConfigError,
    StudyError,
    UsageError,
)
from tacit_common.study import StudyFile
from tacit_common.study_file import load_study, parse_study
from tacit_common.study_reference import EXAMPLE_STUDY
from tacit_server.cli import server_app
from tacit_server.deployment import submission as module
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import (
    AT_SUPERLINK,
    GOES_ON,
    STATUS,
    SUBMISSION,
    AtSuperlink,
    Stage,
    Status,
    Submission,
    Trouble,
)
from tacit_server.deployment.submission import existing_run, resume, stop, submit

MakeFile = Callable[..., StudyFile]
STAGES: tuple[Stage, ...] = ("submitted", "gathering", "running", "finished", "failed", "stopped")


@pytest.fixture
def hub(coordinator: ServerFolder, make_card: Callable[..., SiteCard]) -> ServerFolder:
    """A coordinator with three enrolled sites."""
    roster = Roster(coordinator.roster)
    for number in range(3):
        roster.add(make_card(f"clinic-{number}"))
    return coordinator


@pytest.fixture
def submitted(hub: ServerFolder, study_file: MakeFile) -> Path:
    """A run that was submitted."""
    return submit(hub, study_file(), sites=None, patience_s=60.0)


class Control:
    """A SuperLink that notes what it is told to stop, or is away."""

    stopped: list[int]
    away = False

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None: ...

    def stop_run(self, number: int) -> None:
        if self.away:
            raise LinkError("the SuperLink cannot be reached", why="", fix="")
        self.stopped.append(number)


@pytest.fixture(autouse=True)
def control(monkeypatch: pytest.MonkeyPatch) -> type[Control]:
    """The SuperLink."""
    made = type("Control", (Control,), {"stopped": []})
    monkeypatch.setattr(module, "Control", made)
    return made


def runs_of(folder: ServerFolder) -> list[Path]:
    return sorted(folder.runs.iterdir()) if folder.runs.is_dir() else []


# --- submit ----------------------------------------------------------------------------------


def test_a_submitted_run_is_a_folder_that_says_what_is_wanted(
    hub: ServerFolder, submitted: Path, study_file: MakeFile
) -> None:
    assert runs_of(hub) == [submitted]
    wanted = Submission.read(submitted / SUBMISSION)
    assert (wanted.sites, wanted.patience_s, wanted.stopped) == (3, 60.0, False)
    assert Status.read(submitted / STATUS).stage == "submitted"
    assert AtSuperlink.number(submitted) is None
    kept = load_study(submitted / "study.toml")
    assert kept.travelling() == study_file().travelling()
    assert kept.simulation is None  # how it was rehearsed concerns nobody here


def test_a_run_is_named_after_its_study_and_two_in_one_second_have_two_names(
    hub: ServerFolder, study_file: MakeFile
) -> None:
    runs = {submit(hub, study_file(), sites=None, patience_s=0) for _ in range(3)}
    assert len(runs) == 3
    for run in runs:
        assert run.name.startswith("tiny-2")
        assert hub.run_folder(run.name) == run


UNSOUND: dict[str, tuple[tuple[str, ...], type[Exception]]] = {
    "a plug-in that nobody installed": (
        ('objective={ kind = "plugin", name = "mine" }',),
        PluginError,
    ),
    "a budget that no noise meets": (("privacy.epsilon=1e-9",), PrivacyConfigError),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_a_study_that_cannot_run_makes_no_folder(
    hub: ServerFolder, study_file: MakeFile, name: str
) -> None:
    overrides, error = UNSOUND[name]
    study = study_file(*overrides)  # it is one: each field is sound by itself
    with pytest.raises(error):
        submit(hub, study, sites=None, patience_s=0)
    assert runs_of(hub) == []


def test_a_typing_mistake_in_a_study_is_named_before_anything_is_made(
    hub: ServerFolder, tmp_path: Path
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE_STUDY.replace("mask_ratio", "mask_ration"))
    result = CliRunner().invoke(server_app, ["submit", str(hub.path), str(path)])
    assert isinstance(result.exception, StudyError)
    assert "mask_ration" in str(result.exception)
    assert runs_of(hub) == []


@pytest.mark.parametrize("sites", [0, 4, -1])
def test_a_run_does_not_wait_for_more_sites_than_there_are(
    hub: ServerFolder, study_file: MakeFile, sites: int
) -> None:
    with pytest.raises(UsageError, match="3 are enrolled"):
        submit(hub, study_file(), sites=sites, patience_s=0)
    assert runs_of(hub) == []


def test_without_an_enrolled_site_nothing_is_submitted(
    coordinator: ServerFolder, study_file: MakeFile
) -> None:
    with pytest.raises(UsageError, match="tacit server enroll"):
        submit(coordinator, study_file(), sites=None, patience_s=0)
    assert runs_of(coordinator) == []


def test_the_longest_name_that_a_study_may_have_makes_a_run(hub: ServerFolder) -> None:
    """Whatever a study may be called, its run has a name."""
    longest = ""
    for length in range(1, 200):
        try:
            parse_study(EXAMPLE_STUDY, overrides=[f"name={'s' * length}"])
        except StudyError:
            break
        longest = "s" * length
    study = parse_study(EXAMPLE_STUDY, overrides=[f"name={longest}"])
    assert submit(hub, study, sites=None, patience_s=0).is_dir()


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../hub", "a/b", "/etc", "-x", "a b", "a\n", "é", "x" * 129, "a\0"]
)
def test_what_is_no_name_of_a_run_is_refused(hub: ServerFolder, name: str) -> None:
    for command in (existing_run, stop, resume):
        with pytest.raises(UsageError, match="is not the name of a run"):
            command(hub, name)


@given(name=st.text(max_size=20))
def test_whatever_is_taken_for_a_name_stays_in_the_folder_of_runs(name: str) -> None:
    folder = ServerFolder(Path("hub"))
    try:
        run = folder.run_folder(name)
    except UsageError:
        return
    assert run.resolve().parent == folder.runs.resolve()


def test_a_run_that_is_not_there_is_told_from_those_that_are(
    hub: ServerFolder, submitted: Path
) -> None:
    (hub.runs / "half-made").mkdir()  # submit was killed before it had written what is wanted
    for name in ("another", "half-made"):
        with pytest.raises(UsageError, match="there is no run") as refused:
            existing_run(hub, name)
        assert submitted.name in refused.value.why
        assert "half-made" not in refused.value.why


# --- stop and resume ---------------------------------------------------------------------------


def at(run: Path, stage: Stage) -> None:
    Status(stage=stage).write(run / STATUS)


@pytest.mark.parametrize("stage", sorted(GOES_ON))
def test_stopping_a_run_is_noted_and_told_to_the_superlink(
    hub: ServerFolder, submitted: Path, control: type[Control], stage: Stage
) -> None:
    at(submitted, stage)
    AtSuperlink(flower_run=77).write(submitted / AT_SUPERLINK)
    stop(hub, submitted.name)
    assert Submission.read(submitted / SUBMISSION).stopped
    assert control.stopped == [77]


def test_a_run_that_has_not_begun_is_stopped_all_the_same(
    hub: ServerFolder, submitted: Path, control: type[Control]
) -> None:
    stop(hub, submitted.name)
    assert Submission.read(submitted / SUBMISSION).stopped
    assert control.stopped == []


def test_a_run_is_stopped_while_the_superlink_is_away(
    hub: ServerFolder, submitted: Path, control: type[Control]
) -> None:
    AtSuperlink(flower_run=77).write(submitted / AT_SUPERLINK)
    control.away = True
    stop(hub, submitted.name)
    assert Submission.read(submitted / SUBMISSION).stopped


@pytest.mark.parametrize("stage", sorted(set(STAGES) - GOES_ON))
def test_a_run_that_is_over_cannot_be_stopped(
    hub: ServerFolder, submitted: Path, stage: Stage
) -> None:
    at(submitted, stage)
    with pytest.raises(UsageError, match=f"it is {stage} already"):
        stop(hub, submitted.name)
    assert not Submission.read(submitted / SUBMISSION).stopped


@pytest.mark.parametrize("stage", ["failed", "stopped"])
def test_a_run_that_failed_or_was_stopped_goes_on(
    hub: ServerFolder, submitted: Path, stage: Stage
) -> None:
    Submission.read(submitted / SUBMISSION).model_copy(update={"stopped": True}).write(
        submitted / SUBMISSION
    )
    trouble = Trouble(what="a", why="b", fix="c")
    Status(stage=stage, begun=20, trouble=trouble).write(submitted / STATUS)
    resume(hub, submitted.name)
    now = Status.read(submitted / STATUS)
    assert (now.stage, now.begun, now.trouble) == ("submitted", 0, None)
    assert not Submission.read(submitted / SUBMISSION).stopped


@pytest.mark.parametrize("stage", ["finished", "submitted", "gathering", "running"])
def test_a_run_that_is_finished_or_goes_on_by_itself_cannot_be_resumed(
    hub: ServerFolder, submitted: Path, stage: Stage
) -> None:
    at(submitted, stage)
    before = [(submitted / name).read_bytes() for name in (STATUS, SUBMISSION)]
    with pytest.raises(UsageError, match="cannot be resumed") as refused:
        resume(hub, submitted.name)
    assert ("finished" in refused.value.why) == (stage == "finished")
    assert [(submitted / name).read_bytes() for name in (STATUS, SUBMISSION)] == before


def test_every_stage_either_goes_on_or_waits_for_a_person_or_is_the_end() -> None:
    assert set(STAGES) == GOES_ON | {"finished", "failed", "stopped"}


# --- records ---------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "another field"])
def test_a_damaged_record_is_named_with_its_run(
    hub: ServerFolder, submitted: Path, damage: str
) -> None:
    path = submitted / STATUS
    whole = path.read_text()
    if damage == "missing":
        path.unlink()
    else:
        said = {"empty": "", "cut": whole[:-3], "another field": '{"stage":"running","x":1}'}
        path.write_text(said[damage])
    with pytest.raises(CheckpointError, match=rf"'status\.json' of the run '{submitted.name}'"):
        stop(hub, submitted.name)


def test_trouble_tells_our_errors_and_of_others_their_kind_alone() -> None:
    ours = Trouble.of(LinkError("what", why="why", fix="fix"))
    assert (ours.what, ours.why, ours.fix) == ("what", "why", "fix")
    theirs = Trouble.of(ValueError("patient-4711"))
    assert "ValueError" in theirs.what
    assert "4711" not in theirs.model_dump_json()
