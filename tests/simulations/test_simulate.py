"""The main job: from a study to a report, in stages that can be taken up again."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from PIL import Image

from tacit_client.ledger_file import read_ledger
from tacit_common.errors import (
    CheckpointError,
    DataError,
    LedgerError,
    QuorumError,
    StudyError,
    UsageError,
)
from tacit_common.ledger_chain import Charge
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.report import LocalPrivacy, NoPrivacy, Report
from tacit_common.report.signing import parse_signed_report
from tacit_common.study import StudyFile
from tacit_common.study_file import load_study
from tacit_server.run_log import RoundFinished, read_events
from tacit_simulations.simulate import check, new_folder, read_folder, simulate
from tacit_simulations.sites import SimulatedSites, _load

MakeFile = Callable[..., StudyFile]
WARM = "warm_start={ steps = 3, batch_size = 8 }"


def begun(study: StudyFile, folder: Path) -> Path:
    """The folder of a new run of this study."""
    return new_folder(study, folder)


def charges(folder: Path, site: int) -> list[Charge]:
    return list(read_ledger(folder / "sites" / f"site-{site}" / "ledger.db").charges)


def independent_epsilon(charged: list[Charge], delta: float) -> float:
    """ε of a site's reserves by dp-accounting alone."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for charge in charged:
        match charge.event:
            case GaussianRelease(noise_multiplier=sigma):
                accountant.compose(dp_accounting.GaussianDpEvent(sigma))
            case PoissonGaussianSteps(sampling_rate=q, noise_multiplier=sigma, steps=steps):
                step = dp_accounting.PoissonSampledDpEvent(q, dp_accounting.GaussianDpEvent(sigma))
                accountant.compose(step, steps)
            case _:
                raise AssertionError(charge.event)
    return float(accountant.get_epsilon(delta))


# --- a private run, from begin to end ------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """A tiny private run with a warm start and a probe; tests may read it, not change it."""
    study = load_study(Path(__file__).with_name("tiny.toml"))
    folder = begun(study, tmp_path_factory.mktemp("runs") / "tiny")
    return folder, simulate(study, folder).report


def test_the_reported_epsilon_is_that_of_the_ledgers_by_an_independent_account(
    finished: tuple[Path, Report],
) -> None:
    folder, report = finished
    assert isinstance(report.privacy, LocalPrivacy)
    for site in range(2):
        charged = charges(folder, site)
        assert [c.label for c in charged] == [
            "probe 0 before",
            "round 1",
            "round 2",
            "probe 0 after",
        ]
        expected = independent_epsilon(charged, report.privacy.delta)
        assert report.sites[site].epsilon_total == pytest.approx(expected, abs=1e-6)
    spent = report.privacy.epsilon_spent
    assert spent == max(site.epsilon_total or 0 for site in report.sites)
    assert 0.99 * 8.0 < spent <= 8.0


def test_epsilon_after_each_round_rises_to_the_total(finished: tuple[Path, Report]) -> None:
    _, report = finished
    for site in report.sites:
        curve, total = site.epsilon_after_round, site.epsilon_total
        assert curve is not None
        assert total is not None
        assert len(curve) == 2
        assert 0 < curve[0] < curve[1] < total  # the last probe comes after


def test_the_report_on_disk_is_the_report(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    assert parse_signed_report((folder / "report.json").read_text()).report == report
    html = (folder / "report.html").read_text()
    assert f"{report.privacy.mode}" in html
    assert str(folder) not in html  # no path of this machine


def test_baselines_stand_beside_the_result(finished: tuple[Path, Report]) -> None:
    _, report = finished
    assert report.evaluation is not None
    labels = [row.label for row in report.evaluation.rows]
    assert labels == ["raw features", "random encoder", "warm start only", "this encoder"]
    assert [row.role for row in report.evaluation.rows] == ["baseline"] * 3 + ["result"]
    assert len(report.verdicts) >= 3
    assert [probe.when for probe in report.probes] == ["before", "after"]


def test_a_run_in_its_folder_is_whole(finished: tuple[Path, Report]) -> None:
    folder, report = finished
    assert load_study(folder / "study.toml").travelling().digest() == report.study.digest
    events = read_events(folder / "events.jsonl")
    assert events[0].event == "run_started"
    assert events[-1].event == "run_finished"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [0, 1, 2, 2]
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "encoder" / "config.json").is_file()
    assert not list(folder.rglob("*.tmp"))


