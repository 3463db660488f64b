"""The benchmark of clipping compares like with like, and works at its smallest."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from tacit_simulations.benchmarks import Record, clipping
from tacit_simulations.benchmarks import __main__ as command
from tacit_simulations.benchmarks.clipping_paths import PATHS


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def summed(path: str) -> torch.Tensor:
    case = clipping.case_of("digits", 6)
    pieces = PATHS[path](*case)(case.views)
    return torch.cat([piece.detach().double().flatten() for piece in pieces])


def test_all_private_paths_form_the_same_sum() -> None:
    sums = {path: summed(path) for path in PATHS if path != "plain"}
    reference = sums["per-unit"]
    assert reference.norm() > 0.1
    for path, found in sums.items():
        # Opacus adds 1e-6 to a norm before it divides.
        tolerance = 1e-5 if path.startswith("Opacus") else 1e-6
        assert float((found - reference).norm()) <= tolerance * float(reference.norm()), path


@pytest.mark.slow
def test_the_benchmark_runs_at_its_smallest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smallest = partial(clipping.measure, clipping.Plan(("digits",), (4,), 1))
    monkeypatch.setitem(command.BENCHMARKS, "clipping", (smallest, smallest))
    command.benchmark(["clipping"], out=tmp_path)
    record = Record.model_validate_json((tmp_path / "clipping.json").read_text())
    timed = {figure.name for figure in record.figures if figure.name.endswith(": time")}
    assert {f"{path}: time" for path in PATHS} <= timed
    targets = {figure.name for figure in record.figures if figure.target is not None}
    assert "book-keeping over plain: time" in targets
    assert "book-keeping over Opacus ghost clipping: time" in targets
