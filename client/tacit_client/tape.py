"""What every trained layer of a model saw and was told in one pass.

    watched_layers(model) → Tape: forward, backward → pairs, layer by layer

Where a parameter is used, its layer has been called: while a layer runs, and only then, its
parameters take no gradient. One that is used behind its layer's back gets a gradient after
all, and the pass is refused.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map
from torch.utils.hooks import RemovableHandle

from tacit_client.formed_layers import (
    LayerCall,
    has_sampler,
    is_whole,
    sampled_rows,
    tensors_of,
    vmapped_rows,
)
from tacit_client.layer_pairs import LayerPairs, RowPairs, merged
from tacit_client.layer_rules import PAIRS_OF, Call, MakePairs
from tacit_common.errors import PrivacyConfigError


@dataclass(frozen=True)
class WatchedLayer:
    """A module with trained parameters of its own, and how its gradients are kept."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]
    """The trained ones, by their names in the module; its children's too if it is whole."""

    rule: MakePairs | None
    """None: there is none, and its per-unit gradients are formed."""

    is_called_again: bool
    """Whether its gradients are formed by calling it once more, whatever it is called with."""

    @property
    def described(self) -> str:
        """For people: "encoder.token (nn.Module)"."""
        return f"{self.name or 'the model'} ({type(self.module).__name__})"


def watched_layers(model: nn.Module) -> list[WatchedLayer]:
    """All modules of `model` with trained parameters; `refusal_of` it must be None."""
    found: list[WatchedLayer] = []
    inside: set[nn.Module] = set()  # of those that are handled whole
    for name, module in model.named_modules():
        if module in inside:
            continue
        whole = is_whole(module)
        if whole:
            inside.update(module.modules())
        named = module.named_parameters(recurse=whole)
        parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        if parameters:
            rule = None if whole else PAIRS_OF.get(type(module))
            again = rule is None and not has_sampler(module)
            found.append(WatchedLayer(name, module, parameters, rule, again))
    return found


def refusal_of(model: nn.Module) -> str | None:
    """Why a pass through `model` cannot be kept; None if it can."""
    names: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter in names:
            return f"parameters '{names[parameter]}' and '{name}' are one"
        names[parameter] = name
    for name, module in model.named_modules():
        if _is_compiled(module):
            return f"module '{name}' is compiled, so that its layers cannot be watched"
        if isinstance(module, _BatchNorm):  # frozen, or without parameters, too
            return f"module '{name}' is a {type(module).__name__}, which mixes the units of a batch"
    for layer in watched_layers(model):
        reason = _refusal_of_layer(layer)
        if reason is not None:
            return f"module '{layer.name}' {reason}"
    return None


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _refusal_of_layer(layer: WatchedLayer) -> str | None:
    module = layer.module
    if not all(parameter.is_floating_point() for parameter in layer.parameters.values()):
        return f"is a {type(module).__name__} with parameters that are no real numbers"
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in _own(layer)):
        return "has hooks already"
    if isinstance(module, nn.Embedding) and (
        module.max_norm is not None or module.scale_grad_by_freq or module.sparse
    ):
        return "is an Embedding that changes its table, or scales or thins out its gradient"
    return None


def _own(layer: WatchedLayer) -> Iterator[nn.Module]:
    if is_whole(layer.module):
        yield from layer.module.modules()
    else:
        yield layer.module


@dataclass
class _Seen:
    """One call of a layer: what went in, what came out, and later the gradients of that."""

    arguments: list[object]
    versions: list[int]
    gradients: list[Tensor | None]
    structure: TreeSpec | None = None
    results: list[Tensor] = field(default_factory=list)
    """Kept only for layers that are called again."""

    def is_reached(self) -> bool:
        """Whether the loss depends on the call; what it was called with must still be there."""
        if _versions(self.arguments) != self.versions:
            raise _cannot("the input of a layer was changed in place after the layer had read it")
        return any(gradient is not None for gradient in self.gradients)


def _versions(values: Sequence[object]) -> list[int]:
    return [value._version for value in values if isinstance(value, Tensor)]


