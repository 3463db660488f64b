"""From what a layer did in one pass to its pairs: one rule for each kind of layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_client.layer_pairs import GhostPairs, LayerPairs, RowPairs, TablePairs


@dataclass(frozen=True)
class Call:
    """What went into a layer and the gradient of what came out, [U, R, ...], R rows a unit.

    Unused rows and padding units have zero gradients.
    """

    input: Tensor
    gradient: Tensor


MakePairs = Callable[[nn.Module, Sequence[Call]], LayerPairs]


def trained(layer: nn.Module, name: str) -> nn.Parameter | None:
    """The layer's parameter of that name, if it has one and trains it."""
    found = layer._parameters.get(name)
    return found if found is not None and found.requires_grad else None


def linear_pairs(layer: nn.Module, calls: Sequence[Call]) -> LayerPairs:
    """Pairs of an `nn.Linear`: everything between unit and features is one long sequence."""
    inputs = [_sequence(call.input) for call in calls]
    gradients = [_sequence(call.gradient) for call in calls]
    return _pairs_of_sequences(layer, _joined(inputs, dim=2), _joined(gradients, dim=2))


def _sequence(values: Tensor) -> Tensor:
    """[U, R, ..., d] as [1, U, T, d]."""
    return values.reshape(1, len(values), -1, values.shape[-1])


def _pairs_of_sequences(layer: nn.Module, inputs: Tensor, gradients: Tensor) -> LayerPairs:
    """From inputs [G, U, T, d], gradients [G, U, T, p]: formed where that takes no more memory.

    It takes no more multiplications then either: T²(d + p) ≥ T·d·p.
    """
    (groups, units, length, d), p = inputs.shape, gradients.shape[-1]
    weight, bias = trained(layer, "weight"), trained(layer, "bias")
    if weight is not None and d * p > length * (d + p):
        return GhostPairs(inputs, gradients, weight, bias)
    rows = {}
    if weight is not None:
        a, g = _at_least_float32(inputs).flatten(0, 1), _at_least_float32(gradients).flatten(0, 1)
        formed = torch.bmm(g.mT, a).view(groups, units, p, d).transpose(0, 1)
        rows[weight] = formed.reshape(units, *weight.shape)
    if bias is not None:
        summed = _at_least_float32(gradients).sum(dim=2)  # [G, U, p]
        rows[bias] = summed.transpose(0, 1).reshape(units, -1)
    return RowPairs.of(rows)


def convolution_pairs(layer: nn.Module, calls: Sequence[Call]) -> LayerPairs:
    """Pairs of an `nn.Conv1d` or `nn.Conv2d`: a linear layer on patches of its input."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        raise TypeError(f"{type(layer).__name__} is no convolution")
    inputs, gradients = [], []
    for call in calls:
        units, rows = call.input.shape[:2]
        patches = _patches(layer, call.input.flatten(0, 1))
        patches = patches.view(units, rows, *patches.shape[1:])
        # [U, R, G, d, L] -> [G, U, R·L, d]
        inputs.append(patches.permute(2, 0, 1, 4, 3).flatten(2, 3))
        # [U, R, G, p, L] -> [G, U, R·L, p]
        by_group = call.gradient.reshape(units, rows, layer.groups, -1, patches.shape[-1])
        gradients.append(by_group.permute(2, 0, 1, 4, 3).flatten(2, 3))
    return _pairs_of_sequences(layer, _joined(inputs, dim=2), _joined(gradients, dim=2))


def _patches(layer: nn.Conv1d | nn.Conv2d, images: Tensor) -> Tensor:
    """What each output of a group sees, [B, G, d, L], in the order of the weight's entries."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(images, layer._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
    if isinstance(layer, nn.Conv1d):
        padded = padded.unsqueeze(2)
        kernel, dilation, stride = (1, *kernel), (1, *dilation), (1, *stride)
    columns = F.unfold(padded, kernel, dilation=dilation, stride=stride)  # [B, C·k, L]
    return columns.view(len(columns), layer.groups, -1, columns.shape[-1])


