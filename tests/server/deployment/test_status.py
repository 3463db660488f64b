"""What a coordinator sees: every code in words, every stage of a run, and a server that is away."""

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from tacit_common.enrolment import SiteCard
from tacit_common.errors import CheckpointError, LinkError, RefusalCode
from tacit_common.flower.control import NodeState, node_public_key
from tacit_common.study import StudyFile
from tacit_server.deployment import status as module
from tacit_server.deployment.folder import ServerFolder
from tacit_server.deployment.models import as_json, models
from tacit_server.deployment.roster import Roster
from tacit_server.deployment.run_record import STATUS, Stage, Status, Trouble
from tacit_server.deployment.status import (
    MEANING,
    ServerStatus,
    SiteStatus,
    in_words,
    is_refusal,
    status_of,
)
from tacit_server.deployment.status_view import view, watch_live
from tacit_server.deployment.submission import submit
from tacit_server.exchange import Failure
from tacit_server.run_log import RoundFinished, RunLog, RunStarted

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [*RefusalCode, *Failure])
def test_every_code_has_words_of_its_own(code: RefusalCode | Failure) -> None:
    words = in_words(code.value)
    assert "does not know" not in words
    assert list(MEANING.values()).count(words) == 1


def test_what_a_site_said_is_told_from_what_was_noticed_of_it() -> None:
    assert {code.value for code in (*RefusalCode, *Failure) if is_refusal(code.value)} == {
        code.value for code in RefusalCode
    }


def test_a_code_of_another_version_does_not_fail() -> None:
    assert "does not know" in in_words("some_new_code")
    assert not is_refusal("some_new_code")


# --- looking ---------------------------------------------------------------------------------


class Control:
    """A SuperLink that knows these nodes, or is away."""

    known: list[NodeState] | None = None

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None: ...

    def nodes(self) -> list[NodeState]:
        if self.known is None:
            raise LinkError("the SuperLink cannot be reached", why="", fix="")
        return self.known


@pytest.fixture
def control(monkeypatch: pytest.MonkeyPatch) -> type[Control]:
    """The SuperLink."""
    made = type("Control", (Control,), {})
    monkeypatch.setattr(module, "Control", made)
    return made


@pytest.fixture
def cards(coordinator: ServerFolder, make_card: Callable[..., SiteCard]) -> list[SiteCard]:
    """Three enrolled sites."""
    made = [make_card(f"clinic-{number}") for number in range(3)]
    for card in made:
        Roster(coordinator.roster).add(card)
    return made


@pytest.fixture
def run(
    coordinator: ServerFolder, cards: list[SiteCard], study_file: Callable[..., StudyFile]
) -> Path:
    """A run that was submitted."""
    return submit(coordinator, study_file(), sites=None, patience_s=60.0)


PROMISE = timedelta(seconds=60)  # how long a heartbeat counts, in Flower


def begun(run: Path, **failed: str) -> None:
    """The log of a run after its first round."""
    log = RunLog(run / "events.jsonl")
    log.publish(
        RunStarted(
            run="r",
            study_digest="0" * 64,
            rounds=2,
            parameters=10,
            noise_multiplier=1.0,
            sites={"clinic-0": 30, "clinic-1": 30},
        )
    )
    log.publish(
        RoundFinished(
            round=1,
            asked=["clinic-0", "clinic-1"],
            answered=["clinic-0"],
            failed=failed,
            seconds=1.0,
            update_norm=1.0,
            epsilon=1.25,
            public_loss=1.0,
            train_loss=None,
        )
    )


def test_a_site_is_connected_away_or_was_never_seen(
    coordinator: ServerFolder, cards: list[SiteCard], control: type[Control]
) -> None:
    keys = [node_public_key(card.node_key) for card in cards]
    control.known = [
        NodeState(1, keys[0], True, NOW.timestamp()),
        NodeState(2, keys[1], False, NOW.timestamp()),
    ]
    status = status_of(coordinator)
    assert status.superlink
    assert list(status.sites) == [
        SiteStatus(site="clinic-0", online=True, last_heartbeat=NOW - PROMISE),
        SiteStatus(site="clinic-1", online=False, last_heartbeat=NOW - PROMISE),
        SiteStatus(site="clinic-2", online=False, last_heartbeat=None),
    ]