# --- taken up again ------------------------------------------------------------------------


@pytest.fixture
def run(finished: tuple[Path, Report], tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished[0], tmp_path / "copy"))


def encoder(folder: Path) -> bytes:
    return (folder / "encoder" / "encoder.safetensors").read_bytes()


def ledger_rows(folder: Path) -> list[list[tuple[object, ...]]]:
    rows = []
    for path in sorted(folder.glob("sites/*/ledger.db")):
        database = sqlite3.connect(path)
        rows.append(database.execute("SELECT * FROM entries ORDER BY seq").fetchall())
        database.close()
    return rows


def resume(folder: Path) -> Report:
    return simulate(read_folder(folder), folder).report


def test_a_finished_run_can_be_resumed_and_nothing_is_paid_or_trained_again(
    run: Path, finished: tuple[Path, Report]
) -> None:
    before, weights = ledger_rows(run), encoder(run)
    report = resume(run)
    assert ledger_rows(run) == before
    assert encoder(run) == weights
    assert report.run.resumed == 1
    assert report.privacy == finished[1].privacy
    assert report.evaluation == finished[1].evaluation
    assert report.rounds == finished[1].rounds


def test_a_run_goes_on_from_the_checkpoint_before_with_the_answers_that_were_paid(
    run: Path, finished: tuple[Path, Report]
) -> None:
    """What the error of a damaged checkpoint advises: the sites repeat what they said."""
    before, weights = ledger_rows(run), encoder(run)
    (run / "checkpoints" / "round-000002.ckpt").unlink()
    report = resume(run)
    assert ledger_rows(run) == before
    assert encoder(run) == weights
    assert [r.answered for r in report.rounds] == [r.answered for r in finished[1].rounds]
    assert report.sites == finished[1].sites


@pytest.mark.parametrize("name", ["events.jsonl", "metrics.jsonl", "report.json", "report.html"])
def test_what_follows_from_the_checkpoint_is_written_anew(run: Path, name: str) -> None:
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: len(content) // 2])
    resume(run)
    if name == "events.jsonl":
        again = read_events(run / name)
        assert [event.event for event in again][-2:] == ["run_finished", "run_resumed"]
    else:
        assert len((run / name).read_bytes()) > 0.9 * len(content)


def test_a_damaged_checkpoint_stops_the_run_and_loses_nothing(run: Path) -> None:
    newest = run / "checkpoints" / "round-000002.ckpt"
    newest.write_bytes(newest.read_bytes()[:-7])
    before = {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"round-000002\.ckpt"):
        resume(run)
    assert {p: p.read_bytes() for p in before if "ledger.db-" not in p.name} == {
        p: content for p, content in before.items() if "ledger.db-" not in p.name
    }


def test_another_study_in_the_folder_is_noticed(run: Path) -> None:
    text = (run / "study.toml").read_text()
    (run / "study.toml").write_text(text.replace("epsilon = 8.0", "epsilon = 80.0"))
    with pytest.raises(CheckpointError, match="of another study"):
        resume(run)


def test_another_number_of_sites_in_the_folder_is_noticed(run: Path) -> None:
    text = (run / "study.toml").read_text()
    (run / "study.toml").write_text(text.replace("sites = 2", "sites = 3"))
    with pytest.raises((CheckpointError, UsageError)):
        resume(run)


