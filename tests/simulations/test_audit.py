"""The audit: canaries, what it finds of sound and faulty paths, what it costs, what it says."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from tests.faults.catalogue import FAULTS, SIMCLR, Fault
from tests.faults.site import audits_for_free
from torch import Tensor
from typer.testing import CliRunner

from tacit_client.data import ArraySource
from tacit_client.ledger_file import read_ledger
from tacit_client.pretrain import PrivateStepGradient
from tacit_client.resident import gradient_path
from tacit_common.errors import (
    CheckpointError,
    LedgerError,
    PrivacyConfigError,
    SiteRefusal,
    UsageError,
)
from tacit_common.model import build_model
from tacit_common.objectives.contract import PretrainModel
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import InsecureSeededRandom
from tacit_common.study import LocalPrivacyPlan, SimulationPlan, Study, StudyFile
from tacit_common.training import seeded_generator, trained_parameters
from tacit_simulations.attacks.canaries import (
    CanaryHead,
    CanaryObjective,
    WithCanaries,
    canary_numbers,
    canary_record,
)
from tacit_simulations.attacks.canary_run import CanaryRun
from tacit_simulations.attacks.one_run import right_guesses
from tacit_simulations.audit import AuditPlan, audit, plan_audit
from tacit_simulations.audit_command import audit as audit_command
from tacit_simulations.audit_record import read_audit
from tacit_simulations.simulate import new_folder, read_folder
from tacit_simulations.sites import SimulatedSites

MakeStudy = Callable[..., Study]
MakeFile = Callable[..., StudyFile]

SHAPE = (1, 8, 8)
C = 0.5
DOCS = Path(__file__).parents[2] / "docs" / "audit.md"


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


# --- canaries ----------------------------------------------------------------------------


def test_a_canary_is_told_from_every_record_whose_pixels_are_sound() -> None:
    numbers = [1, 2, 999, 65536]
    batch = torch.stack([canary_record(n, SHAPE) for n in numbers] + [*images(3), -images(1)[0]])
    assert canary_numbers(batch).tolist() == [*numbers, 0, 0, 0, 0]
    strange = torch.tensor([float("nan"), float("inf"), float("-inf"), -(2.0**20)])
    assert canary_numbers(strange.view(4, 1, 1, 1).expand(4, *SHAPE)).tolist() == [0, 0, 0, 0]


def test_canaries_that_joined_stand_behind_the_records_each_a_unit_of_its_own() -> None:
    joined = np.array([True, False, True])
    source = WithCanaries(ArraySource(images(5)), joined, SHAPE)
    assert len(source) == 7
    assert torch.equal(source[4], images(5)[4])
    assert canary_numbers(torch.stack([source[i] for i in range(7)])).tolist() == [0] * 5 + [1, 3]
    assert len({source.unit_of(i) for i in range(7)}) == 7


def with_canaries(study: Study, canaries: int = 6) -> tuple[PretrainModel, CanaryObjective]:
    model, objective = build_model(study, PluginTable())
    wrapped = CanaryObjective(objective, canaries=canaries, gradient_norm=100 * C)
    return PretrainModel(model.encoder, CanaryHead(model.head, canaries)), wrapped


def clipped_sum(study: Study, units: list[Tensor]) -> tuple[Tensor, list[str]]:
    """The sum of a path with canaries, and to which tensor each entry belongs."""
    model, objective = with_canaries(study)
    assert isinstance(study.privacy, LocalPrivacyPlan)
    path = gradient_path(model, objective, study.privacy)
    names = [n for n, p in trained_parameters(model) for _ in range(p.numel())]
    total = path.clipped_sum(
        units, seeded_generator(0), l2_clip_norm=C, augmentations=2, physical_batch=8
    )
    return total, names


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (
            *SIMCLR,
            'privacy={ mode = "local", unit = "subject", records_per_subject = 2, epsilon = 8.0, '
            "delta = 1e-5, l2_clip_norm = 0.5, sampling_rate = 0.25 }",
        ),
    ],
    ids=["record", "subject with contrast inside"],
)
def test_a_canary_is_clipped_to_exactly_the_clip_norm_in_its_own_coordinate_alone(
    make_study: MakeStudy, overrides: tuple[str, ...]
) -> None:
    units = [canary_record(4, SHAPE)[None], canary_record(2, SHAPE)[None]]
    total, names = clipped_sum(make_study(*overrides), units)
    spikes = [place for place, name in enumerate(names) if "spikes" in name]
    expected = torch.zeros_like(total)
    expected[[spikes[4], spikes[2]]] = C
    assert torch.allclose(total, expected, atol=1e-12)


def test_records_beside_canaries_keep_the_gradient_that_the_study_gives_them(
    make_study: MakeStudy,
) -> None:
    study = make_study()
    records = [record[None] for record in images(3)]
    total, names = clipped_sum(study, [*records, canary_record(1, SHAPE)[None]])
    of_study = torch.tensor(["spikes" not in name for name in names])

    model, objective = build_model(study, PluginTable())
    assert isinstance(study.privacy, LocalPrivacyPlan)
    plain = gradient_path(model, objective, study.privacy)
    # The same number of rows draws the same views.
    alone = plain.clipped_sum(
        records, seeded_generator(0), l2_clip_norm=C, augmentations=2, physical_batch=8
    )
    assert torch.allclose(total[of_study], alone, rtol=1e-4, atol=1e-6)
    assert alone.norm() > 0.1 * C


def test_what_has_no_place_for_canaries_is_refused_before_it_is_paid_for(
    study_file: MakeFile,
) -> None:
    logit_dp = 'objective={ kind = "logit_dp", projection_dim = 8 }'
    with pytest.raises(PrivacyConfigError, match="cannot be audited with canaries"):
        plan_audit(study_file(logit_dp, "views={ max_shift = 0.2 }"))
    for canaries in (0, 65537):
        with pytest.raises(PrivacyConfigError, match=f"{canaries} canaries"):
            plan_audit(study_file(), canaries=canaries)


# --- what the audit sees -----------------------------------------------------------------

ROUNDS = ("federation.rounds=10", "encoder.width=8")  # 20 steps of a small model


def measured(study: Study, plan: AuditPlan, fault: Fault | None) -> float:
    """The bound that an audit with seeded coins, samples and noise finds: always the same."""
    model, _ = build_model(study, PluginTable())
    sizes = [p.numel() for _, p in trained_parameters(CanaryHead(model, plan.canaries))]
    joined = InsecureSeededRandom(1, insecure_rng=True).bernoulli(plan.canaries, 0.5)
    sound = InsecureSeededRandom(0, insecure_rng=True)
    torch.manual_seed(0)  # for the fault that draws its noise there
    run = CanaryRun(
        study=study,
        privacy=plan.privacy,
        noise_multiplier=plan.event.noise_multiplier,
        source=ArraySource(images(40)),
        declared_units=300,
        physical_batch=256,
        plugins=PluginTable(),
        random=fault.draws(sound, sizes) if fault else sound,
        device=torch.device("cpu"),
        gradients=fault.path if fault else gradient_path,
        step=fault.step if fault else PrivateStepGradient,
    )
    return plan.bound(right_guesses(run.scores(joined), joined, guesses=plan.guesses))


def row(name: str, caught_by: str, bound: float, claim: float) -> str:
    """A row of the table in docs/audit.md."""
    verdict = "**above the claim**" if bound > claim else "not seen"
    return f"| {name} | `{caught_by}` | {bound:.2f} | {verdict} |"


@pytest.fixture(scope="module")
def rows_of_docs() -> list[str]:
    return [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]


def test_the_audit_of_the_production_path_stays_below_the_claim(
    study_file: MakeFile, rows_of_docs: list[str]
) -> None:
    plan = plan_audit(study_file(*ROUNDS))
    bound = measured(plan.study, plan, None)
    assert bound < plan.privacy.epsilon == 1.0
    assert f"| none: the production path | | {bound:.2f} | not seen |" in rows_of_docs


def marked(fault: Fault) -> object:
    """Microbatches take many small passes: 4 s."""
    slow = [pytest.mark.slow] if fault.name == "microbatch clipping" else []
    return pytest.param(fault, id=fault.name, marks=slow)


@pytest.mark.parametrize("fault", [marked(fault) for fault in FAULTS])
def test_the_docs_say_what_the_audit_sees_of_a_fault(
    study_file: MakeFile, make_study: MakeStudy, rows_of_docs: list[str], fault: Fault
) -> None:
    plan = plan_audit(study_file(*ROUNDS))
    study = make_study(*ROUNDS, *fault.overrides)
    bound = measured(study, plan, fault)
    assert row(fault.name, fault.caught_by, bound, plan.privacy.epsilon) in rows_of_docs


def test_the_faults_that_release_too_much_of_every_unit_are_seen_by_the_audit(
    rows_of_docs: list[str],
) -> None:
    seen = {line.split(" | ")[0][2:] for line in rows_of_docs if "above the claim" in line}
    assert seen >= {
        "noise off",
        "noise / 4",
        "noise every second step",
        "clip off",
        "clip × 10",
        "clipping after averaging",
    }


def test_every_fault_has_one_row_in_the_docs(rows_of_docs: list[str]) -> None:
    names = [line.split(" | ")[0][2:] for line in rows_of_docs]
    for fault in FAULTS:
        assert names.count(fault.name) == 1


# --- the command, its price and its words ------------------------------------------------

TINY = ("federation.rounds=2", "simulation.epsilon_cap=2.5")


def reserves_at_each_look(
    study: StudyFile, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Audit the study; how many reserves were in the ledger whenever a record was read."""
    ledger = SimulatedSites(study, simulation_of(study), folder).ledger_path(0)
    reserves: list[int] = []
    read = ArraySource.__getitem__

    def watched(source: ArraySource, index: int) -> Tensor:
        reserves.append(len(read_ledger(ledger).charges))
        return read(source, index)

    sound = CanaryRun.scores

    def scores(run: CanaryRun, joined: object) -> object:
        monkeypatch.setattr(ArraySource, "__getitem__", watched)
        return sound(run, joined)  # type: ignore[arg-type]

    monkeypatch.setattr(CanaryRun, "scores", scores)
    audit(read_folder(folder), folder, plan_audit(study, canaries=50))
    return reserves


