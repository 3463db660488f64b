"""Six ways to one step's gradient: plain, ours, and those of Opacus and `torch.func`.

Each takes a model, its objective and the views of a batch [B, ...], and gives what forms the
gradient from such views, in pieces: the mean's, or the sum of those of all records, clipped.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tacit_client.book_keeper import BookKeeper
from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.privacy.clipping import clipped_sum

_CLIP = 0.1
_ROWS_AT_ONCE = 16  # of vmap: about the fastest on a CPU

Step = Callable[[Views], Sequence[Tensor]]
MakeStep = Callable[[PretrainModel, Objective, Views], Step]


def _plain(model: PretrainModel, objective: Objective, _: Views) -> Step:
    def step(views: Views) -> Sequence[Tensor]:
        model.zero_grad(set_to_none=True)
        objective.loss(model, views).mean().backward()  # type: ignore[no-untyped-call]
        return _gradients(model)

    return step


def _book_keeping(model: PretrainModel, objective: Objective, views: Views) -> Step:
    keeper = BookKeeper(model)
    used = torch.ones(len(views[0]), 1, dtype=torch.bool)

    def step(views: Views) -> Sequence[Tensor]:
        loss = partial(objective.loss, model, views)
        return [keeper.clipped_sum(loss, used, units=len(used), l2_clip_norm=_CLIP)]

    return step


def _per_unit(model: PretrainModel, objective: Objective, _: Views) -> Step:
    gradients = PerUnitGradients(model, objective)

    def step(views: Views) -> Sequence[Tensor]:
        return [clipped_sum(gradients.rows(views), _CLIP)]

    return step


def _opacus_hooks(model: PretrainModel, objective: Objective, views: Views) -> Step:
    hooked = GradSampleModule(model, loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(hooked.parameters(), lr=0.1),
        noise_multiplier=1.0,
        max_grad_norm=_CLIP,
        expected_batch_size=len(views[0]),
        loss_reduction="sum",
    )

    def step(views: Views) -> Sequence[Tensor]:
        optimizer.zero_grad(set_to_none=True)
        _backward(objective.loss(model, views).sum())
        optimizer.clip_and_accumulate()
        return [parameter.summed_grad for parameter in optimizer.params]

    return step


class _Table(nn.Embedding):
    """An embedding that Opacus has no norms for: its ghost clipping refuses one called twice."""


GradSampleModule.GRAD_SAMPLERS[_Table] = GradSampleModule.GRAD_SAMPLERS[nn.Embedding]


def _opacus_ghost(model: PretrainModel, objective: Objective, _: Views) -> Step:
    for module in model.modules():
        if type(module) is nn.Embedding:  # small tables of positions, the decoder's called twice
            module.__class__ = _Table
    hooked = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=_CLIP, use_ghost_clipping=True
    )

    def step(
        views: Views,
    ) -> Sequence[Tensor]:  # as opacus.utils.fast_gradient_clipping_utils has it
        hooked.enable_hooks()
        loss = objective.loss(model, views)
        _backward(loss.sum(), retain_graph=True)
        model.zero_grad(set_to_none=True)
        weighted = (hooked.get_clipping_coef() * loss).sum()
        hooked.disable_hooks()
        _backward(weighted)
        return _gradients(model)

    return step


def _gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


def _backward(loss: Tensor, *, retain_graph: bool = False) -> None:
    with warnings.catch_warnings():
        # An embedding's integer input has no gradient; Opacus needs only its output's.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]


class _Loss(nn.Module):
    """The loss of a batch as a module's forward, for `functional_call`."""

    def __init__(self, model: PretrainModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self._objective = objective

    def forward(self, views: Views) -> Tensor:
        loss: Tensor = self._objective.loss(self.model, views)
        return loss


def _vmapped(model: PretrainModel, objective: Objective, _: Views) -> Step:
    module = _Loss(model, objective)
    parameters = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    def loss(values: dict[str, Tensor], row: Views) -> Tensor:
        losses: Tensor = functional_call(module, values, (tuple(view[None] for view in row),))
        return losses[0]

    rows = vmap(grad(loss), in_dims=(None, 0))

    def step(views: Views) -> Sequence[Tensor]:
        totals = [torch.zeros_like(value) for value in parameters.values()]
        for start in range(0, len(views[0]), _ROWS_AT_ONCE):
            few = tuple(view[start : start + _ROWS_AT_ONCE] for view in views)
            with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
                found = list(rows(parameters, few).values())
            squares = [one.flatten(1).square().sum(dim=1) for one in found]
            weights = (_CLIP / torch.stack(squares).sum(dim=0).sqrt()).clamp(max=1)
            sums = [torch.einsum("b,b...->...", weights, one) for one in found]
            torch._foreach_add_(totals, sums)
        return totals

    return step


PATHS: dict[str, MakeStep] = {
    "plain": _plain,
    "book-keeping": _book_keeping,
    "per-unit": _per_unit,
    "Opacus hooks": _opacus_hooks,
    "Opacus ghost clipping": _opacus_ghost,
    "vmap(grad)": _vmapped,
}

FORMS_ROWS = frozenset({"per-unit", "Opacus hooks"})
"""Paths that hold the gradients of all records of a batch at once."""
