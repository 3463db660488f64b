"""Clipping: what bounds the influence of one unit on a sum.

A row is everything that one unit contributes: its gradient with respect to all trained
parameters, in whatever pieces it comes. Rows that are not finite contribute nothing; they
are taken out before any arithmetic, because 0·NaN is NaN.

Norms and sums are computed in float64. A float32 gradient never overflows there; a float64
row is scaled by its largest entry first, so that its squares do not overflow either.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tacit_common.errors import PrivacyConfigError

_BLOCK = 1 << 18  # entries converted to float64 at a time: 2 MB, which the L2 cache holds


def clip_factors(norms: Tensor, l2_clip_norm: float) -> Tensor:
    """The factor for each row, [B], from the L2 norms of the rows [B]: min(1, C / norm).

    Guarantees: factor · norm is at most `l2_clip_norm` up to rounding; 1 for a zero row; 0
    for a norm that is not finite (whose row the caller must replace by zero, not multiply).

    Raises:
        PrivacyConfigError: the clip norm is not positive and finite.
    """
    _check(l2_clip_norm)
    return _weights(norms, torch.ones_like(norms), l2_clip_norm)


def clip_rows(rows: Tensor, l2_clip_norm: float) -> Tensor:
    """Scale each row of `rows` [B, P] to L2 norm at most `l2_clip_norm`.

    Guarantees: norms are at most `l2_clip_norm` up to rounding in the rows' own type
    (1e-12 relative for float64, 1e-7 for float32); rows within the bound are unchanged; a
    row that is not finite becomes zero; the result has the type of `rows`.

    Raises:
        PrivacyConfigError: the clip norm is not positive and finite.
    """
    _check(l2_clip_norm)
    scale = _row_scale([rows])
    norms = _scaled_norms([rows], scale)
    kept = torch.isfinite(norms)
    weights = _weights(norms, scale, l2_clip_norm)
    clipped = torch.zeros(rows.shape, dtype=torch.float64, device=rows.device)
    clipped[kept] = rows[kept].double() / scale[kept, None] * weights[kept, None]
    return clipped.to(rows.dtype)


def clipped_sum(per_example: Sequence[Tensor], l2_clip_norm: float) -> Tensor:
    """Sum of clipped rows, float64 [P], from the pieces of each row, [B, ...] each.

    A row is clipped by its joint norm over all pieces; the result holds the pieces in the
    order given, each flattened. B may be 0.

    Guarantees: adding, removing or zeroing one row changes the sum by at most
    `l2_clip_norm` in L2 norm, up to the rounding of float64; a row that is not finite
    contributes exactly zero; rows within the bound contribute themselves.

    Why the influence is bounded in floats too. The computed norm is off by at most P·2⁻⁵³
    relative, the factor and each product by 2⁻⁵³, so a clipped row has norm at most
    C·(1 + 1e-9) even at P = 10⁷ in the worst case, and C·(1 + 1e-12) in practice. Summing b
    rows in any order adds at most b²·2⁻⁵³·C. `CompensatedSum` says what n rows over many calls
    come to; `LatticeGaussian` adds 2⁻²⁰·C to the sensitivity for both.

    Raises:
        PrivacyConfigError: the clip norm is not positive and finite, or the pieces do not
            hold the same number of rows.
    """
    return _sum_of_clipped(per_example, None, l2_clip_norm)


def weighted_clipped_sum(
    per_example: Sequence[Tensor], row_weights: Tensor, l2_clip_norm: float
) -> Tensor:
    """Sum over rows of `row_weights` [B] times the clipped row, float64 [P].

    Rows and the result are as in `clipped_sum`; weights are applied after clipping.

    Guarantees: with row i's weight changed by d_i, or the row itself replaced, the sum
    changes by at most |d_i|·C, or 2|w_i|·C, in L2 norm, up to the rounding of float64; a row
    that is not finite contributes exactly zero; weights of one give `clipped_sum`.

    In floats, b rows with weights of absolute sum W add at most b·W·2⁻⁵³·C: what
    `clipped_sum` says of W rows.

    Raises:
        PrivacyConfigError: as `clipped_sum`, or there is not one finite weight for each row.
    """
    return _sum_of_clipped(per_example, row_weights, l2_clip_norm)


def _sum_of_clipped(
    per_example: Sequence[Tensor], row_weights: Tensor | None, l2_clip_norm: float
) -> Tensor:
    _check(l2_clip_norm)
    pieces = [_two_dimensional(piece.detach()) for piece in per_example]
    counts = {len(piece) for piece in pieces}
    if len(counts) != 1:
        raise PrivacyConfigError(
            "per-example gradients do not belong together",
            why="there are none, or their pieces hold different numbers of rows",
            fix="every trained parameter must give one gradient row for each unit of the batch",
        )
    scale = _row_scale(pieces)
    norms = _scaled_norms(pieces, scale)
    weights = _weights(norms, scale, l2_clip_norm)
    if row_weights is not None:
        _check_weights(row_weights, len(norms))
        weights = weights * row_weights.to(weights)
    kept = torch.isfinite(norms)
    if not bool(kept.all()):  # the slow path: copies what is left
        pieces = [piece[kept] for piece in pieces]
        scale, weights = scale[kept], weights[kept]
    total = torch.empty(sum(p.shape[1] for p in pieces), dtype=torch.float64, device=weights.device)
    offset = 0
    for piece in pieces:
        for block in _float64_blocks(piece, scale):  # [B, columns]
            torch.mv(block.t(), weights, out=total[offset : offset + block.shape[1]])
            offset += block.shape[1]
    return total


MOST_ROWS = 1 << 30
"""Rows of a whole sum times rows of one call, up to which 2⁻²⁰·C covers all rounding."""


class CompensatedSum:
    """A sum of float64 vectors [P] that keeps what each addition rounds away (Knuth's TwoSum).

    Guarantees: n rows of norm at most C, summed b at a time by `clipped_sum` and then here,
    differ from their true sum by at most n·b·2⁻⁵³·C + n·2⁻⁵²·C: each call adds b²·2⁻⁵³·C,
    there are n/b of them, and adding them up loses a last bit of the result alone. With
    n·b ≤ 2³⁰ that is below 2⁻²¹·C, so two neighbouring sums are off by less than 2⁻²⁰·C.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sum: Tensor | None = None
        self._lost: Tensor | None = None

    def add(self, part: Tensor) -> None:
        """Add a vector [P], float64 on the CPU; it is taken over and must not be changed later."""
        if self._sum is None:
            self._sum = part
            return
        if self._lost is None:
            self._lost = torch.zeros_like(part)
        for start in range(0, len(part), _BLOCK):  # what fits the cache is added fastest
            block = slice(start, start + _BLOCK)
            old, added = self._sum[block], part[block]
            new = old + added
            arrived = new - old
            self._lost[block] += (old - (new - arrived)) + (added - arrived)
            old.copy_(new)

    @property
    def value(self) -> Tensor:
        """The sum so far, [P]."""
        if self._sum is None:
            return torch.zeros(self._size, dtype=torch.float64)
        return self._sum if self._lost is None else self._sum + self._lost


def _check(l2_clip_norm: float) -> None:
    if not (math.isfinite(l2_clip_norm) and l2_clip_norm > 0):
        raise PrivacyConfigError(
            f"l2_clip_norm {l2_clip_norm} bounds nothing",
            why="it is the largest L2 norm that one unit may contribute",
            fix="give a positive, finite number",
        )


def _check_weights(row_weights: Tensor, rows: int) -> None:
    if row_weights.shape != (rows,) or not bool(row_weights.isfinite().all()):
        raise PrivacyConfigError(
            "the weights of clipped gradients cannot be used",
            why="there is not one finite weight for each row",
            fix="give a vector with as many finite entries as there are rows",
        )


def _two_dimensional(piece: Tensor) -> Tensor:
    return piece[:, None] if piece.dim() == 1 else piece.flatten(1)


def _row_scale(pieces: Sequence[Tensor]) -> Tensor:
    """What each row is divided by before its squares are summed, float64 [B].

    For rows with a float64 piece, the power of two below the largest magnitude, so that
    dividing is exact; 1 for all other rows, for zero rows and for rows that are not finite.
    """
    ones = torch.ones(len(pieces[0]), dtype=torch.float64, device=pieces[0].device)
    if all(piece.dtype != torch.float64 or piece.shape[1] == 0 for piece in pieces):
        return ones
    maxima = [piece.abs().amax(dim=1).double() for piece in pieces if piece.shape[1]]
    largest = torch.stack(maxima).amax(dim=0)
    mantissa, _ = torch.frexp(largest)  # largest = mantissa · 2^exponent, mantissa in [½, 1)
    ordinary = torch.isfinite(largest) & (largest > 0)
    return torch.where(ordinary, largest / (2.0 * mantissa), ones)


def _scaled_norms(pieces: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Joint L2 norm of each row over its scale, float64 [B]."""
    squares = torch.zeros_like(scale)
    for piece in pieces:
        for block in _float64_blocks(piece, scale):
            squares += torch.linalg.vecdot(block, block)
    return squares.sqrt_()


def _weights(scaled_norms: Tensor, scale: Tensor, l2_clip_norm: float) -> Tensor:
    """What to multiply row / scale by, [B]: min(scale, C / scaled norm), 0 if not finite."""
    weights = torch.minimum(l2_clip_norm / scaled_norms, scale)  # C/0 is infinite
    return torch.where(torch.isfinite(scaled_norms), weights, 0.0)


def _float64_blocks(piece: Tensor, scale: Tensor) -> Iterator[Tensor]:
    """`piece` [B, p] divided by `scale` [B], in float64, some columns at a time.

    Each block is valid until the next: they share one buffer.
    """
    rows, columns = piece.shape
    scaled = bool((scale != 1).any())
    width = max(1, min(columns, _BLOCK // max(rows, 1)))
    buffer = torch.empty(rows, width, dtype=torch.float64, device=piece.device)
    for start in range(0, columns, width):
        part = piece[:, start : start + width]
        block = buffer[:, : part.shape[1]]
        block.copy_(part)
        if scaled:
            block /= scale[:, None]
        yield block