class _Source(torch.autograd.Function):
    """Lets a result take a gradient where nothing before it does, as parameters would have.

    Unlike a leaf, it may be changed in place afterwards.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, result: Tensor, anchor: Tensor) -> Tensor:  # noqa: ARG004
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[None, None]:  # noqa: ARG004
        return None, None


class Tape:
    """Keeps what went into every watched layer, and the gradients of what came out."""

    def __init__(self, layers: Sequence[WatchedLayer], *, rows: int) -> None:
        self._layers = layers
        self._rows = rows
        self._seen: dict[str, list[_Seen]] = {}
        self._anchor = torch.zeros((), requires_grad=True)
        self._running_backward = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within, layers are watched; after, all is as it was.

        Raises:
            PrivacyConfigError: a parameter took a gradient.
        """
        parameters = [p for layer in self._layers for p in layer.parameters.values()]
        before = [parameter.grad for parameter in parameters]
        hooks: list[RemovableHandle] = []
        try:
            for parameter in parameters:
                parameter.grad = None
            for layer in self._layers:
                enter, leave = partial(self._enter, layer), partial(self._leave, layer)
                hooks.append(layer.module.register_forward_pre_hook(enter))
                hooks.append(layer.module.register_forward_hook(leave, with_kwargs=True))
            yield
            if any(parameter.grad is not None for parameter in parameters):
                raise _cannot("a parameter was used behind its layer's back")
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, gradient in zip(parameters, before, strict=True):
                parameter.requires_grad_(True)
                parameter.grad = gradient

    def backward(self, loss: Tensor) -> None:
        """Fill in the output gradients of the sum of `loss`; it may depend on no layer at all."""
        if not loss.requires_grad:
            return
        self._running_backward = True
        loss.sum().backward()  # type: ignore[no-untyped-call]

    def _enter(self, layer: WatchedLayer, module: nn.Module, args: object) -> None:  # noqa: ARG002
        for parameter in layer.parameters.values():
            parameter.requires_grad_(False)

    def _leave(
        self,
        layer: WatchedLayer,
        module: nn.Module,  # noqa: ARG002
        args: tuple[object, ...],
        kwargs: dict[str, object],
        out: object,
    ) -> object:
        """Keep the call; the result, which takes a gradient from here on at the latest."""
        if torch.is_grad_enabled():
            out = self._keep(layer, args, kwargs, out)
        # Not before: a result that is a view of a parameter would begin to take its gradient.
        for parameter in layer.parameters.values():
            parameter.requires_grad_(True)
        return out

    def _keep(
        self, layer: WatchedLayer, args: tuple[object, ...], kwargs: dict[str, object], out: object
    ) -> object:
        if self._running_backward:
            raise _cannot("a layer was called in the backward pass, as checkpointing does")
        if layer.is_called_again:
            arguments, structure = tree_flatten((args, kwargs))
            out = tree_map(self._with_gradient, out)
            results = tensors_of(out)
            rows = results
        else:
            arguments, structure = [*args, *kwargs.values()], None
            out = self._with_gradient(out)
            results = [out] if isinstance(out, Tensor) else []
            rows = [value for value in [*arguments, *results] if isinstance(value, Tensor)]
            if len(rows) != 2 or len(arguments) != 1:
                raise _cannot("a layer was called with something else than one tensor")
        if not rows or any(tensor.shape[:1] != (self._rows,) for tensor in rows):
            raise _cannot("a layer was called with rows that are not the units of the batch")
        kept = [value.detach() if isinstance(value, Tensor) else value for value in arguments]
        seen = _Seen(kept, _versions(kept), [None] * len(results), structure)
        if layer.is_called_again:
            seen.results = [result.detach().clone() for result in results]
        self._seen.setdefault(layer.name, []).append(seen)
        for place, result in enumerate(results):
            result.register_hook(partial(self._reached, seen, place))  # type: ignore[no-untyped-call]
        return out

    def _with_gradient(self, result: object) -> object:
        """The same, in a graph: nothing before the first layers takes a gradient."""
        if not isinstance(result, Tensor) or not result.is_floating_point() or result.requires_grad:
            return result
        # Perhaps of a parameter, or one itself, which is not to change.
        if result._is_view() or isinstance(result, nn.Parameter):
            result = result.clone()
        marked: Tensor = _Source.apply(result, self._anchor)  # type: ignore[no-untyped-call]
        return marked

    def _reached(self, seen: _Seen, place: int, gradient: Tensor) -> None:
        if not self._running_backward or seen.gradients[place] is not None:
            raise _cannot("the objective runs a backward pass of its own")
        seen.gradients[place] = gradient.detach()

    def pairs(self, used: Tensor, count: int) -> list[LayerPairs]:
        """What was kept of the first `count` units; rows not in `used` [places, R] are zeros.

        All `places` are worked on, for a unit's rows not to depend on how many there are.
        """
        found: list[LayerPairs] = []
        for layer in reversed(self._layers):
            seen = [one for one in self._seen.pop(layer.name, []) if one.is_reached()]
            if seen:
                pairs = _pairs_of(layer, seen, used)
                found.append(pairs if count == len(used) else pairs.of_units(slice(count)))
        return merged(found)


def _pairs_of(layer: WatchedLayer, seen: list[_Seen], used: Tensor) -> LayerPairs:
    if layer.rule is not None:
        calls = [
            Call(_of_units(one.arguments[0], used), _of_units(one.gradients[0], used))
            for one in seen
        ]
        return layer.rule(layer.module, calls)
    form = vmapped_rows if layer.is_called_again else sampled_rows
    rows: dict[nn.Parameter, Tensor] = {}
    for one in seen:
        call = LayerCall(one.arguments, one.structure, one.results, one.gradients)
        for parameter, formed in form(layer.module, layer.parameters, call).items():
            rows[parameter] = rows[parameter] + formed if parameter in rows else formed
    return RowPairs.of({p: _of_units(formed, used).sum(dim=1) for p, formed in rows.items()})


def _of_units(rows: object, used: Tensor) -> Tensor:
    """Rows [B, ...] as [places, R, ...]; those that are not `used` [places, R] are zeros."""
    if not isinstance(rows, Tensor):
        raise TypeError("a call that the loss reaches has one input and one gradient")
    grid = rows.reshape(*used.shape, *rows.shape[1:])
    if used.shape[1] == 1:
        return grid
    mask = used.view(*used.shape, *[1] * (grid.dim() - 2))
    return torch.where(mask, grid, torch.zeros_like(grid))  # not multiplied: 0·NaN is NaN


def _cannot(why: str) -> PrivacyConfigError:
    return PrivacyConfigError(
        "per-unit gradients cannot be formed",
        why=why,
        fix="call every layer with one row a unit, as often as needed, and leave gradients to "
        "the site; or use PerUnitGradients",
    )
