"""Planted faults, and the direct tests that catch them; sound parts pass every one.

A check takes the parts of the production path, of which a test may have replaced one
(tests/faults). Which fault is caught by what, and what the audit sees of it, is in
docs/audit.md.
"""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.faults import accounting, noise
from tests.faults.catalogue import FAULTS, Draws, Fault, sound_draws
from tests.faults.mechanism import RoundingIsFree
from torch import Tensor, nn

from tacit_client.data import ArraySource
from tacit_client.gradients import UnitGradients
from tacit_client.pretrain import PrivateStepGradient
from tacit_client.resident import gradient_path
from tacit_client.units import Units
from tacit_common.encoders.contract import Encoder
from tacit_common.messages import RoundPlan, parameters_sha256
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.privacy.accounting import NeighboringRelation, epsilon
from tacit_common.privacy.events import GaussianRelease
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import flatten_parameters, seeded_generator, trained_parameters
from tacit_simulations.attacks.canary_run import GradientPath

C = 1e-3  # below the norm of every gradient here, so that all are clipped
SIGMA = 0.8
DEVIATIONS = 6.0  # secure draws cannot be seeded: a false alarm once in 5e8 comparisons
RATE = 0.25

MakeStudy = Callable[..., Study]


class ViewsOfContent:
    """An objective whose views of a record depend on it alone, not on its place."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.coupling = objective.coupling

    def build_head(self, encoder: Encoder) -> nn.Module:
        return self._objective.build_head(encoder)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        rows = [
            self._objective.views(record[None], seeded_generator(str(float(record.sum()))))
            for record in batch
        ]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self._objective.loss(model, views)


@dataclass(frozen=True)
class Parts:
    """The parts of a step."""

    study: Study
    path: GradientPath = gradient_path
    draws: Draws = sound_draws
    step: type[PrivateStepGradient] = PrivateStepGradient


@dataclass(frozen=True)
class Step:
    """A step that is put together, and what it is made of."""

    model: PretrainModel
    gradients: UnitGradients
    noise_stddev: float  # of each coordinate of what is released
    fill: Callable[[], float | None]

    def released(self) -> Tensor:
        """The gradient that one more step releases, float64 [P]."""
        self.fill()
        grads = [p.grad for _, p in trained_parameters(self.model)]
        return torch.cat([g.reshape(-1) for g in grads if g is not None]).double()

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [p.numel() for _, p in trained_parameters(self.model)]


def step_of(parts: Parts, records: int = 0, *, gradients: UnitGradients | None = None) -> Step:
    """A step over `records` records; with none, what is released is noise alone."""
    privacy = parts.study.privacy
    assert isinstance(privacy, LocalPrivacyPlan)
    model, objective = build_model(parts.study, PluginTable())
    source = ArraySource(images(max(1, records)))
    start = flatten_parameters(model)
    sizes = [p.numel() for _, p in trained_parameters(model)]
    random = parts.draws(SecureRandom(), sizes)
    path = gradients or parts.path(model, objective, privacy)
    mechanism = LatticeGaussian(
        l2_clip_norm=C, dimension=len(start), noise_multiplier=SIGMA, source=random
    )
    everybody = Units.of_records(source)
    nobody = replace(everybody, _order=everybody._order[:0], _ends=everybody._ends[:0])
    step = parts.step(
        path,
        model,
        source,
        everybody if records else nobody,
        RoundPlan(
            run="run",
            round=1,
            study=parts.study,
            noise_multiplier=SIGMA,
            parameters_sha256=parameters_sha256(start),
        ),
        privacy,
        mechanism,
        random,
        declared_units=40,
        physical_batch=64,
    )
    return Step(model, path, mechanism.noise_stddev / (40 * privacy.sampling_rate), step.fill)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def clipped_sum(gradients: UnitGradients, batch: Tensor) -> Tensor:
    return gradients.clipped_sum(
        [record[None] for record in batch],
        torch.Generator().manual_seed(0),
        l2_clip_norm=C,
        augmentations=1,
        physical_batch=64,
    )


def path_of(parts: Parts) -> UnitGradients:
    model, objective = build_model(parts.study, PluginTable())
    assert isinstance(parts.study.privacy, LocalPrivacyPlan)
    return parts.path(model, ViewsOfContent(objective), parts.study.privacy)


def correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """In standard errors: about N(0, 1) for independent draws."""
    return float(np.corrcoef(left, right)[0, 1]) * math.sqrt(len(left))


# --- the checks --------------------------------------------------------------------------


class FaultFound(AssertionError):  # noqa: N818 - a finding, not a mishap
    """A check found a fault."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise FaultFound(what)


