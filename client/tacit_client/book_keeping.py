"""The private gradient without per-unit gradients: units, views and passes of `BookKeeper`."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from tacit_client.book_keeper import BookKeeper
from tacit_client.gradients import grid_of, require_rows, units_of_passes
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.privacy.clipping import CompensatedSum, clipped_sum
from tacit_common.training import trained_parameters, views_for

MOST_UNITS = 1 << 19
"""Units of one sum, up to which `FLOAT_SLACK` covers what rounding can change in it."""

FLOAT_SLACK = 2.0**-13
"""What rounding can add to a unit's influence, relative to C (`BookKeepingGradients`)."""


class BookKeepingGradients:
    """Forms the clipped sum of per-unit gradients where a record's loss is its own.

    Gives what `PerUnitGradients` gives, up to the rounding of the model's own type, on models
    that `tape.refusal_of` finds nothing against. A unit holds at most `records_per_unit`
    records. Hooks are on the model only while a pass runs.

    What one unit changes in the sum, rounding included. A unit's weight times its true gradient
    has norm at most C (`clip_weights`). What is rounded in adding up n units is at most r·2⁻⁵³
    times the length of their weighted terms, r the roundings that a term passes through: r is
    at most `MOST_ROUNDINGS` = 2¹² (`GhostPairs.write_sum`), the terms of a unit come to at most
    2⁸·C (`clip_weights`), and n is at most `MOST_UNITS` = 2¹⁹. So a sum is off by at most
    2¹²⁺⁸⁺¹⁹⁻⁵³·C = 2⁻¹⁴·C, and two neighbouring sums by 2⁻¹³·C, which `l2_sensitivity` holds.
    That is the worst case, in which every rounding of every unit goes one way.

    Raises:
        PrivacyConfigError: the model has a layer whose gradients cannot be kept as pairs.
    """

    def __init__(
        self, model: PretrainModel, objective: Objective, *, records_per_unit: int = 1
    ) -> None:
        self._keeper = BookKeeper(model)
        self._model = model
        self._objective = objective
        self._records_per_unit = records_per_unit
        self._parameters = [parameter for _, parameter in trained_parameters(model)]

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return self._keeper.size

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers without a rule, whose per-unit gradients are formed: "name (type)"."""
        return self._keeper.fallbacks

    def l2_sensitivity(self, l2_clip_norm: float) -> float:
        """One unit is one clipped gradient, and rounding: C·(1 + 2⁻¹³)."""
        return l2_clip_norm * (1 + FLOAT_SLACK)

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
        before it is clipped. All views of a unit meet in one pass; a unit whose views do not
        fit into `physical_batch` rows gets passes of its own, one a view.

        Guarantees: one unit changes the sum by at most `l2_sensitivity(l2_clip_norm)`; a unit
        whose gradient is not finite contributes exactly zero; every pass has the same number
        of rows (why: `PerUnitGradients.clipped_sum`).

        Raises:
            PrivacyConfigError: there are more than `MOST_UNITS` units, or a pass with more rows
                than rounding allows; or a layer or the objective did what cannot be kept.
        """
        rows_of_unit = self._records_per_unit * augmentations
        alone = augmentations > 1 and rows_of_unit > physical_batch
        places = 1 if alone else max(1, physical_batch // rows_of_unit)
        total, count = CompensatedSum(self.size), 0
        for chunk in units_of_passes(units, places):
            count += len(chunk)
            if count > MOST_UNITS:
                raise _too_many()
            grid, used = grid_of(chunk, places, self._records_per_unit)
            if alone:
                part = self._sum_alone(grid, used, generator, augmentations, l2_clip_norm)
            else:
                views = self._views(grid, generator, augmentations)
                part = self._keeper.clipped_sum(
                    partial(self._loss, views),
                    used.repeat(1, augmentations),
                    units=len(chunk),
                    l2_clip_norm=l2_clip_norm,
                )
            total.add(part.cpu())
        return total.value

    def _views(self, grid: Tensor, generator: torch.Generator, augmentations: int) -> Views:
        """Views of all records in `grid` [U, R, ...], [U·K·R, ...] each: a unit's are together."""
        records, places = grid.flatten(0, 1), len(grid)
        draw = partial(views_for, self._model, self._objective, records, generator)
        if augmentations == 1:
            return draw()
        draws = [draw() for _ in range(augmentations)]
        return tuple(
            torch.stack([v.reshape(places, -1, *v.shape[1:]) for v in same], dim=1).flatten(0, 2)
            for same in zip(*draws, strict=True)
        )

    def _loss(self, views: Views) -> Tensor:
        return self._objective.loss(self._model, views)

    def _sum_alone(
        self,
        grid: Tensor,
        used: Tensor,
        generator: torch.Generator,
        augmentations: int,
        l2_clip_norm: float,
    ) -> Tensor:
        """The clipped gradient of one unit, whose views come one after another.

        Its rows all belong to one unit, so plain autograd adds up what belongs together.
        """
        [rows_used] = used
        # An empty slot repeats a record: of zeros a model may make NaN, which 0 does not cancel.
        grid = torch.where(rows_used.view(1, -1, *[1] * (grid.dim() - 2)), grid, grid[:, :1])
        means = [torch.zeros_like(parameter) for parameter in self._parameters]
        for done in range(augmentations):
            views = self._views(grid, generator, 1)
            loss = require_rows(self._loss(views), len(views[0]))
            mine = loss[rows_used.to(loss.device)].mean()
            parts = torch.autograd.grad(mine, self._parameters, materialize_grads=True)
            for mean, part in zip(means, parts, strict=True):
                mean.lerp_(part, 1 / (done + 1))  # the running mean over views
        return clipped_sum([mean[None] for mean in means], l2_clip_norm)


def _too_many() -> PrivacyConfigError:
    return PrivacyConfigError(
        "a step has more units than its sum is proven for",
        why=f"up to {MOST_UNITS:,} units, rounding stays below what the noise allows for",
        fix="lower the sampling rate, or make two sites of it",
    )
