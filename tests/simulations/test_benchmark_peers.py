"""The comparison with peers: Tacit does the same work, and what is said of it is measured.

The peers themselves run in an environment of their own, by `make bench-peers`.
"""

import re
import tomllib
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from tacit_common.errors import TacitError
from tacit_simulations.benchmarks.measure import Samples, Track
from tacit_simulations.benchmarks.peers import compare, contestants, render, tacit_engine
from tacit_simulations.benchmarks.peers.compare import OPACUS, PLAIN, TACIT, Match, Plan, Target
from tacit_simulations.benchmarks.peers.contestants import MEMORY, Contestant
from tacit_simulations.benchmarks.peers.task import Work, read_dealt
from tacit_simulations.benchmarks.record import Figure, Record, new_record

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "simulations/tacit_simulations/benchmarks/peers/requirements.txt"

TINY = Work("tiny", 2, 8, 16, 1.0, 2, 1)
TINY_PRIVATE = Work("tiny with DP", 2, 8, 16, 0.5, 2, 1, epsilon=8.0)
TINY_PLAN = Plan(
    (
        Match(TINY, (PLAIN, TACIT), (Target(TACIT, PLAIN, 1.1),)),
        Match(TINY_PRIVATE, (OPACUS, compare._private(TACIT)), (Target(TACIT, OPACUS, 1e9),)),
    )
)


def track() -> Track:
    return Track("peers", Console(file=StringIO()))


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[Figure]:
    """All of Tacit and the plain loops, in this very environment."""
    import sys

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("peers"))
        return compare.measure(TINY_PLAN, track(), Path(sys.executable))


@pytest.mark.slow
def test_tacit_and_the_plain_loops_end_alike(figures: list[Figure]) -> None:
    apart = {f.condition[:8]: f for f in figures if f.name.endswith(compare.APART)}
    assert apart["tiny: 2 "].value < 1e-5
    assert apart["tiny wit"].value == pytest.approx(1, abs=compare.NOISE)


@pytest.mark.slow
def test_the_tables_say_what_was_measured(figures: list[Figure]) -> None:
    record = new_record("peers", "test", figures, load_before=0.0)
    text = render.markdown(Record.model_validate_json(record.model_dump_json()))
    for title in (PLAIN.title, TACIT.title, OPACUS.title):
        assert f"| {title} |" in text
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3  # two works, and who does what; ratios stand with all targets
    compared = [figure for figure in record.figures if figure.target is not None]
    assert [figure.name for figure in compared] == [
        f"round of {TACIT.title}, over that of {other.title}" for other in (PLAIN, OPACUS)
    ]
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def given(samples: dict[str, list[float]]) -> Samples:
    return {"round": [1.0], "first round": [1.0], "start": [1.0], MEMORY: [1.0], **samples}


@pytest.mark.parametrize("fault", ["a step too few", "half the noise", "nothing learned"])
@pytest.mark.parametrize("work", [TINY, TINY_PRIVATE], ids=lambda work: work.name)
def test_other_work_is_told_from_the_same(
    work: Work, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A contestant that does less would be faster, so its figures are refused."""
    monkeypatch.chdir(tmp_path)
    wrong = Contestant("a wrong one", "wrong", end="private" if work.epsilon else "same")

    def run(contestant: Contestant, folder: Path, python: Path) -> Samples:
        dealt = read_dealt(str(folder))
        random = np.random.default_rng(len(contestant.key))
        step = np.full_like(dealt.start, 1e-3)
        noise = random.normal(size=len(dealt.start)).astype(np.float32)
        if work.epsilon is not None:
            norm = compare._noise_norm(dealt, contestant) / np.sqrt(len(dealt.start))
            noise *= norm
        else:
            noise *= 0
        if contestant is wrong and fault == "a step too few":
            step, noise = step / 2, noise / np.sqrt(2, dtype=np.float32)
        if contestant is wrong and fault == "half the noise":
            noise, step = noise / 2, step if work.epsilon else step * 1.01
        if contestant is wrong and fault == "nothing learned":
            step, noise = step * 0, noise * 0
        dealt.finish(contestant.key, dealt.start + step + noise)
        return given({})

    monkeypatch.setattr(compare, "run", run)
    reference = PLAIN if work.epsilon is None else OPACUS
    with pytest.raises(TacitError, match="did not do the same work"):
        compare.measure(Plan((Match(work, (reference, wrong)),)), track(), Path("python"))


def test_a_contestant_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    nobody = Contestant("nobody", "no_such_module")
    with pytest.raises(TacitError, match="nobody failed") as caught:
        contestants.run(nobody, tmp_path, Path(sys.executable))
    assert "no_such_module" in caught.value.why


def test_who_is_in_a_target_is_measured_more_often() -> None:
    match = Match(TINY, (PLAIN, OPACUS, TACIT), (Target(TACIT, PLAIN, 1.1),), repetitions=3)
    assert match.in_turn(0) == [PLAIN, OPACUS, TACIT]
    assert match.in_turn(1) == [TACIT, PLAIN]  # the other way about
    assert match.in_turn(2) == [PLAIN, TACIT]


def test_every_target_of_the_full_plan_is_on_contestants_of_its_match() -> None:
    for match in (*compare.FULL.matches, *compare.QUICK.matches):
        keys = {contestant.key for contestant in match.contestants}
        assert len(keys) == len(match.contestants)
        for target in match.targets:
            assert {target.tacit.key, target.of.key} <= keys
        assert match.work.epochs >= 1


def test_the_study_asks_for_the_workers(tmp_path: Path) -> None:
    study = tacit_engine.study_of(TINY, tmp_path, workers=2)
    assert study.simulation is not None
    assert study.simulation.workers == 2


def test_the_peers_are_none_of_tacits_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for needs in project["optional-dependencies"].values() for need in needs]
    ours = [*project["dependencies"], *extras]
    names = {re.split(r"[^a-z-]", need.lower())[0] for need in ours}
    assert "pfl" not in names
    wanted = REQUIREMENTS.read_text(encoding="utf-8")
    torch = next(need for need in ours if need.startswith("torch=="))
    assert torch in wanted  # the same torch for all
    assert "pfl[pytorch]" in wanted
    assert ".venv-peers/" in (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert "PEERS := .venv-peers" in (ROOT / "Makefile").read_text(encoding="utf-8")
