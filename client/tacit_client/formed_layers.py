"""Layers without a rule: their per-unit gradients are formed, theirs alone.

By Opacus's sampler for a layer of that kind if there is one, else by calling the layer once
more, unit by unit, under `torch.func.vmap`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from tacit_common.errors import PrivacyConfigError

_SAME = 2.0**-6
"""How far, of the largest entry, a layer's results may lie apart in two calls: bf16 allows it."""


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer with B rows."""

    arguments: Sequence[object]
    structure: TreeSpec | None
    """What makes of `arguments` the layer's positional and keyword arguments."""

    results: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    """Of the loss by each result; None where it does not depend on it."""


def is_whole(layer: nn.Module) -> bool:
    """Whether a layer uses its children's parameters without calling the children."""
    return is_parametrized(layer) or isinstance(layer, nn.MultiheadAttention | nn.RNNBase)


def has_sampler(layer: nn.Module) -> bool:
    """Whether Opacus forms this layer's per-unit gradients."""
    return type(layer) in _samplers()


def _samplers() -> Mapping[type[nn.Module], Callable[..., dict[nn.Parameter, Tensor]]]:
    from opacus import GradSampleModule  # noqa: PLC0415 - a second, which few models need

    samplers: dict[type[nn.Module], Callable[..., dict[nn.Parameter, Tensor]]]
    samplers = GradSampleModule.GRAD_SAMPLERS
    return samplers


def sampled_rows(
    layer: nn.Module, parameters: Mapping[str, nn.Parameter], call: LayerCall
) -> dict[nn.Parameter, Tensor]:
    """The gradient of every row, [B, *shape], of each of the layer's `parameters`, by Opacus."""
    [gradient], [given] = call.gradients, call.arguments
    rows: dict[nn.Parameter, Tensor] = _samplers()[type(layer)](layer, [given], gradient)
    return {parameter: rows[parameter].detach() for parameter in parameters.values()}


def vmapped_rows(
    layer: nn.Module, parameters: Mapping[str, nn.Parameter], call: LayerCall
) -> dict[nn.Parameter, Tensor]:
    """The gradient of every row, [B, *shape], of each of the layer's `parameters`.

    Raises:
        PrivacyConfigError: the layer cannot be called unit by unit, or then does something else.
    """
    structure = call.structure
    if structure is None:
        raise AssertionError("a layer that is called again has been called with something")
    count = len(call.results[0])
    axes = tuple(
        0 if isinstance(value, Tensor) and value.dim() and len(value) == count else None
        for value in call.arguments
    )
    gradients = {i: g for i, g in enumerate(call.gradients) if g is not None}

    def product(
        values: dict[str, Tensor], arguments: tuple[object, ...], gradients: dict[int, Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        rows = [
            value.unsqueeze(0) if axis == 0 and isinstance(value, Tensor) else value
            for axis, value in zip(axes, arguments, strict=True)
        ]
        args, kwargs = tree_unflatten(rows, structure)
        results = tensors_of(functional_call(layer, values, args, kwargs))
        parts = [(results[i][0] * g).sum() for i, g in gradients.items()]
        return torch.stack(parts).sum(), [result[0] for result in results]

    values = {name: parameter.detach() for name, parameter in parameters.items()}
    try:
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule for vmap
            rows, results = vmap(grad(product, has_aux=True), in_dims=(None, axes, 0))(
                values, tuple(call.arguments), gradients
            )
    except RuntimeError as error:
        raise _not_alone(layer) from error
    odd = _other_rows(results, call.results)
    found = {parameters[name]: formed.detach() for name, formed in rows.items()}
    if not bool(odd.any()):
        return found
    if bool(odd.all()):  # the layer's doing; a unit alone only loses its own gradient
        raise _not_alone(layer)
    for parameter, formed in found.items():  # contributes nothing: as any that is not finite
        found[parameter] = torch.where(_like(odd, formed), torch.nan, formed)
    return found


def _other_rows(again: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """Which rows differ from what they were, beyond rounding, bool [B]; all, if none is the same.

    Rows of zeros or of what is not finite say nothing.
    """
    odd = torch.zeros(len(before[0]), dtype=torch.bool, device=before[0].device)
    same = torch.zeros_like(odd)
    for new, old in zip(again, before, strict=True):
        apart = (new - old).abs().flatten(1).amax(dim=1)
        most = _SAME * old.abs().flatten(1).amax(dim=1)
        odd |= apart > most
        same |= (apart <= most) & (most > 0)
    return odd if bool(same.any()) or not bool(odd.any()) else torch.ones_like(odd)


def _like(rows: Tensor, values: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (values.dim() - 1))


def _not_alone(layer: nn.Module) -> PrivacyConfigError:
    return PrivacyConfigError(
        "per-unit gradients cannot be formed",
        why=f"a {type(layer).__name__} has trained parameters of its own, and cannot be called "
        "again with one unit, or does something else then",
        fix="keep the parameters in layers with a rule, leave randomness and other units out of "
        "that module's forward, or use PerUnitGradients",
    )


def tensors_of(results: object) -> list[Tensor]:
    """The floating-point tensors among what a layer returned, which may have gradients."""
    return [
        leaf
        for leaf in tree_flatten(results)[0]
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]