def noise_has_the_stated_deviation(parts: Parts) -> None:
    """Every one of several steps is noised, with the standard deviation that is accounted."""
    step = step_of(parts)
    for _ in range(4):
        released = step.released()
        ratio = float(released.var()) / step.noise_stddev**2
        slack = DEVIATIONS * math.sqrt(2 / len(released))
        require(abs(ratio - 1) < slack, f"variance is {ratio:.3g} of what is stated")


def one_unit_is_bounded(parts: Parts) -> None:
    """D and D′ differ by one unit: the sums differ by at most C, at B = 1 and at B = 64."""
    gradients = path_of(parts)
    for size in (1, 64):
        batch = images(size)
        batch[-1] *= 1e3  # an outlier, as an attacker would be
        moved = clipped_sum(gradients, batch) - clipped_sum(gradients, batch[:-1])
        influence = float(moved.norm()) / C
        require(influence <= 1 + 1e-9, f"one unit moves a sum by {influence:.3g} C at B = {size}")
        require(influence > 0.99, "the bound was not reached, so the check shows nothing")


def a_record_that_is_not_finite_adds_nothing(parts: Parts) -> None:
    """A NaN record among others leaves a finite sum, that of the others."""
    gradients = path_of(parts)
    batch = images(8)
    expected = clipped_sum(gradients, batch[:-1])
    batch[-1] = math.nan
    total = clipped_sum(gradients, batch)
    require(bool(total.isfinite().all()), "one NaN record makes the sum NaN")
    require(float((total - expected).norm()) <= 1e-5 * C, "a NaN record adds something")