def test_while_the_server_is_away_nothing_is_said_of_connections(
    coordinator: ServerFolder, run: Path, control: type[Control]
) -> None:
    status = status_of(coordinator)
    assert not status.superlink
    assert [site.online for site in status.sites] == [None] * 3
    assert [one.name for one in status.runs] == [run.name]


def test_a_run_shows_its_rounds_its_cost_and_who_did_not_answer(
    coordinator: ServerFolder, run: Path, control: type[Control]
) -> None:
    Status(stage="running", joined=("clinic-0", "clinic-1"), refused={"clinic-2": "hours"}).write(
        run / STATUS
    )
    begun(run, **{"clinic-1": "no_answer"})
    (seen,) = status_of(coordinator).runs
    assert (seen.stage, seen.rounds_done, seen.rounds, seen.epsilon) == ("running", 1, 2, 1.25)
    assert seen.refused == {"clinic-2": "hours", "clinic-1": "no_answer"}
    assert seen.answered_last == ("clinic-0",)
    assert seen.quorum == 1  # half of two


def test_a_line_that_is_being_written_is_not_read(
    coordinator: ServerFolder, run: Path, control: type[Control]
) -> None:
    begun(run)
    with (run / "events.jsonl").open("ab") as log:
        log.write(b'{"event":"round_fin')
    (seen,) = status_of(coordinator).runs
    assert seen.rounds_done == 1


def test_what_a_program_reads_is_what_a_person_sees(
    coordinator: ServerFolder, run: Path, control: type[Control]
) -> None:
    begun(run)
    status = status_of(coordinator)
    assert ServerStatus.model_validate_json(status.model_dump_json()) == status


# --- showing ---------------------------------------------------------------------------------


def shown(status: ServerStatus, only: str | None = None) -> str:
    page = io.StringIO()
    Console(file=page, width=160, no_color=True).print(view(status, only))
    return page.getvalue()


Look = Callable[..., str]


@pytest.fixture
def look(coordinator: ServerFolder, control: type[Control]) -> Look:
    """`look(run)`: what `tacit server status` prints."""
    control.known = []
    return lambda only=None: shown(status_of(coordinator), only)


def test_an_empty_server_says_what_to_do_next(look: Look) -> None:
    page = look()
    assert "tacit server enroll" in page
    assert "tacit server submit" in page
    assert "tacit server run" not in page


def test_a_server_that_is_not_running_says_so(
    coordinator: ServerFolder, cards: list[SiteCard], control: type[Control]
) -> None:
    page = shown(status_of(coordinator))
    assert "tacit server run DIR" in page
    assert "unknown" in page


def test_connections_are_shown_site_by_site() -> None:
    sites = (
        SiteStatus(site="a", online=True, last_heartbeat=NOW - timedelta(seconds=12)),
        SiteStatus(site="b", online=False, last_heartbeat=NOW - timedelta(minutes=7)),
        SiteStatus(site="c", online=False, last_heartbeat=None),
        SiteStatus(site="d", online=True, last_heartbeat=NOW + timedelta(seconds=30)),
    )
    page = shown(ServerStatus(at=NOW, superlink=True, sites=sites, runs=()))
    lines = {line.split()[0]: line for line in page.splitlines() if line.strip()}
    assert "connected, last heartbeat 12 s ago" in lines["a"]
    assert "away, last heartbeat 7 min ago" in lines["b"]
    assert "never seen" in lines["c"]
    assert "connected, last heartbeat 0 s ago" in lines["d"]  # a clock that is behind


def test_a_gathering_run_shows_who_is_there_and_why_others_are_not(look: Look, run: Path) -> None:
    Status(
        stage="gathering", joined=("clinic-0",), refused={"clinic-1": "approval", "x": "no_answer"}
    ).write(run / STATUS)
    page = look()
    assert "1 of 3 sites have joined" in page
    assert "site clinic-1 refused (approval): a person there has not approved the study" in page
    assert "site x gave nothing usable (no_answer): nothing came back in time" in page


