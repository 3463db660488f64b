"""What every private gradient path does: bound each unit's contribution to a step's sum."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from tacit_common.errors import PrivacyConfigError


class UnitGradients(Protocol):
    """From the units of a step to the sum of their bounded contributions.

    Which path fits an objective follows from what it couples: `BookKeepingGradients` where a
    record's loss is its own, or `PerUnitGradients` where the model's layers cannot be watched;
    `InUnitGradients` where it couples records of one unit; `LogitGradients` for Logit-DP.
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


def grid_of(units: Sequence[Tensor], places: int, slots: int) -> tuple[Tensor, Tensor]:
    """Records [places, slots, ...] filled up with zeros, and where they are, bool."""
    used = torch.zeros(places, slots, dtype=torch.bool)
    if slots == 1 and len(units) == places:
        return torch.stack(list(units)), used.fill_(True)
    grid = units[0].new_zeros(places, slots, *units[0].shape[1:])
    for place, records in enumerate(units):
        grid[place, : len(records)] = records
        used[place, : len(records)] = True
    return grid, used


def require_rows(loss: Tensor, rows: int) -> Tensor:
    """`loss`, if it is one value a row, [rows].

    Raises:
        PrivacyConfigError: it is not.
    """
    if loss.shape == (rows,):
        return loss
    raise PrivacyConfigError(
        "the objective gives no loss per unit",
        why=f"its loss of a batch has {loss.dim()} dimensions, or not one value a row",
        fix="return one value a row: see the Objective protocol",
    )