class Counting:
    """A gradient path that notes how many units joined each step."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.joined: list[int] = []

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        return l2_clip_norm

    def clipped_sum(
        self,
        units: Iterable[Tensor],
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,
    ) -> Tensor:
        self.joined.append(sum(1 for _ in units))
        return torch.zeros(self.size, dtype=torch.float64)


def batch_sizes_are_those_of_poisson_sampling(parts: Parts) -> None:
    """Over many steps they have mean Nq and variance Nq(1 − q)."""
    units, trials = 100, 300
    counting = Counting(sum(step_of(parts).sizes))
    step = step_of(parts, units, gradients=counting)
    for _ in range(trials):
        step.fill()
    sizes = np.array(counting.joined)
    variance = units * RATE * (1 - RATE)
    require(
        abs(sizes.mean() - units * RATE) < DEVIATIONS * math.sqrt(variance / trials),
        "batches have another mean size",
    )
    require(
        abs(sizes.var(ddof=1) / variance - 1) < DEVIATIONS * math.sqrt(2 / trials),
        f"batch sizes vary by {sizes.var(ddof=1):.3g}, Poisson samples by {variance:.3g}",
    )


def no_seed_repeats_the_noise(parts: Parts) -> None:
    """The same seeds twice, and two noises that have nothing in common."""
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        drawn.append(step_of(parts).released().numpy())
    require(abs(correlation(*drawn)) < DEVIATIONS, "the seed of training repeats the noise")


def tensors_do_not_share_noise(parts: Parts) -> None:
    """The noise of any two tensors is uncorrelated over the entries that they both have."""
    step = step_of(parts)
    tensors = torch.split(step.released(), step.sizes)
    long = [tensor.numpy() for tensor in tensors if len(tensor) >= 128]
    for left, right in combinations(long, 2):
        n = min(len(left), len(right))
        require(abs(correlation(left[:n], right[:n])) < DEVIATIONS, "two tensors share noise")


def a_forked_worker_draws_its_own_noise(parts: Parts) -> None:
    """A step in a forked child and the same step in its parent are uncorrelated."""
    step = step_of(parts)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, step.released().numpy()[:4000].tobytes())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = np.frombuffer(pipe.read(), dtype=np.float64)
    require(os.waitpid(child, 0)[1] == 0, "the child failed")
    ours = step.released().numpy()[: len(theirs)]
    require(abs(correlation(ours, theirs)) < DEVIATIONS, "a child repeats its parent's noise")


class Fixed(noise.FaultyRandom):
    """The same noise each time, so that two releases differ by what is under it alone."""

    def gaussian(self, n: int) -> NDArray[np.float64]:
        return np.linspace(-2, 2, n)

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        return np.zeros(n, dtype=np.bool_)


def one_record_more_changes_no_public_constant(parts: Parts) -> None:
    """N and N + 1 records, none of them drawn, give the same bytes."""
    fixed = replace(parts, draws=lambda sound, sizes: Fixed(sound))
    fewer, more = (step_of(fixed, records).released() for records in (40, 41))
    require(torch.equal(fewer, more), "what is released follows from the number of records")


CHECKS: dict[str, Callable[[Parts], None]] = {
    check.__name__: check
    for check in (
        noise_has_the_stated_deviation,
        one_unit_is_bounded,
        a_record_that_is_not_finite_adds_nothing,
        batch_sizes_are_those_of_poisson_sampling,
        no_seed_repeats_the_noise,
        tensors_do_not_share_noise,
        a_forked_worker_draws_its_own_noise,
        one_record_more_changes_no_public_constant,
    )
}


# --- sound parts pass, faults do not -------------------------------------------------------

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


STUDY = (f"privacy.l2_clip_norm={C}", f"privacy.sampling_rate={RATE}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_production_path_passes(make_study: MakeStudy, check: Callable[[Parts], None]) -> None:
    check(Parts(make_study(*STUDY)))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_caught(make_study: MakeStudy, fault: Fault) -> None:
    study = make_study(*STUDY, *fault.overrides)
    with pytest.raises(FaultFound, match=fault.says):
        CHECKS[fault.caught_by](Parts(study, fault.path, fault.draws, fault.step))


def test_mistake_7_a_wrong_adjacency_misses_the_golden_figure() -> None:
    golden = 9.997  # PRIVACY.md 5: one Gaussian release, σ = 1, δ = 1e-5, replace-one
    ours = epsilon(
        [GaussianRelease(noise_multiplier=1.0)],
        1e-5,
        neighboring_relation=NeighboringRelation.REPLACE_ONE,
    )
    assert ours == pytest.approx(golden, rel=1e-2)
    fault = accounting.renyi_that_ignores_the_adjacency(1.0, 1e-5)
    assert fault == pytest.approx(4.73, rel=1e-2)
    assert fault != pytest.approx(golden, rel=1e-2)


def rounding_stays_within_the_sensitivity(kind: type[LatticeGaussian]) -> None:
    """A unit of norm C that stands just below a tie in every coordinate but one."""
    d = 400
    mechanism = kind(
        l2_clip_norm=C, dimension=d, noise_multiplier=1.0, source=Fixed(SecureRandom())
    )
    step = mechanism.lattice_step
    total = torch.full((d,), 0.49 * step, dtype=torch.float64)
    unit = torch.full((d,), 0.02 * step, dtype=torch.float64)
    unit[0] = C * (1 - 1e-6)
    require(float(unit.norm()) <= C, "the unit is larger than a clipped one")
    moved = mechanism.apply(total + unit) - mechanism.apply(total)
    require(float(moved.norm()) <= mechanism.l2_sensitivity, "rounding moves more than is noised")


def test_mistake_17_rounding_at_ties_is_within_the_sensitivity() -> None:
    rounding_stays_within_the_sensitivity(LatticeGaussian)


def test_mistake_17_a_sensitivity_without_rounding_is_caught() -> None:
    with pytest.raises(FaultFound, match="rounding moves more"):
        rounding_stays_within_the_sensitivity(RoundingIsFree)