def test_a_running_run_shows_where_it_is_and_what_it_costs(look: Look, run: Path) -> None:
    Status(stage="running", doing="round 2", done=1, total=2, joined=("clinic-0",)).write(
        run / STATUS
    )
    begun(run, **{"clinic-1": "budget"})
    page = look()
    assert "1 of 2 rounds, quorum 1 of 1 sites" in page
    assert "ε 1.25" in page
    assert "now: round 2 (1 of 2)" in page
    assert "site clinic-1 refused (budget)" in page


def test_a_failed_run_shows_its_trouble_and_what_to_do(look: Look, run: Path) -> None:
    trouble = Trouble(what="round 3 failed", why="1 of 3 answered", fix="then resume")
    Status(stage="failed", trouble=trouble).write(run / STATUS)
    page = look()
    for part in ("failed", "round 3 failed", "why: 1 of 3 answered", "fix: then resume"):
        assert part in page


@pytest.mark.parametrize("stage", ["submitted", "finished", "stopped"])
def test_other_stages_are_named(look: Look, run: Path, stage: Stage) -> None:
    Status(stage=stage).write(run / STATUS)
    assert f"{run.name}  {stage}" in look()


def test_one_run_alone_can_be_looked_at(
    coordinator: ServerFolder, look: Look, run: Path, study_file: Callable[..., StudyFile]
) -> None:
    other = submit(coordinator, study_file("name=zebra"), sites=None, patience_s=0)
    both, one = look(), look(run.name)
    assert run.name in both
    assert other.name in both
    assert run.name in one
    assert other.name not in one


def test_of_many_runs_the_newest_are_shown(
    coordinator: ServerFolder, look: Look, run: Path, study_file: Callable[..., StudyFile]
) -> None:
    for _ in range(11):
        submit(coordinator, study_file(), sites=None, patience_s=0)
    page = look()
    assert "… 2 older runs" in page


def test_what_sites_and_studies_are_called_is_not_read_as_markup(run: Path, look: Look) -> None:
    Status(stage="gathering", joined=("[red]clinic[/red]",), refused={"[bold]": "hours"}).write(
        run / STATUS
    )
    page = look()
    assert "[red]clinic[/red]" in page
    assert "site [bold] refused" in page


def test_watching_ends_when_the_run_is_over(
    coordinator: ServerFolder, run: Path, control: type[Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[Stage] = ["gathering", "running", "finished"]

    def look() -> ServerStatus:
        Status(stage=stages.pop(0)).write(run / STATUS)
        return status_of(coordinator)

    monkeypatch.setattr("tacit_server.deployment.status_view.time.sleep", lambda _: None)
    page = io.StringIO()
    watch_live(look, run.name, Console(file=page, width=120))
    assert stages == []
    assert "finished" in page.getvalue()


# --- models ----------------------------------------------------------------------------------


def exported(run: Path, said: str) -> None:
    (run / "encoder").mkdir()
    (run / "encoder" / "config.json").write_text(said)


def test_the_encoders_that_runs_have_left_are_listed(coordinator: ServerFolder, run: Path) -> None:
    assert models(coordinator) == []
    made = {"study": "tiny", "rounds": 2, "privacy": "ε = 8"}
    exported(run, json.dumps({"provenance": made}))
    (run / "report.html").touch()
    (found,) = models(coordinator)
    assert (found.run, found.study, found.rounds, found.privacy) == (run.name, "tiny", 2, "ε = 8")
    assert Path(found.folder) == run / "encoder"
    assert found.report == str(run / "report.html")
    (listed,) = json.loads(as_json([found]))
    assert listed["run"] == run.name


@pytest.mark.parametrize("said", ["", "{}", "[]", '{"provenance": {}}', '{"provenance": 3}'])
def test_a_damaged_encoder_is_named(coordinator: ServerFolder, run: Path, said: str) -> None:
    exported(run, said)
    with pytest.raises(CheckpointError, match=run.name):
        models(coordinator)
