"""Planted faults of the gradient path: sums in which a unit is not bounded by C.

Each takes the place of `tacit_client.resident.gradient_path`, and says of itself, as the
sound path does, that one unit changes the sum by at most C.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.study import LocalPrivacyPlan
from tacit_common.training import trained_parameters, views_for

NO_CLIP = 1e9


class FaultyPath:
    """The sound path, for faults that change its sum."""

    def __init__(
        self, model: PretrainModel, objective: Objective, privacy: LocalPrivacyPlan
    ) -> None:
        self.model = model
        self.objective = objective
        self.sound = PerUnitGradients(model, objective)

    @property
    def size(self) -> int:
        return self.sound.size

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
        return self.total(list(units), generator, l2_clip_norm)

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        return self.sum_at(units, generator, norm)

    def sum_at(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        """The sound path's sum at another clip norm."""
        together = max(1, min(256, len(units)))
        return self.sound.clipped_sum(
            units, generator, l2_clip_norm=norm, augmentations=1, physical_batch=together
        )


class ClipOff(FaultyPath):
    """Nothing is clipped."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        return self.sum_at(units, generator, NO_CLIP)


class ClipTimesTen(FaultyPath):
    """Clipped to ten times what the noise is scaled to."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        return self.sum_at(units, generator, 10 * norm)


class ClipTheMean(FaultyPath):
    """The batch's mean gradient is clipped, and not each unit's."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        mean = self.sum_at(units, generator, NO_CLIP) / max(1, len(units))
        return mean * min(1.0, norm / float(mean.norm().clamp(min=1e-300))) * len(units)


class ClipMicrobatches(FaultyPath):
    """The mean of every four units is clipped, as if it were one of them."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        total = torch.zeros(self.size, dtype=torch.float64)
        for few in batched(units, 4):
            mean = self.sum_at(few, generator, NO_CLIP) / len(few)
            total += mean * min(1.0, norm / float(mean.norm().clamp(min=1e-300)))
        return total


class NaNIsKept(FaultyPath):
    """Every unit is clipped by multiplying, and 0 · NaN is NaN."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        total = torch.zeros(self.size, dtype=torch.float64)
        for few in batched(units, 64):
            views = views_for(self.model, self.objective, torch.cat(few), generator)
            rows = torch.cat([piece.flatten(1) for piece in self.sound.rows(views)], dim=1).double()
            factors = (norm / rows.norm(dim=1).clamp(min=1e-300)).clamp(max=1)
            total += factors @ rows
        return total


class LastTensorIsNotClipped(FaultyPath):
    """A late addition to the encoder is summed on a path of its own."""

    def total(self, units: list[Tensor], generator: torch.Generator, norm: float) -> Tensor:
        again = copy_of(generator)
        clipped = self.sum_at(units, generator, norm)
        whole = self.sum_at(units, again, NO_CLIP)
        sizes = [p.numel() for _, p in trained_parameters(self.model.encoder)]
        outside = slice(sum(sizes) - sizes[-1], sum(sizes))
        clipped[outside] = whole[outside]
        return clipped


def copy_of(generator: torch.Generator) -> torch.Generator:
    """A generator in the same state."""
    return torch.Generator().set_state(generator.get_state())


def batched(units: list[Tensor], size: int) -> Iterator[list[Tensor]]:
    """`units` in runs of `size`."""
    rest = iter(units)
    while few := list(islice(rest, size)):
        yield few
