"""What every private gradient path does: bound each unit's contribution to a step's sum."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor


class UnitGradients(Protocol):
    """From the units of a step to the sum of their bounded contributions.

    Which path fits an objective follows from what it couples: `PerUnitGradients` where a
    record's loss is its own, `InUnitGradients` where it couples records of one unit,
    `LogitGradients` for Logit-DP.
    """

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        ...

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        """What one unit changes in the sum, in L2 norm, under zero-out adjacency."""
        ...

    def clipped_sum(
        self,
        units: Iterable[Tensor],
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,
    ) -> Tensor:
        """The sum over units, float64 [P] on the CPU; no units give zero.

        Each unit is the tensor of its records, [n, ...] with n at least 1. Units are taken
        one by one, and no more than `physical_batch` records are held at once where the
        path allows it. `generator` draws the views.
        """
        ...


def units_of_passes(units: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    """The units of one pass after another, `size` each; fewer in the last, and never none."""
    remaining = iter(units)
    while chunk := list(islice(remaining, size)):
        yield chunk
