"""The private gradient: per-unit gradients, clipped, summed, noised.

The path on which Opacus forms the gradient of every row, by its hooks;
clipping, summing and noise are ours (`tacit_common.privacy`), because Opacus noises
floats with a seeded generator and turns one NaN record into a NaN update.
"""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from tacit_client.gradients import grid_of, require_rows, units_of_passes
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.privacy.clipping import CompensatedSum, clipped_sum
from tacit_common.privacy.mechanism import PrivacyMechanism
from tacit_common.training import trained_parameters, trained_size, views_for


class PerUnitGradients:
    """Forms the clipped sum of per-unit gradients where a record's loss is its own.

    Attaches Opacus's hooks to `model`; they stay inert while gradients are disabled. A unit
    holds at most `records_per_unit` records.
    """

    def __init__(
        self, model: PretrainModel, objective: Objective, *, records_per_unit: int = 1
    ) -> None:
        self._model = model
        self._objective = objective
        self._records_per_unit = records_per_unit
        self._parameters = [parameter for _, parameter in trained_parameters(model)]
        from opacus import GradSampleModule  # noqa: PLC0415 - a second, which few models need

        # strict: a layer whose per-example gradient Opacus cannot form is an error.
        self._hooks = GradSampleModule(model, loss_reduction="sum", strict=True)

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
        physical_batch: int,
    ) -> Tensor:
        """Sum over units of their gradient clipped to `l2_clip_norm`, float64 [P].

        A unit's gradient is the mean over its records and their augmented views, formed
        before it is clipped.

        Every pass has the same number of rows, `records_per_unit` for each unit, filled up
        with zeros whose gradients are dropped. Matrix kernels round differently for
        different numbers of rows, so without the filling a record's gradient would depend,
        in its last bits, on how many others were drawn.
        """
        slots = self._records_per_unit
        units_of_pass = max(1, physical_batch // slots)
        total = CompensatedSum(self.size)
        for chunk in units_of_passes(units, units_of_pass):
            rows = self._rows_of_units(chunk, units_of_pass, generator, augmentations)
            total.add(clipped_sum(rows, l2_clip_norm).cpu())
        return total.value

    def _rows_of_units(
        self, units: list[Tensor], places: int, generator: torch.Generator, augmentations: int
    ) -> list[Tensor]:
        """Gradient of every unit, one tensor [U, *shape] a parameter."""
        slots = self._records_per_unit
        grid, used = grid_of(units, places, slots)
        rows = self._rows_of_records(grid.flatten(0, 1), generator, augmentations)
        if slots == 1:
            return [row[: len(units)] for row in rows]
        grids = [row.view(places, slots, *row.shape[1:]) for row in rows]
        return [_mean_of_used(rows_of_units, used)[: len(units)] for rows_of_units in grids]

    def _rows_of_records(
        self, records: Tensor, generator: torch.Generator, augmentations: int
    ) -> list[Tensor]:
        """Gradient of every record, averaged over its views: one tensor [B, *shape] a parameter."""
        mean = self.rows(views_for(self._model, self._objective, records, generator))
        for done in range(1, augmentations):
            more = self.rows(views_for(self._model, self._objective, records, generator))
            for rows, new in zip(mean, more, strict=True):
                rows.lerp_(new, 1 / (done + 1))  # the running mean over views
        return mean

    def rows(self, views: Views) -> list[Tensor]:
        """Gradient of every row of `views` [B, ...]: one tensor [B, *shape] a parameter.

        Raises:
            PrivacyConfigError: the objective gives no loss per row, or the model was not
                called with one row a unit.
        """
        try:
            return self._rows_of_pass(views)
        finally:
            self._forget()  # a pass that failed must leave no trace in the next one

    def _rows_of_pass(self, views: Views) -> list[Tensor]:
        size = len(views[0])
        loss = require_rows(self._objective.loss(self._model, views), size)  # [B]
        with warnings.catch_warnings():
            # An embedding's integer input has no gradient; Opacus needs only its output's.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss.sum().backward()  # type: ignore[no-untyped-call]
        if any(getattr(module, "activations", None) for module in self._model.modules()):
            # Opacus pairs forward and backward passes by their order alone.
            raise PrivacyConfigError(
                "per-unit gradients cannot be formed",
                why="a layer's result does not reach the loss, or was detached from it",
                fix="compute what needs no gradient under torch.no_grad()",
            )
        return [self._take_rows(parameter, size) for parameter in self._parameters]

    def _forget(self) -> None:
        """Drop everything that Opacus keeps between a forward and a backward pass."""
        for module in self._model.modules():
            if hasattr(module, "activations"):
                module.activations = []  # type: ignore[assignment]
            if hasattr(module, "max_batch_len"):
                del module.max_batch_len
        for parameter in self._parameters:
            parameter.grad = None
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample

    @staticmethod
    def _take_rows(parameter: torch.nn.Parameter, size: int) -> Tensor:
        rows = getattr(parameter, "grad_sample", None)
        parameter.grad_sample = None  # type: ignore[attr-defined]
        if rows is None:  # the loss does not reach this parameter
            return torch.zeros(size, *parameter.shape, device=parameter.device)
        if not isinstance(rows, Tensor) or len(rows) != size:
            raise PrivacyConfigError(
                "per-unit gradients cannot be formed",
                why="a layer was called with rows that are not the units of the batch",
                fix="call the model with one row a unit, as often as needed",
            )
        return rows.detach()


def _mean_of_used(rows: Tensor, used: Tensor) -> Tensor:
    """Mean [U, *shape] of `rows` [U, slots, *shape] over the slots that hold a record."""
    used = used.to(rows.device)
    rows[~used] = 0  # not multiplied: a gradient that is not finite would stay
    counts = used.sum(dim=1).clamp(min=1).to(rows.dtype)  # [U]
    return rows.sum(dim=1) / counts.view(-1, *[1] * (rows.dim() - 2))


def private_mean_gradient(
    clipped: Tensor, mechanism: PrivacyMechanism, *, expected_batch: float
) -> Tensor:
    """Noisy gradient [P], float32, from the clipped sum.

    Divides after the noise, by a public constant: the sensitivity is of the sum, and
    the true batch size is private.
    """
    return (mechanism.apply(clipped) / expected_batch).to(torch.float32)
