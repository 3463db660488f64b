"""The private gradient: per-unit gradients, clipped, summed, noised.

The only place where Opacus forms gradients. Its hooks give the gradient of every row;
clipping, summing and noise are ours (`tacit_common.privacy`), because Opacus noises
floats with a seeded generator and turns one NaN record into a NaN update.
"""

import warnings

import torch
from opacus import GradSampleModule
from torch import Tensor

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.privacy.clipping import clipped_sum
from tacit_common.privacy.mechanism import PrivacyMechanism
from tacit_common.training import trained_parameters, views_for


class PerUnitGradients:
    """Forms the clipped sum of per-unit gradients of one model and objective.

    Attaches Opacus's hooks to `model`; they stay inert while gradients are disabled.
    """

    def __init__(self, model: PretrainModel, objective: Objective) -> None:
        self._model = model
        self._objective = objective
        self._parameters = [parameter for _, parameter in trained_parameters(model)]
        # strict: a layer whose per-example gradient Opacus cannot form is an error.
        self._hooks = GradSampleModule(model, loss_reduction="sum", strict=True)

    @property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return sum(parameter.numel() for parameter in self._parameters)

    def clipped_sum(
        self,
        batch: Tensor,
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,
    ) -> Tensor:
        """Sum over units of their gradient clipped to `l2_clip_norm`, float64 [P].

        `batch` is [B, ...] with one row a unit; B may be 0. A unit's gradient is the mean
        over its augmented views, formed before it is clipped.

        Rows are formed `physical_batch` at a time, always that many: the last chunk is
        filled up with zeros, whose gradients are dropped. Matrix kernels round differently
        for different numbers of rows, so without the filling a record's gradient would
        depend, in its last bits, on how many others were drawn.
        """
        total = torch.zeros(self.size, dtype=torch.float64)
        for first in range(0, len(batch), physical_batch):
            chunk = batch[first : first + physical_batch]
            filling = chunk.new_zeros(physical_batch - len(chunk), *chunk.shape[1:])
            rows = self._per_unit(torch.cat([chunk, filling]), generator, augmentations)
            real = [row[: len(chunk)] for row in rows]
            total += clipped_sum(real, l2_clip_norm).cpu()
        return total

    def _per_unit(
        self, chunk: Tensor, generator: torch.Generator, augmentations: int
    ) -> list[Tensor]:
        """Gradient of every row, averaged over its views: one tensor [B, *shape] a parameter."""
        try:
            mean = self._rows_of_pass(chunk, generator)
            for done in range(1, augmentations):
                more = self._rows_of_pass(chunk, generator)
                for rows, new in zip(mean, more, strict=True):
                    rows.lerp_(new, 1 / (done + 1))  # the running mean over views
        finally:
            self._forget()  # a pass that failed must leave no trace in the next one
        return mean

    def _rows_of_pass(self, chunk: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Gradients of the rows' loss under one draw of views."""
        views = views_for(self._model, self._objective, chunk, generator)
        loss = self._objective.loss(self._model, views)  # [B]
        if loss.shape != (len(chunk),):
            raise PrivacyConfigError(
                "the objective gives no loss per unit",
                why=f"its loss of a batch has {loss.dim()} dimensions, or not one value a row",
                fix="return one value a row: see the Objective protocol",
            )
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
        return [self._take_rows(parameter, len(chunk)) for parameter in self._parameters]

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


def private_mean_gradient(
    clipped: Tensor, mechanism: PrivacyMechanism, *, expected_batch: float
) -> Tensor:
    """Noisy gradient [P], float32, from the clipped sum.

    Divides after the noise, by a public constant: the sensitivity is of the sum, and
    the true batch size is private.
    """
    return (mechanism.apply(clipped) / expected_batch).to(torch.float32)