def test_mistake_20_an_audit_is_charged_before_a_record_is_read(
    study_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_file(*TINY)
    folder = new_folder(study, tmp_path / "run")
    assert set(reserves_at_each_look(study, folder, monkeypatch)) == {1}
    spent = read_ledger(SimulatedSites(study, simulation_of(study), folder).ledger_path(0))
    (charge,) = spent.charges
    assert (charge.action, charge.event) == ("audit", plan_audit(study).event)
    assert plan_audit(study).event.steps == 4
    assert charge.key in spent.committed


def test_mistake_20_an_audit_for_free_is_caught(
    study_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tacit_simulations.audit._pay", audits_for_free)
    study = study_file(*TINY)
    folder = new_folder(study, tmp_path / "run")
    with pytest.raises(LedgerError, match="has no reserve"):
        reserves_at_each_look(study, folder, monkeypatch)


def simulation_of(study: StudyFile) -> SimulationPlan:
    assert study.simulation is not None
    return study.simulation


def test_an_audit_that_fails_stays_paid_for(
    study_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(run: CanaryRun, joined: object) -> None:
        raise MemoryError

    monkeypatch.setattr(CanaryRun, "scores", failing)
    study = study_file(*TINY)
    folder = new_folder(study, tmp_path / "run")
    with pytest.raises(MemoryError):
        audit(read_folder(folder), folder, plan_audit(study, canaries=50))
    spent = read_ledger(SimulatedSites(study, simulation_of(study), folder).ledger_path(0))
    assert len(spent.charges) == len(spent.voided) == 1
    assert read_audit(folder) is None


def test_an_audit_that_passes_the_cap_is_refused_and_reads_nothing(
    study_file: MakeFile, tmp_path: Path
) -> None:
    study = study_file("simulation.epsilon_cap=0.5")
    folder = new_folder(study, tmp_path / "run")
    with pytest.raises(SiteRefusal, match="budget"):
        audit(read_folder(folder), folder, plan_audit(study, canaries=50))
    assert read_audit(folder) is None
    spent = read_ledger(SimulatedSites(study, simulation_of(study), folder).ledger_path(0))
    assert spent.charges == ()


def test_mode_none_and_claims_that_are_none_are_refused(
    study_file: MakeFile, no_privacy: str
) -> None:
    with pytest.raises(PrivacyConfigError, match="nothing to audit"):
        plan_audit(study_file(no_privacy))
    with pytest.raises(UsageError, match="cannot be claimed"):
        plan_audit(study_file(), claimed_epsilon=0.0)


def test_no_audit_is_none_and_a_damaged_one_is_an_error(tmp_path: Path) -> None:
    assert read_audit(tmp_path) is None
    (tmp_path / "audit.json").write_text('{"claimed_epsilon": 1}')
    with pytest.raises(CheckpointError, match=r"audit\.json"):
        read_audit(tmp_path)


@pytest.fixture
def command(study_file: MakeFile, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """`command("--json", …)`: the exit code and the output of `tacit audit` on the tiny study."""
    app = typer.Typer()
    app.command()(audit_command)
    (tmp_path / "study.toml").write_text(study_file(*TINY).to_toml())

    def run(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(
            app, [str(tmp_path / "study.toml"), "--out", str(tmp_path / "run"), *options]
        )
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code, done.output

    return run


def test_the_command_prints_the_bound_beside_the_claim_and_writes_it(
    command: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = command("--canaries", "200")
    assert code == 0
    assert re.search(r"claimed +ε ≤ 1 at δ = 1e-05", said)
    assert re.search(r"lower bound +ε ≥ \d\.\d\d with 95% confidence", said)
    assert "never a\nguarantee" in said
    found = read_audit(tmp_path / "run")
    assert found is not None
    assert (found.canaries, found.guesses, found.claimed_epsilon) == (200, 40, 1.0)

    code, said = command("--canaries", "200", "--json")  # again, in the same folder
    assert code == 0
    assert json.loads(said)["path"] == str(tmp_path / "run" / "audit.json")
    ledger = tmp_path / "run" / "sites" / "site-0" / "ledger.db"
    assert len(read_ledger(ledger).charges) == 2  # every audit pays


def test_a_bound_above_the_claim_exits_with_1_and_says_so(
    command: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def telling(run: CanaryRun, joined: np.ndarray) -> np.ndarray:
        return joined.astype(np.float64)

    monkeypatch.setattr(CanaryRun, "scores", telling)
    code, said = command()
    assert code == 1
    assert "200 of 200 guesses right" in said
    assert "ε ≥ 4.17" in said
    assert "nothing that it made may be released" in said


def test_the_folder_of_another_study_is_refused(
    command: Callable[..., tuple[int, str]],
) -> None:
    command("--canaries", "100")
    with pytest.raises(UsageError, match="another study"):
        command("--set", "seed=99")
