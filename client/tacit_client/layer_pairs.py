"""What one layer did in one pass, and what that says of the gradient of every unit.

A layer that is linear in its parameters has, for unit i, the gradient Σ_t g_it ⊗ a_it: t runs
over everything that the unit sent through the layer (tokens, pixels, records, views, calls),
a is what went in and g the gradient of what came out. Its norm does not need the gradient:

    ‖Σ_t g_t a_tᵀ‖² = Σ_ts ⟨a_t, a_s⟩⟨g_t, g_s⟩        (Li et al. 2021, arXiv 2110.05679)

and a weighted sum over units is one product of matrices. Layers of the Book-Keeping
algorithm: Bu et al. 2022, arXiv 2210.00038. Where a gradient is no larger than its pairs, it
is formed instead.

Norms and sums are float64. Products of two float32 numbers are exact there, and the order in
which units are added up then matters as little as `GhostPairs.write_sum` says.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from tacit_common.errors import PrivacyConfigError

MOST_ROUNDINGS = 1 << 12
"""How many additions a term of `GhostPairs.write_sum` passes through at most."""

_UNIT_ROUNDING = 2.0**-53
_ENTRIES = 1 << 16  # that are converted at a time: 0.5 MB of float64, well within the L2 cache
_LEAST_TERMS = 512  # of a product of matrices, whose result has to be read and written once
_FEW = 1 << 12  # entries of a parameter whose rows are treated together with others


Sums = Mapping[nn.Parameter, Tensor]
"""Where the sum of a parameter's gradients goes: float64, in the parameter's shape."""


@dataclass(frozen=True)
class Norms:
    """Of the gradients of U units, float64 [U] both."""

    squares: Tensor
    """Squared L2 norms, never below the true ones: their rounding is added."""

    terms: Tensor
    """(Σ_t ‖g_t‖‖a_t‖)²: what the terms would come to if none cancelled another."""


class LayerPairs(Protocol):
    """What one layer, or several, did with U units."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """Those whose sums are written."""
        ...

    def norms(self) -> Norms:
        """Norms of the gradients, of all trained parameters together."""
        ...

    def of_units(self, kept: Tensor | slice) -> Self:
        """The same of the units `kept` alone: bool [U], or a slice."""
        ...

    def write_sum(self, weights: Tensor, sums: Sums) -> None:
        """Write Σ_i weights_i · gradient_i, weights float64 [U], where the sums are kept."""
        ...


@dataclass(frozen=True)
class GhostPairs:
    """Linear layers: inputs [G, U, T, d], gradients of the outputs [G, U, T, p].

    G counts the groups of a convolution. `bias` is None where there is none to train.
    """

    inputs: Tensor
    gradients: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weights and biases."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def norms(self) -> Norms:
        """By the Gram matrices.

        An inner product of d numbers is off by at most d roundings of ‖a_t‖‖a_s‖, and the sum
        over t and s by 2T more: relative to the terms, which is what is added.
        """
        groups, units, length, d = self.inputs.shape
        p = self.gradients.shape[-1]
        block = max(1, _ENTRIES // (groups * length * max(2 * length, d + p)))
        squares = torch.empty(groups, units, dtype=torch.float64, device=self.inputs.device)
        terms = torch.empty_like(squares)
        inputs, gradients = _Float64(self.inputs, block), _Float64(self.gradients, block)
        for few in _slices(units, block):
            a, g = inputs[few].flatten(0, 1), gradients[few].flatten(0, 1)  # [G·u, T, d or p]
            of_inputs, of_gradients = torch.bmm(a, a.mT), torch.bmm(g, g.mT)
            if self.bias is not None:
                of_inputs += 1.0  # a bias is a weight whose input is always one
            lengths = _diagonal(of_inputs).mul(_diagonal(of_gradients)).sqrt_()  # [G·u, T]
            terms[:, few] = lengths.sum(dim=-1).view(groups, -1)
            products = torch.linalg.vecdot(of_inputs, of_gradients)  # [G·u, T]
            squares[:, few] = products.sum(dim=-1).view(groups, -1)
        squared_terms = terms.square_().sum(dim=0)
        slack = (d + p + 2 * length + groups + 8) * _UNIT_ROUNDING
        squared = squares.sum(dim=0).clamp_(min=0).add_(squared_terms, alpha=slack)
        return Norms(squared, squared_terms)

    def of_units(self, kept: Tensor | slice) -> "GhostPairs":
        """Without the others: a view for a slice."""
        return GhostPairs(self.inputs[:, kept], self.gradients[:, kept], self.weight, self.bias)

    def write_sum(self, weights: Tensor, sums: Sums) -> None:
        """Products of matrices over units and tokens together, some units at a time.

        Guarantees: the sum is off by at most `MOST_ROUNDINGS` · 2⁻⁵³ · Σ_i w_i Σ_t ‖g_t‖‖a_t‖ in
        L2 norm, in whatever order a product adds up. A term is rounded when it is scaled and
        multiplied, when its product is added up, K terms at a time, and with each of the
        N/K products: K + N/K + 2 roundings, of which √N is the least.

        Raises:
            PrivacyConfigError: that many terms cannot be added up in as few roundings.
        """
        (groups, units, length, d), p = self.inputs.shape, self.gradients.shape[-1]
        terms = units * length
        block = max(1, max(_LEAST_TERMS, math.isqrt(terms)) // length)
        if block * length + -(-units // block) + 2 > MOST_ROUNDINGS:
            raise PrivacyConfigError(
                "the pass is too large for what rounding may change in a sum",
                why=f"a layer has {terms:,} rows in it",
                fix="lower physical_batch",
            )
        inputs, gradients = _Float64(self.inputs, block), _Float64(self.gradients, block)
        of_weight = _Products(sums[self.weight].view(groups, p, d))
        of_bias = None if self.bias is None else _Products(sums[self.bias].view(groups, 1, p))
        for few in _slices(units, block):
            a, g = inputs[few], gradients[few]  # [G, u, T, d] and [G, u, T, p]
            scale = weights[few, None, None]  # [u, 1, 1]
            if of_bias is not None:
                rows = scale.expand(-1, length, 1).reshape(1, 1, -1)  # [1, 1, u·T]
                of_bias.add_product(rows.expand(groups, -1, -1), g.flatten(1, 2))
            shorter = a if d <= p else g
            shorter *= scale
            of_weight.add_product(g.flatten(1, 2).mT, a.flatten(1, 2))


@dataclass(frozen=True)
class RowPairs:
    """Layers whose gradients were formed: rows [U, n] that hold some parameters' side by side.

    A row is a function of its unit alone, however it was rounded: all passes have one shape.
    """

    parameters: Sequence[nn.Parameter]
    rows: Tensor

    @property
    def is_small(self) -> bool:
        """Whether merging saves more than copying costs."""
        return self.rows.shape[1] <= _FEW

    @staticmethod
    def of(rows: Mapping[nn.Parameter, Tensor]) -> "RowPairs":
        """From rows [U, ...] of the shape of each parameter."""
        flat = [of_parameter.flatten(1) for of_parameter in rows.values()]
        return RowPairs(list(rows), flat[0] if len(flat) == 1 else torch.cat(flat, dim=1))

    @staticmethod
    def merged(pairs: "Sequence[RowPairs]") -> "RowPairs":
        """Those of several layers, in float64."""
        parameters = [parameter for one in pairs for parameter in one.parameters]
        return RowPairs(parameters, torch.cat([one.rows for one in pairs], dim=1).double())

    def norms(self) -> Norms:
        """Of vectors that are there already, so nothing cancels any more."""
        squares = torch.zeros(len(self.rows), dtype=torch.float64, device=self.rows.device)
        for _, block in self._blocks():
            squares += torch.linalg.vector_norm(block, dim=1).square_()
        return Norms(squares, squares)

    def of_units(self, kept: Tensor | slice) -> "RowPairs":
        """Without the others: a view for a slice."""
        return RowPairs(self.parameters, self.rows[kept])

    def write_sum(self, weights: Tensor, sums: Sums) -> None:
        """Products of a matrix and a vector: a number is rounded once for each of the U units."""
        alone = len(self.parameters) == 1
        total = (
            sums[self.parameters[0]].view(-1) if alone else weights.new_empty(self.rows.shape[1])
        )
        for few, block in self._blocks():
            torch.mv(block.t(), weights, out=total[few])
        if not alone:
            parts = torch.split(total, [parameter.numel() for parameter in self.parameters])
            for parameter, part in zip(self.parameters, parts, strict=True):
                sums[parameter].copy_(part.view(parameter.shape))

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Some columns after others in float64, [U, few]; each is valid until the next."""
        if self.rows.dtype == torch.float64:
            yield slice(0, self.rows.shape[1]), self.rows
            return
        width = max(1, _ENTRIES // max(1, len(self.rows)))
        columns = _Float64(self.rows, width)
        for few in _slices(self.rows.shape[1], width):
            yield few, columns[few]


@dataclass(frozen=True)
class TablePairs:
    """An embedding: for each unit the rows that it looked up, and their gradients.

    `rows` [S] are rows of the table, `owners` [S] the units that looked them up, each pair
    once; `gradients` float64 [S, d]; `terms` [U] as in `Norms`.
    """

    table: nn.Parameter
    rows: Tensor
    owners: Tensor
    gradients: Tensor
    terms: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The table."""
        return [self.table]

    def norms(self) -> Norms:
        """Different rows of a table are different parameters, so squares add up."""
        squares = torch.zeros_like(self.terms)
        squares.index_add_(0, self.owners, torch.linalg.vecdot(self.gradients, self.gradients))
        return Norms(squares, self.terms)

    def of_units(self, kept: Tensor | slice) -> "TablePairs":
        """A copy without the others, whose units are numbered anew."""
        if isinstance(kept, slice):
            units = torch.zeros(len(self.terms), dtype=torch.bool, device=self.terms.device)
            units[kept] = True
            kept = units
        stays = kept[self.owners]
        owners = (kept.cumsum(0) - 1)[self.owners[stays]]
        gradients = self.gradients[stays]
        return TablePairs(self.table, self.rows[stays], owners, gradients, self.terms[kept])

    def write_sum(self, weights: Tensor, sums: Sums) -> None:
        """Row by row of the table: a number is rounded once for each of the U units."""
        weighted = self.gradients * weights[self.owners, None]
        sums[self.table].zero_().index_add_(0, self.rows, weighted)


def merged(pairs: Sequence[LayerPairs]) -> list[LayerPairs]:
    """The same, small rows side by side: calling for each would cost more than computing."""
    small = [one for one in pairs if isinstance(one, RowPairs) and one.is_small]
    if not small:
        return list(pairs)
    others = [one for one in pairs if not (isinstance(one, RowPairs) and one.is_small)]
    return [*others, RowPairs.merged(small)]


class _Products:
    """A sum of products of matrices, each added up for itself before it is added.

    It is written to `value` [G, m, n].
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._part: Tensor | None = None
        self._begun = False

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add `left` [G, m, k] times `right` [G, k, n]."""
        if not self._begun:
            _multiply(left, right, self._value)
            self._begun = True
            return
        if self._part is None:
            self._part = torch.empty_like(self._value)
        self._value += _multiply(left, right, self._part)


def _multiply(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    if len(left) == 1:
        torch.mm(left[0], right[0], out=out[0])
        return out
    return torch.bmm(left, right, out=out)


class _Float64:
    """Slices along axis 1 in float64; each may be changed, and is valid until the next."""

    def __init__(self, values: Tensor, size: int) -> None:
        self._values = values
        few = values[:, :size]
        self._buffer = torch.empty(few.shape, dtype=torch.float64, device=values.device)

    def __getitem__(self, few: slice) -> Tensor:
        values = self._values[:, few]
        if values.shape != self._buffer.shape:  # the last: in a tensor of its own, to be dense
            return values.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
        return self._buffer.copy_(values)


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
