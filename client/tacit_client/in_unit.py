"""The gradient path for objectives that couple records: legal within one unit.

Where the unit is a subject, an objective may contrast the records of that subject with
one another (SimCLR, Barlow Twins, …). Each subject's loss is computed alone, so its
gradient is a function of that subject, and clipping it bounds what the subject does.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.privacy.clipping import CompensatedSum, clipped_sum
from tacit_common.training import trained_parameters, trained_size, views_for


class InUnitGradients:
    """Forms the clipped sum of the gradients of units, one backward pass a unit."""

    def __init__(self, model: PretrainModel, objective: Objective) -> None:
        self._model = model
        self._objective = objective
        self._parameters = [parameter for _, parameter in trained_parameters(model)]

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return trained_size(self._model)

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        """One unit is one clipped gradient: C."""
        return l2_clip_norm

    def clipped_sum(
        self,
        units: Iterable[Tensor],
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,  # noqa: ARG002 - a unit's records meet in one loss, so in one pass
    ) -> Tensor:
        """Sum over units of their gradient clipped to `l2_clip_norm`, float64 [P].

        A unit's gradient is that of the mean loss of its records, averaged over its
        augmented views, formed before it is clipped.
        """
        total = CompensatedSum(self.size)
        for records in units:
            rows = self._gradient(records, generator, augmentations)
            total.add(clipped_sum([row[None] for row in rows], l2_clip_norm).cpu())
        return total.value

    def _gradient(
        self, records: Tensor, generator: torch.Generator, augmentations: int
    ) -> Sequence[Tensor]:
        """Gradient of one unit: one tensor [*shape] a parameter."""
        mean = self._of_one_draw(records, generator)
        for done in range(1, augmentations):
            more = self._of_one_draw(records, generator)
            mean = [old.lerp(new, 1 / (done + 1)) for old, new in zip(mean, more, strict=True)]
        return mean

    def _of_one_draw(self, records: Tensor, generator: torch.Generator) -> Sequence[Tensor]:
        loss = self._objective.loss(
            self._model, views_for(self._model, self._objective, records, generator)
        )
        if loss.shape != (len(records),):
            raise PrivacyConfigError(
                "the objective gives no loss per record",
                why=f"its loss of a unit has {loss.dim()} dimensions, or not one value a record",
                fix="return one value a record: see the Objective protocol",
            )
        return torch.autograd.grad(loss.mean(), self._parameters, materialize_grads=True)