def test_a_run_can_be_resumed_from_another_folder(
    tmp_path: Path, study_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture_folder(tmp_path / "pictures", 2, 30)
    monkeypatch.chdir(tmp_path)
    study = study_file("simulation.dataset=pictures", "simulation.sites=1", "federation.rounds=1")
    folder = begun(study, tmp_path / "run")
    resume(folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _load.cache_clear()  # as in a new process
    resume(folder)


def test_a_damaged_ledger_stops_the_report_with_its_row(run: Path) -> None:
    path = run / "sites" / "site-1" / "ledger.db"
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("DROP TRIGGER entries_are_never_changed")
    database.execute("UPDATE entries SET payload = replace(payload, '\"steps\":2', '\"steps\":1')")
    database.close()
    with pytest.raises(LedgerError, match="ledger of 'site-1' is damaged at row 4"):
        resume(run)


def test_the_partition_is_on_disk_whole_or_not_at_all(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / "partition.npz"
    path.unlink()

    def killed_half_way(file: object, *shares: object, **more: object) -> None:
        if isinstance(file, str | Path):
            Path(file).write_bytes(b"PK half of an archive")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr("tacit_simulations.sites.np.savez", killed_half_way)
        with pytest.raises(KeyboardInterrupt):
            resume(run)
    assert not path.exists()


def test_a_site_that_fails_is_named_by_a_code_and_says_why_in_a_file(
    tmp_path: Path, study_file: MakeFile
) -> None:
    study = study_file("simulation.sites=2", "federation.rounds=1")
    folder = begun(study, tmp_path / "run")
    (folder / "sites" / "site-0").mkdir(parents=True)
    (folder / "sites" / "site-0" / "outbox").write_text("in the way")
    report = simulate(study, folder).report
    assert [(r.site, r.code.value) for r in report.rounds[0].refused] == [("site-0", "ledger")]
    assert report.rounds[0].answered == ("site-1",)
    assert report.sites[0].releases == 0
    assert report.sites[0].epsilon_total == report.sites[1].epsilon_total  # it did pay
    assert "a reply cannot be stored" in (folder / "sites" / "log.txt").read_text()


# --- budgets that outlive a run ------------------------------------------------------------


def shared(study_file: MakeFile, tmp_path: Path, *overrides: str) -> StudyFile:
    """A study whose sites keep their ledgers from run to run."""
    kept = f"simulation.sites_dir={tmp_path / 'kept'}"
    return study_file("simulation.sites=2", "federation.rounds=1", kept, *overrides)


def test_a_second_study_on_the_same_records_is_refused_when_the_cap_is_spent(
    tmp_path: Path, study_file: MakeFile
) -> None:
    first = shared(study_file, tmp_path)
    simulate(first, begun(first, tmp_path / "one"))
    second = shared(study_file, tmp_path, "seed=99", "privacy.epsilon=1.0")
    with pytest.raises(QuorumError) as raised:
        simulate(second, begun(second, tmp_path / "two"))
    assert "site-0: budget" in raised.value.why
    assert "tacit site budget" in raised.value.fix


def test_two_studies_within_one_cap_add_up_by_the_filter_and_the_report_says_so(
    tmp_path: Path, study_file: MakeFile
) -> None:
    cap, each = "simulation.epsilon_cap=8", "privacy.epsilon=2"
    one = shared(study_file, tmp_path, cap, each)
    before = simulate(one, begun(one, tmp_path / "one")).report.sites[0]
    two = shared(study_file, tmp_path, cap, each, "federation.client_lr=0.2")
    after = simulate(two, begun(two, tmp_path / "two")).report.sites[0]
    assert (before.composition, after.composition) == ("plan", "filter")
    assert before.epsilon_total == before.epsilon_run
    assert after.epsilon_run is not None
    assert after.epsilon_total is not None
    assert after.epsilon_run < after.epsilon_total <= 8
    assert after.epsilon_cap == 8
    assert (before.reserves, after.reserves) == (1, 2)


def test_a_site_whose_ledger_was_rolled_back_takes_no_part_in_what_follows(
    tmp_path: Path, study_file: MakeFile
) -> None:
    study = study_file("simulation.sites=2")
    folder = begun(study, tmp_path / "run")

    def stop(event: object) -> None:
        if isinstance(event, RoundFinished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(study, folder, watchers=[stop])
    SimulatedSites(study, check(study), folder).close()
    database = sqlite3.connect(folder / "sites" / "site-0" / "ledger.db", isolation_level=None)
    database.execute("DROP TRIGGER entries_are_never_deleted")
    database.execute("DELETE FROM entries WHERE kind IN ('RESERVE', 'COMMIT')")
    database.close()
    report = resume(folder)
    assert [refused.site for refused in report.rounds[1].refused] == []
    assert report.rounds[1].asked == ("site-1",)
    assert "rolled back" in (folder / "sites" / "log.txt").read_text()


# --- other studies -------------------------------------------------------------------------


def test_without_privacy_the_report_says_so_in_full(
    tmp_path: Path, study_file: MakeFile, no_privacy: str
) -> None:
    study = study_file(no_privacy, "simulation.sites=2", "federation.rounds=1")
    report = simulate(study, begun(study, tmp_path / "run")).report
    assert isinstance(report.privacy, NoPrivacy)
    assert report.privacy.statement == "no differential privacy"
    assert "no differential privacy" in (tmp_path / "run" / "report.html").read_text().lower()
    assert [site.epsilon_total for site in report.sites] == [None, None]
    assert report.rounds[0].training_loss is not None


def test_data_without_labels_is_pretrained_on_and_not_judged(
    tmp_path: Path, study_file: MakeFile
) -> None:
    study = study_file("simulation.dataset=strokes", "federation.rounds=1")
    report = simulate(study, begun(study, tmp_path / "run")).report
    assert report.evaluation is None
    assert report.run.rounds_done == 1
    assert (tmp_path / "run" / "encoder" / "config.json").is_file()


def picture_folder(folder: Path, classes: int, each: int) -> Path:
    for index in range(classes * each):
        name = folder / f"class-{index % classes}"
        name.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), color=(37 * index) % 256).save(name / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("classes", "each"),
    [(2, 30), (3, 2), (2, 1), (1, 9)],
)
def test_small_data_of_ones_own_runs_to_a_report(
    tmp_path: Path, study_file: MakeFile, classes: int, each: int
) -> None:
    data = picture_folder(tmp_path / "pictures", classes, each)
    study = study_file(f"simulation.dataset={data}", "simulation.sites=1", "federation.rounds=1")
    report = simulate(study, begun(study, tmp_path / "run")).report
    assert report.run.rounds_done == 1


# --- before any work -----------------------------------------------------------------------


def test_a_study_without_a_simulation_cannot_be_simulated(study_file: MakeFile) -> None:
    study = study_file().model_copy(update={"simulation": None})
    with pytest.raises(StudyError, match=r"no \[simulation\]"):
        check(study)


def test_a_new_folder_holds_the_study_and_is_not_given_twice(
    tmp_path: Path, study_file: MakeFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_file()
    folder = new_folder(study, tmp_path / "a" / "run")
    assert read_folder(folder) == study
    with pytest.raises(UsageError, match="is taken"):
        new_folder(study, folder)
    monkeypatch.chdir(tmp_path)
    named = new_folder(study, None)
    assert named.parent == Path("runs")
    assert named.name.startswith("tiny-")
    (tmp_path / "empty").mkdir()
    assert read_folder(new_folder(study, tmp_path / "empty")) == study


def test_data_that_cannot_be_read_is_noticed_before_anything_is_paid(
    tmp_path: Path, study_file: MakeFile
) -> None:
    study = study_file(f"simulation.dataset={tmp_path / 'nowhere'}")
    folder = begun(study, tmp_path / "run")
    with pytest.raises(DataError, match="no data set"):
        simulate(study, folder)
    assert not (folder / "sites").exists()
    assert not (folder / "checkpoints").exists()
