"""Every planted fault of the gradient path: what it replaces, and which check catches it.

The checks are those of tests/simulations/test_planted_faults.py; what the audit measures of
each fault stands in docs/audit.md.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import clipping, noise, steps

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.gradients import UnitGradients
from tacit_client.pretrain import PrivateStepGradient
from tacit_client.resident import gradient_path
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.privacy.noise import RandomSource
from tacit_common.study import LocalPrivacyPlan
from tacit_simulations.attacks.canary_run import GradientPath

Draws = Callable[[RandomSource, list[int]], RandomSource]
"""A source of randomness from a sound one, for a model whose tensors have these sizes."""

SIMCLR = (
    'objective={ kind = "simclr", projection_dim = 8 }',
    "views={ max_shift = 0.2, noise_stddev = 0.1 }",
)


def sound_draws(sound: RandomSource, sizes: list[int]) -> RandomSource:
    return sound


def by_row(model: PretrainModel, objective: Objective, privacy: LocalPrivacyPlan) -> UnitGradients:
    """A loss that couples the records of a batch, taken for one that does not.

    The path that an objective gets if nobody asks what it couples.
    """
    return PerUnitGradients(model, objective)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """The parts that a fault replaces; all others are those of production."""

    name: str
    caught_by: str
    says: str  # part of what the check finds
    draws: Draws = sound_draws
    path: GradientPath = gradient_path
    step: type[PrivateStepGradient] = PrivateStepGradient
    overrides: tuple[str, ...] = ()  # of the study


def _draws(fault: Callable[[RandomSource], RandomSource]) -> Draws:
    return lambda sound, sizes: fault(sound)


FAULTS = (
    Fault(
        name="noise off",
        draws=_draws(noise.NoNoise),
        caught_by="noise_has_the_stated_deviation",
        says="variance is 0 of",
    ),
    Fault(
        name="noise / 4",
        draws=_draws(noise.QuarterNoise),
        caught_by="noise_has_the_stated_deviation",
        says="variance is 0.06",
    ),
    Fault(
        name="noise every second step",
        draws=_draws(noise.NoiseEverySecondStep),
        caught_by="noise_has_the_stated_deviation",
        says="variance is 0 of",
    ),
    Fault(
        name="clip off",
        path=clipping.ClipOff,
        caught_by="one_unit_is_bounded",
        says="at B = 1",
    ),
    Fault(
        name="clip × 10",
        path=clipping.ClipTimesTen,
        caught_by="one_unit_is_bounded",
        says="by 10 C at B = 1",
    ),
    Fault(
        name="clipping after averaging",
        path=clipping.ClipTheMean,
        caught_by="one_unit_is_bounded",
        says="at B = 64",
    ),
    Fault(
        name="microbatch clipping",
        path=clipping.ClipMicrobatches,
        caught_by="one_unit_is_bounded",
        says="at B = 64",
    ),
    Fault(
        name="InfoNCE under per-example clipping",
        path=by_row,
        overrides=SIMCLR,
        caught_by="one_unit_is_bounded",
        says="at B = 64",
    ),
    Fault(
        name="parameters outside clipping",
        path=clipping.LastTensorIsNotClipped,
        caught_by="one_unit_is_bounded",
        says="at B = 1",
    ),
    Fault(
        name="NaN not sanitised",
        path=clipping.NaNIsKept,
        caught_by="a_record_that_is_not_finite_adds_nothing",
        says="makes the sum NaN",
    ),
    Fault(
        name="noise from the seeded generator",
        draws=_draws(noise.NoiseFromTheSeededGenerator),
        caught_by="no_seed_repeats_the_noise",
        says="the seed of training",
    ),
    Fault(
        name="one noise key for every tensor",
        draws=noise.OneKeyForEveryTensor,
        caught_by="tensors_do_not_share_noise",
        says="two tensors",
    ),
    Fault(
        name="noise key kept after a fork",
        draws=lambda sound, sizes: noise.KeyKeptAfterFork(),
        caught_by="a_forked_worker_draws_its_own_noise",
        says="a child repeats",
    ),
    Fault(
        name="shuffling accounted as Poisson",
        draws=_draws(noise.FixedSizeBatches),
        caught_by="batch_sizes_are_those_of_poisson_sampling",
        says="batch sizes vary by 0",
    ),
    Fault(
        name="batch from the private count",
        step=steps.DividesByThePrivateCount,
        caught_by="one_record_more_changes_no_public_constant",
        says="the number of records",
    ),
)
