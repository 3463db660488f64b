"""Bad input: one error that says what, why and what to do, an exit code, and nothing lost."""

import fcntl
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tacit_common.architecture import encoder_sha256
from tacit_common.study import StudyFile
from tacit_common.study_file import load_study

USAGE, FAILURE, INTERRUPTED = 2, 1, 130


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen, and its exit code."""

    code: int | str | None
    out: str
    err: str


Tacit = Callable[..., Outcome]


@pytest.fixture
def tacit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Tacit:
    """`tacit("simulate", …)`: the entry point of the command, in this process."""
    monkeypatch.setenv("TACIT_DEBUG", "")  # --debug sets it, for good
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        from tacit_simulations.cli import main

        monkeypatch.setattr(sys, "argv", ["tacit", *arguments])
        with pytest.raises(SystemExit) as done:
            main()
        out, err = capfd.readouterr()
        return Outcome(done.value.code, out, err)

    return run


def fingerprint(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its content."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def world(tmp_path: Path, study_file: Callable[..., StudyFile], no_privacy: str) -> Path:
    """A folder of studies, data and runs, of which some are not as they should be."""
    study = study_file("federation.rounds=1")
    text = study.to_toml()
    files = {
        "study.toml": text.encode(),
        "typo.toml": text.replace("local_steps", "lokal_steps").encode(),
        "two.toml": text.replace("rounds = 1", "rounds = 0").replace("seed", "sead").encode(),
        "nottoml.toml": b"[privacy\nmode = local",
        "binary.toml": b"\xff\xfe\x00name",
        "nosimulation.toml": text.partition("[simulation]")[0].encode(),
        "taken/notes.txt": b"a year of work",
        "file": b"in the way",
        "run/study.toml": text.encode(),
        "run/checkpoints/round-000000.ckpt": b'{"format":3}\nnot tensors',
        "other/study.toml": text.encode(),
        "encoder/config.json": b"{",
        "encoder/encoder.safetensors": b"",
        "data.xyz": b"?",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for index in range(12):
        folder = tmp_path / "images" / f"class-{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "images" / "class-0" / "patient-4711.png").write_bytes(b"not a picture")
    return tmp_path


@dataclass(frozen=True)
class Case:
    """A command line, in which {w} is the world, and what it must say."""

    name: str
    arguments: str
    code: int
    says: tuple[str, ...]


def simulate(*overrides: str) -> str:
    """The tiny study with these fields changed; '|' stands between the words of a command."""
    changes = "".join(f"|--set|{override}" for override in overrides)
    return f"simulate|{{w}}/study.toml|--plain|--out|{{w}}/new{changes}"


PLUGIN = "encoder={ kind = 'plugin', name = 'mine' }"
CASES = [
    Case("a typo in a field of a file", "simulate|{w}/typo.toml|--out|{w}/new", USAGE,
         ("federation.lokal_steps", "did you mean 'local_steps'", "study schema")),
    Case("several wrong fields", "simulate|{w}/two.toml|--out|{w}/new", USAGE,
         ("wrong fields", "'sead' is not a field; did you mean 'seed'", "federation.rounds")),
    Case("a typo in --set", simulate("privacy.epsilom=3"), USAGE,
         ("privacy.epsilom", "did you mean 'epsilon'")),
    Case("a typo in a recipe", "simulate|digit|--out|{w}/new", USAGE,
         ("no recipe 'digit'", "did you mean 'digits'", "tacit recipes")),
    Case("no such recipe", "simulate|chest-x-rays|--out|{w}/new", USAGE,
         ("no recipe 'chest-x-rays'", "digits")),
    Case("a missing file", "simulate|{w}/nowhere.toml|--out|{w}/new", USAGE,
         ("nowhere.toml", "No such file")),
    Case("a folder for a file", "simulate|{w}/images/|--out|{w}/new", USAGE,
         ("cannot read study", "Is a directory")),
    Case("not TOML", "simulate|{w}/nottoml.toml|--out|{w}/new", USAGE,
         ("is not valid TOML", "line 1")),
    Case("not text", "simulate|{w}/binary.toml|--out|{w}/new", USAGE,
         ("cannot read study", "not UTF-8")),
    Case("a wrong type", simulate("federation.rounds=many"), USAGE,
         ("'federation.rounds'", "integer")),
    Case("out of range", simulate("privacy.sampling_rate=2"), USAGE,
         ("'privacy.sampling_rate'", "less than or equal to 1")),
    Case("no default for ε", simulate("privacy.epsilon="), USAGE,
         ("'privacy.epsilon' is missing", "no default")),
    Case("an unknown mode", simulate("privacy.mode=federated"), USAGE,
         ("'privacy' is 'federated'", "'local', 'none'")),
    Case("fields that exclude each other", simulate("encoder.heads=3"), USAGE,
         ("heads 3 must divide width 16",)),
    Case("a probe without a price", simulate("probes=[{ kind = 'ridge', classes = 10 }]"), USAGE,
         ("probe 'ridge' needs epsilon",)),
    Case("a --set without a value", simulate("privacy"), USAGE,
         ("is not an assignment", "section.key=value")),
    Case("a --set through a value", simulate("seed.more=1"), USAGE,
         ("goes through a plain value",)),
    Case("a --set past a list", simulate("probes.3.epsilon=1"), USAGE,
         ("addresses no item of a list",)),
    Case("a coupled objective under DP",
         simulate("objective={ kind = 'simclr' }", "views={ flip = true }"), USAGE,
         ("objective 'simclr' couples the examples of a batch",
          "record-level DP has no per-example gradient to clip", "'masked'")),
    Case("views that change nothing", simulate("objective={ kind = 'bank_contrast' }"), USAGE,
         ("has nothing to learn from", "views.max_shift")),
    Case("an ε that no noise can meet", simulate("privacy.epsilon=1e-9"), USAGE,
         ("ε = 1e-09", "cannot be met", "raise privacy.epsilon")),
    Case("probes that cost everything",
         simulate("probes=[{ kind = 'ridge', classes = 10, epsilon = 8.0 }]"), USAGE,
         ("the probes alone cost", "leave nothing for training")),
    Case("no simulation", "simulate|{w}/nosimulation.toml|--out|{w}/new", USAGE,
         ("has no [simulation]", "dataset, sites and declared_units")),
    Case("a plug-in that is not configured", simulate(PLUGIN), USAGE,
         ("encoder plug-in 'mine' is not configured here", "[plugins]")),
    Case("a plug-in without an attribute", simulate("plugins.mine=json", PLUGIN), USAGE,
         ("has no attribute", "module:attribute")),
    Case("a plug-in that is not installed",
         simulate("plugins.mine=no_such_module_here:Net", PLUGIN), USAGE,
         ("cannot be imported", "no_such_module_here")),
    Case("a plug-in that is not there", simulate("plugins.mine=json:Net", PLUGIN), USAGE,
         ("cannot be found", "has no attribute 'Net'")),
    Case("a plug-in that is no encoder", simulate("plugins.mine=json:JSONDecoder", PLUGIN), USAGE,
         ("'mine' is not a Encoder", "embed_dim")),
    Case("an --out with something in it", "simulate|{w}/study.toml|--out|{w}/taken", USAGE,
         ("taken' is taken", "--resume")),
    Case("an --out that is a file", "simulate|{w}/study.toml|--out|{w}/file", USAGE,
         ("file' is taken",)),
    Case("an --out below a file", "simulate|{w}/study.toml|--out|{w}/file/run", USAGE,
         ("cannot write to", "can be written")),
    Case("--resume of what is no run", "simulate|--resume|{w}/taken", USAGE,
         ("is not the folder of a run", "study.toml")),
    Case("--resume of nothing", "simulate|--resume|{w}/nowhere", USAGE,
         ("is not the folder of a run",)),
    Case("--resume with --set", "simulate|--resume|{w}/run|--set|seed=1", USAGE,
         ("a resumed run cannot change",)),
    Case("--resume with --out", "simulate|--resume|{w}/run|--out|{w}/new", USAGE,
         ("a resumed run cannot change",)),
    Case("--resume of a damaged checkpoint", "simulate|--resume|{w}/run", FAILURE,
         ("checkpoint 'round-000000.ckpt' is damaged", "start anew")),
    Case("--ray-address without Ray", simulate() + "|--ray-address|127.0.0.1:6379", USAGE,
         ("--ray-address has no meaning", "--engine ray")),
    Case("an unknown data set", simulate("simulation.dataset=mnist"), USAGE,
         ("no data set 'mnist'", "simulation.dataset")),
    Case("data of an unknown kind", simulate("simulation.dataset={w}/data.xyz"), USAGE,
         ("data.xyz",)),
    Case("more sites than records", simulate("simulation.sites=5000"), USAGE,
         ("5000 sites cannot share 1437 records", "simulation.sites")),
    Case("embed without an encoder", "embed|{w}/nowhere|{w}/images", FAILURE,
         ("config.json", "No such file")),
    Case("embed with a damaged encoder", "embed|{w}/encoder|{w}/images", FAILURE,
         ("encoder", "config.json is not JSON")),
    Case("embed with half a plug-in", "embed|{w}/encoder|{w}/images|--plugin|mine", USAGE,
         ("is not an assignment", "name=module:attribute")),
    Case("study show of nothing", "study|show|{w}/nowhere.toml", USAGE, ("No such file",)),
    Case("study check of a typo", "study|check|{w}/typo.toml", USAGE, ("local_steps",)),
]  # fmt: skip


def words(arguments: str, world: Path) -> list[str]:
    return [word.replace("{w}", str(world)) for word in arguments.split("|")]


def assert_one_error(outcome: Outcome, code: int, says: tuple[str, ...]) -> None:
    lines = outcome.err.splitlines()
    assert outcome.code == code, outcome.err
    assert [line for line in lines if line.startswith("error: ")] == [lines[0]]
    assert sum(line.startswith("  why: ") for line in lines) == 1
    assert sum(line.startswith("  fix: ") for line in lines) == 1
    assert all(line.startswith(("error: ", "  why: ", "  fix: ", "       ")) for line in lines)
    assert all(line.split(": ", 1)[-1].strip() for line in lines)
    assert "Traceback" not in outcome.err + outcome.out
    assert "unexpectedly" not in outcome.err
    for phrase in says:
        assert phrase in outcome.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_gives_one_error_and_leaves_what_is_there(
    case: Case, world: Path, tacit: Tacit
) -> None:
    before = fingerprint(world)
    outcome = tacit(*words(case.arguments, world))
    assert_one_error(outcome, case.code, case.says)
    after = fingerprint(world)
    assert {name: after.get(name) for name in before} == before
    if case.code == USAGE and "dataset" not in case.arguments and "sites" not in case.arguments:
        assert after == before  # what can be known at once leaves nothing at all


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("simulate|{w}/typo.toml|--out|{w}/new", USAGE, "did you mean 'local_steps'"),
        ("simulate|--resume|{w}/run", FAILURE, "is damaged"),
    ],
)
def test_debug_shows_a_traceback_before_the_same_error(
    world: Path, tacit: Tacit, arguments: str, code: int, says: str
) -> None:
    outcome = tacit("--debug", *words(arguments, world))
    assert outcome.code == code
    trace, _, error = outcome.err.partition("\nerror: ")
    assert trace.startswith("Traceback (most recent call last)")
    assert says in error
    assert "  fix: " in error


def test_debug_may_stand_at_the_end_as_the_error_invites_to_write_it(
    world: Path, tacit: Tacit
) -> None:
    outcome = tacit("simulate", str(world / "typo.toml"), "--debug")
    assert outcome.err.startswith("Traceback (most recent call last)")


def test_a_damaged_record_is_left_out_and_its_text_is_not_said(world: Path, tacit: Tacit) -> None:
    outcome = tacit(*words(simulate("simulation.dataset={w}/images"), world))
    assert outcome.code == 0
    assert "not a picture" not in outcome.out + outcome.err


def test_a_failure_of_our_own_is_one_error_too(
    world: Path, tacit: Tacit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("patient-4711")

    monkeypatch.setattr("tacit_simulations.simulate.calibrate", broken)
    outcome = tacit(*words(simulate(), world))
    assert outcome.code == FAILURE
    assert outcome.err.splitlines() == [
        "error: Tacit failed unexpectedly (ZeroDivisionError)",
        "  why: this is a fault in Tacit, not in your input",
        "  fix: run again with --debug and report what it prints",
    ]


@pytest.mark.parametrize(
    "arguments", ["simulate --plian", "simulate --engine sparc", "simulte", "study show a b"]
)
def test_a_wrong_command_line_is_a_usage_error_without_a_traceback(
    tacit: Tacit, arguments: str
) -> None:
    outcome = tacit(*arguments.split())
    assert outcome.code == USAGE
    assert outcome.err.count("Error: ") == 1
    assert "Traceback" not in outcome.err


def test_resume_with_another_study_is_refused(world: Path, tacit: Tacit) -> None:
    outcome = tacit("simulate", str(world / "study.toml"), "--resume", str(world / "other"))
    assert_one_error(outcome, USAGE, ("a resumed run cannot change",))


def test_a_probe_of_data_without_labels_is_refused_before_any_work(
    world: Path, tacit: Tacit, with_probe: str
) -> None:
    outcome = tacit(*words(simulate("simulation.dataset=strokes", with_probe), world))
    assert_one_error(outcome, USAGE, ("labels",))


def test_an_interruption_has_the_exit_code_of_one(
    world: Path, tacit: Tacit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tacit_simulations.simulate.simulate", interrupted)
    outcome = tacit(*words(simulate(), world))
    assert f"--resume {world}/new" in outcome.err
    assert outcome.code == INTERRUPTED


def test_a_run_that_another_process_works_on_is_left_alone(world: Path, tacit: Tacit) -> None:
    with (world / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = fingerprint(world)
        outcome = tacit("simulate", "--resume", str(world / "run"))
    assert_one_error(outcome, USAGE, ("is in use", "another process"))
    assert fingerprint(world) == before


# --- what works --------------------------------------------------------------------------


def test_recipes_are_listed_and_shown_as_studies_that_load(tacit: Tacit, tmp_path: Path) -> None:
    listed = tacit("recipes")
    assert listed.code == 0
    for line in listed.out.splitlines():
        name, summary = line.split(maxsplit=1)
        assert summary.endswith(".")
        shown = tacit("study", "show", name, "--set", "seed=77")
        (tmp_path / "shown.toml").write_text(shown.out)
        study = load_study(tmp_path / "shown.toml")
        assert (study.name, study.seed) == (name, 77)


def test_a_sound_study_is_said_to_be_and_what_it_costs(world: Path, tacit: Tacit) -> None:
    outcome = tacit("study", "check", str(world / "study.toml"))
    assert outcome.code == 0
    assert "tiny: sound; ε 7.9" in outcome.out
    assert "of 8 at δ 1e-05" in outcome.out
    plain = tacit("study", "check", str(world / "study.toml"), "--set", "privacy.mode=none")
    sound, holdings, encoder = plain.out.splitlines()
    assert sound == "tiny: sound; no differential privacy"
    assert holdings == "3 sites hold 479 records each, 300 are declared"
    architecture = encoder_sha256(load_study(world / "study.toml").encoder)
    assert encoder == f"encoder {architecture}, as a site's policy may list it"


def test_the_schema_names_every_section(tacit: Tacit) -> None:
    text = tacit("study", "schema").out
    assert all(name in text for name in ("l2_clip_norm", "sampling_rate", "declared_units"))
    schema = json.loads(tacit("study", "schema", "--json").out)
    assert "LocalPrivacyPlan" in schema["$defs"]


def test_help_and_version(tacit: Tacit) -> None:
    assert tacit("--version").out.startswith("tacit 0.")
    shown = tacit("simulate", "--help")
    assert shown.code == 0
    assert all(option in shown.out for option in ("--set", "--out", "--resume", "--engine"))
