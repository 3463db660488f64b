"""Objectives that couple records may meet within a unit; units stay apart, and it is checked."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from tacit_client.in_unit import InUnitGradients
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.objectives.contrastive import SimCLR
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import ClippedSumPath, check_units_separate
from tacit_common.privacy.separability.violation import Clause
from tacit_common.study import SimCLRPlan, Study, ViewsPlan

Built = tuple[PretrainModel, Objective]
SIMCLR = (
    'objective={ kind = "simclr", projection_dim = 8 }',
    "views={ max_shift = 0.2, noise_stddev = 0.1 }",
    "privacy.unit=subject",
    "privacy.records_per_subject=3",
)
UNITS = [
    torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))
    for count in (2, 3, 3)
]


@pytest.fixture
def simclr(make_study: Callable[..., Study]) -> Built:
    return build_model(make_study(*SIMCLR), PluginTable())


def test_contrast_within_a_subject_keeps_subjects_apart(simclr: Built) -> None:
    check_units_separate(*simclr, UNITS, gradient_path=InUnitGradients)


# --- paths that do not keep units apart ------------------------------------------------


class AllTogether(InUnitGradients):
    """One loss over the records of all units."""

    def clipped_sum(self, units: Iterable[Tensor], *args: object, **options: object) -> Tensor:
        together = list(units)
        joint = [torch.cat(together)] if together else []
        return super().clipped_sum(joint, *args, **options)  # type: ignore[arg-type]


class Averaged(InUnitGradients):
    """Divides by the number of units before the noise."""

    def clipped_sum(self, units: Iterable[Tensor], *args: object, **options: object) -> Tensor:
        listed = list(units)
        total = super().clipped_sum(listed, *args, **options)  # type: ignore[arg-type]
        return total / max(1, len(listed))


class Unclipped(InUnitGradients):
    def clipped_sum(self, units: Iterable[Tensor], *args: object, **options: object) -> Tensor:
        options["l2_clip_norm"] = 1e30
        return super().clipped_sum(units, *args, **options)  # type: ignore[arg-type]


class TenTimesTheClip(InUnitGradients):
    def clipped_sum(self, units: Iterable[Tensor], *args: object, **options: object) -> Tensor:
        options["l2_clip_norm"] = 10 * float(options["l2_clip_norm"])  # type: ignore[arg-type]
        return super().clipped_sum(units, *args, **options)  # type: ignore[arg-type]


class KeepsTheLast(InUnitGradients):
    """Adds what is left of the step before."""

    left: Tensor | float = 0.0

    def clipped_sum(self, units: Iterable[Tensor], *args: object, **options: object) -> Tensor:
        total = super().clipped_sum(units, *args, **options)  # type: ignore[arg-type]
        out, self.left = total + self.left, 0.1 * total
        return out


@pytest.mark.parametrize(
    ("path", "clause"),
    [
        (AllTogether, Clause.REPLACED),
        (Averaged, Clause.REPLACED),
        (Unclipped, Clause.BOUNDED),
        (TenTimesTheClip, Clause.BOUNDED),
        (KeepsTheLast, Clause.SAME),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_path_in_which_units_reach_one_another_is_refused(
    simclr: Built, path: ClippedSumPath, clause: Clause
) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        check_units_separate(*simclr, UNITS, gradient_path=path)
    assert f"that {clause} failed" in caught.value.why


class QueueAcrossUnits(SimCLR):
    """Negatives from the units before."""

    def __init__(self) -> None:
        super().__init__(SimCLRPlan(kind="simclr", projection_dim=8), ViewsPlan(max_shift=0.2))
        self.before = 0.0

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        loss = super().loss(model, views)
        out, self.before = loss * (1 + self.before), float(loss.detach().mean().nan_to_num())
        return out


class CountsUnits(SimCLR):
    """Remembers how often it was called, and does nothing with it."""

    def __init__(self) -> None:
        super().__init__(SimCLRPlan(kind="simclr", projection_dim=8), ViewsPlan(max_shift=0.2))
        self.calls = 0

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        self.calls += 1
        return super().loss(model, views)


class NeedsFinite(CountsUnits):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        if not views[0].isfinite().all():
            raise RuntimeError("not finite")
        return SimCLR.loss(self, model, views)


@pytest.mark.parametrize(
    ("objective", "clause"),
    [
        (QueueAcrossUnits(), Clause.SAME),
        (CountsUnits(), Clause.MEMORY),
        (NeedsFinite(), Clause.RUNS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_objective_that_carries_one_unit_to_the_next_is_refused(
    simclr: Built, objective: Objective, clause: Clause
) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        check_units_separate(simclr[0], objective, UNITS, gradient_path=InUnitGradients)
    assert f"that {clause} failed" in caught.value.why


def test_too_few_units_are_not_checked(simclr: Built) -> None:
    for units in (UNITS[:2], [unit[:1] for unit in UNITS]):
        with pytest.raises(ValueError, match="3 units of 2 records"):
            check_units_separate(*simclr, units, gradient_path=InUnitGradients)
