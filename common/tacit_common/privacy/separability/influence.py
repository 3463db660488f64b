"""Probes for what one unit of a batch does to the rows of the others.

A row is what one unit adds to a sum: its gradient, or its loss. If rows are separate,
row i is a function of unit i alone, and clipping it bounds what unit i does to the sum.
Probes work in float64, where rounding (1e-15) stays far below `TOLERANCE`.

Values and derivatives see different faults. A hard assignment (SwAV, routing by top-k) or
a count has a zero derivative and moves only by values; a faint coupling can vanish among
values and shows as a derivative that should be exactly zero.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tacit_common.objectives.contract import Objective, Views
from tacit_common.privacy.separability.violation import Clause, Violation
from tacit_common.training import seeded_generator

TOLERANCE = 1e-9  # of the largest entry of all rows
FRESH, TIMES_100, NAN = "fresh", "100 times as large", "NaN"

Rows = Sequence[Tensor]
"""Pieces [B, ...] of the rows of B units, for example one piece a parameter."""

Company = Sequence[int]
"""Units that meet in a batch, by their numbers in a pool."""


@dataclass(frozen=True)
class Pool:
    """Units to make companies of: 0 … size - 1 are at home, the others come in their place."""

    size: int
    strangers: Mapping[str, Sequence[int]]  # by kind, the stranger who takes the place of unit j

    def companies(self, touched: Sequence[int]) -> Iterator[tuple[Clause, str, Company]]:
        """Companies in which every unit that is at home must keep its row."""
        home = list(range(self.size))
        yield Clause.SAME, "after other inputs in between", home
        for j in touched:
            for kind, stranger in self.strangers.items():
                yield Clause.REPLACED, f"record {j} became {kind}", _with(home, j, stranger[j])
        for j in touched:
            yield Clause.REMOVED, f"without record {j}", [i for i in home if i != j]
        for i in touched:
            yield Clause.ALONE, f"record {i}", [i]
        for j in touched:
            neighbour = (j + 1) % self.size
            yield Clause.PERMUTED, f"record {neighbour} twice", _with(home, j, neighbour)
        yield Clause.PERMUTED, "in reverse", home[::-1]
        yield Clause.PERMUTED, "moved on by one", home[-1:] + home[:-1]


def row_violations(
    rows: Callable[[Company], Rows], pool: Pool, *, touched: Sequence[int]
) -> Iterator[Violation]:
    """Faults in `rows(company)`, the rows of the units that meet, found by values.

    `touched` are the units at home that are replaced, removed and taken alone.
    """
    home = list(range(pool.size))
    before = rows(home)
    if any(len(piece) != pool.size or not piece.isfinite().all() for piece in before):
        yield Violation(Clause.FINITE, "as the batch is")
        return
    largest = max((float(piece.abs().max()) for piece in before if piece.numel()), default=0.0)
    if largest == 0:
        yield Violation(Clause.DEPENDS, "every row is zero")
        return
    rows(list(pool.strangers[FRESH]))  # leaves a trace if there is a memory to leave it in
    for clause, detail, company in pool.companies(touched):
        if not _all_keep(rows(company), company, before, TOLERANCE * largest):
            yield Violation(clause, detail)


def views_pool(views: Views, fresh: Views, *, nan: bool = True) -> tuple[Pool, Views]:
    """A pool of rows of views, and the views of all of it.

    What has no larger value and no NaN, such as a token or a permutation, stays where its
    float views change.
    """
    size = len(views[0])
    blocks = {"home": views, FRESH: fresh}
    if any(view.is_floating_point() for view in views):
        blocks[TIMES_100] = tuple(v * 100 if v.is_floating_point() else v for v in views)
    if nan and TIMES_100 in blocks:
        blocks[NAN] = tuple(v * math.nan if v.is_floating_point() else v for v in views)
    starts = {kind: number * size for number, kind in enumerate(blocks)}
    strangers = {k: range(start, start + size) for k, start in starts.items() if start}
    return Pool(size, strangers), tuple(map(torch.cat, zip(*blocks.values(), strict=True)))


def views_of(pooled: Views, company: Company) -> Views:
    """The views of those that meet."""
    return tuple(view[list(company)] for view in pooled)


def derivative_violations(
    loss: Callable[[Views], Tensor], model: nn.Module, views: Views
) -> Iterator[Violation]:
    """Rows of the loss [B], B at least 3, that move along another unit's views: forward mode.

    Forward mode looks through `no_grad` too, where targets and assignments are made. Views of
    whole numbers have no derivative: there it starts where a layer looks them up.
    """
    size = len(views[0])
    for j in range(size):
        if _moves_others(loss, views, j):
            yield Violation(Clause.DERIVATIVE, f"along record {j}")
    if all(view.is_floating_point() for view in views):
        return
    for j in range(size - 1):
        # A public table that is looked up whole has one length; what follows units has theirs.
        if all(
            _moves_others(loss, views_of(views, range(count)), j, lookups_of=model)
            for count in (size, size - 1)
        ):
            yield Violation(Clause.DERIVATIVE, f"along what record {j} looks up")


def _moves_others(
    loss: Callable[[Views], Tensor], views: Views, j: int, *, lookups_of: nn.Module | None = None
) -> bool:
    """Whether a row other than j moves with the float views of unit j, or with its lookups."""
    size = len(views[0])
    generator = seeded_generator("derivative", j)
    with _forward_mode():
        if lookups_of is None:
            views = tuple(_move_row(v, j, generator) if v.is_floating_point() else v for v in views)
            derivative = _derivative_of(loss(views))
        else:
            with _moved_lookups(lookups_of, size, j, generator):
                derivative = _derivative_of(loss(views))
    others = [i for i in range(size) if i != j]
    return derivative is not None and bool((derivative[others] != 0).any())


def view_violations(
    objective: Objective, records: Tensor, *, touched: Sequence[int]
) -> Iterator[Violation]:
    """Views of a record that depend on other records, or on more than the generator.

    Views draw in the order of the batch, so the generator's state and the size of the batch
    are kept fixed.
    """

    def views(batch: Tensor) -> Views:
        return objective.views(batch.clone(), seeded_generator("views of a probe"))

    def keeps(batch: Tensor, kept: Sequence[int]) -> bool:
        return all(_equal(a[kept], b[kept]) for a, b in zip(before, views(batch), strict=True))

    everyone, fresh = range(len(records)), fresh_records(records)
    before = views(records)
    if not keeps(records, everyone):
        yield Violation(Clause.VIEWS_DRAWN, "two draws from one state differ")
        return
    views(fresh)
    if not keeps(records, everyone):
        yield Violation(Clause.SAME, "views, after other records in between")
    extremes = {FRESH: fresh}
    if records.is_floating_point():
        extremes |= {TIMES_100: records * 100, NAN: records * math.nan}
    for kind, strangers in extremes.items():
        for j in touched:
            changed = records.clone()
            changed[j] = strangers[j]
            if not keeps(changed, [i for i in everyone if i != j]):
                yield Violation(Clause.VIEWS_OWN, f"record {j} became {kind}")


def fresh_records(records: Tensor) -> Tensor:
    """Unrelated records of the same shape, type and range."""
    generator = seeded_generator("fresh records")
    if records.is_floating_point():
        low, high = float(records.min()), float(records.max())
        drawn = torch.rand(records.shape, generator=generator, dtype=records.dtype)
        return low + (high - low) * drawn
    entries = records.reshape(-1)
    return entries[torch.randperm(len(entries), generator=generator)].view_as(records)


@contextmanager
def _forward_mode() -> Iterator[None]:
    # The fused kernels of attention have no forward mode.
    with forward_mode.dual_level(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # Torch compiles some derivatives when they are first asked for.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        yield


def _with(company: Sequence[int], j: int, stranger: int) -> Company:
    return [*company[:j], stranger, *company[j + 1 :]]


def _all_keep(after: Rows, company: Company, before: Rows, tolerance: float) -> bool:
    """Whether every unit at home has the row that it had before."""
    size = len(before[0])
    places = [place for place, unit in enumerate(company) if unit < size]
    units = [company[place] for place in places]
    for new, old in zip(after, before, strict=True):
        if len(new) != len(company) or new.shape[1:] != old.shape[1:]:
            return False
        moved = (new[places] - old[units]).abs()
        if moved.numel() and not float(moved.max()) <= tolerance:  # NaN is no agreement
            return False
    return True


def _equal(a: Tensor, b: Tensor) -> bool:
    """Up to rounding; NaN is equal to NaN, as the view of a record that is not finite."""
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True
    )


def _move_row(values: Tensor, j: int, generator: torch.Generator) -> Tensor:
    """`values` [B, ...] as a dual number whose row j moves in a random direction."""
    direction = torch.zeros_like(values)
    direction[j] = torch.randn(values.shape[1:], generator=generator, dtype=values.dtype)
    moved: Tensor = forward_mode.make_dual(values, direction)  # type: ignore[no-untyped-call]
    return moved


def _derivative_of(values: Tensor) -> Tensor | None:
    """None stands for zero: nothing that moves was used."""
    derivative: Tensor | None = forward_mode.unpack_dual(values).tangent  # type: ignore[no-untyped-call]
    return derivative


@contextmanager
def _moved_lookups(
    model: nn.Module, size: int, j: int, generator: torch.Generator
) -> Iterator[None]:
    """Let row j of what layers look up for whole numbers move too."""

    def move(_: nn.Module, args: tuple[object, ...], out: object) -> object:
        tensors = [x for x in args if isinstance(x, Tensor)]
        looked_up = bool(tensors) and not any(x.is_floating_point() for x in tensors)
        if looked_up and isinstance(out, Tensor) and out.is_floating_point() and len(out) == size:
            return _move_row(out, j, generator)
        return out

    hooks = [module.register_forward_hook(move) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