def layer_norm_pairs(layer: nn.Module, calls: Sequence[Call]) -> LayerPairs:
    """The gradients of an `nn.LayerNorm`, from its input normalised once more."""
    if not isinstance(layer, nn.LayerNorm):
        raise TypeError(f"{type(layer).__name__} is no layer norm")
    shape = layer.normalized_shape

    def normalised(a: Tensor) -> Tensor:
        return F.layer_norm(a, shape, eps=layer.eps)

    def sum_between(values: Tensor) -> Tensor:
        return values.reshape(len(values), -1, *shape).sum(dim=1)

    return _rows_of_norm(layer, calls, normalised, sum_between)


def group_norm_pairs(layer: nn.Module, calls: Sequence[Call]) -> LayerPairs:
    """The gradients of an `nn.GroupNorm`, from its input normalised once more."""
    if not isinstance(layer, nn.GroupNorm):
        raise TypeError(f"{type(layer).__name__} is no group norm")

    def normalised(a: Tensor) -> Tensor:
        rows = a.flatten(0, 1)
        return F.group_norm(rows, layer.num_groups, eps=layer.eps).view_as(a)

    def sum_between(values: Tensor) -> Tensor:  # [U, R, C, ...] -> [U, C]
        return values.flatten(3).sum(dim=(1, 3)) if values.dim() > 3 else values.sum(dim=1)

    return _rows_of_norm(layer, calls, normalised, sum_between)


def _rows_of_norm(
    layer: nn.Module,
    calls: Sequence[Call],
    normalised: Callable[[Tensor], Tensor],
    sum_between: Callable[[Tensor], Tensor],
) -> RowPairs:
    rows = {}
    weight, bias = trained(layer, "weight"), trained(layer, "bias")
    if weight is not None:
        parts = [
            sum_between(normalised(_at_least_float32(call.input)) * call.gradient) for call in calls
        ]
        rows[weight] = _added_up(parts)
    if bias is not None:
        rows[bias] = _added_up([sum_between(_at_least_float32(call.gradient)) for call in calls])
    return RowPairs.of(rows)


def embedding_pairs(layer: nn.Module, calls: Sequence[Call]) -> LayerPairs:
    """Pairs of an `nn.Embedding`: gradients of one row of the table, added up within a unit."""
    if not isinstance(layer, nn.Embedding):
        raise TypeError(f"{type(layer).__name__} is no embedding")
    units, size = len(calls[0].input), layer.num_embeddings
    table = trained(layer, "weight")
    if table is None:
        raise AssertionError("a layer without trained parameters is not watched")
    rows = _joined([call.input.flatten(1) for call in calls], dim=1)  # [U, T]
    parts = [call.gradient.reshape(units, -1, call.gradient.shape[-1]) for call in calls]
    gradients = _joined(parts, dim=1).double()  # [U, T, d]
    if layer.padding_idx is not None:
        gradients = gradients.masked_fill((rows == layer.padding_idx)[..., None], 0.0)
    owners = torch.arange(units, device=rows.device)[:, None].expand_as(rows)
    keys, place = torch.unique(owners * size + rows, return_inverse=True)  # [S], [U, T]
    sums = gradients.new_zeros(len(keys), gradients.shape[-1])
    sums.index_add_(0, place.flatten(), gradients.flatten(0, 1))
    terms = torch.linalg.vector_norm(gradients, dim=-1).sum(dim=1).square_()
    return TablePairs(table, keys % size, keys // size, sums, terms)


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _added_up(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


def _joined(parts: Sequence[Tensor], *, dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=dim)


PAIRS_OF: dict[type[nn.Module], MakePairs] = {
    nn.Linear: linear_pairs,
    nn.Conv1d: convolution_pairs,
    nn.Conv2d: convolution_pairs,
    nn.LayerNorm: layer_norm_pairs,
    nn.GroupNorm: group_norm_pairs,
    nn.Embedding: embedding_pairs,
}
"""Layers with a rule. Subclasses may do otherwise."""
