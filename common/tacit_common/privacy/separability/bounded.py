"""The check in the types, sizes and place of production: one unit moves a clipped sum little.

Separability is checked in float64, where a fault cannot hide behind rounding. A coupling
that is there in float32 alone, on one device alone, or from a number of rows on, is seen
here: whatever a unit becomes, the clipped sum of production must move by no more than two
contributions, the old one and the new; and by one, if the new one has to be nothing.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tacit_common.privacy.separability.influence import (
    FRESH,
    NAN,
    TIMES_100,
    fresh_records,
)
from tacit_common.privacy.separability.units import UNCLIPPED, ClippedSums
from tacit_common.privacy.separability.violation import Clause, Violation, refusing_errors

_ROUNDING = 1e-3  # of float32 sums
_SHARE = 0.1  # clip norm over the length of a gradient: every gradient is clipped


def check_bounded(
    name: str,
    path: ClippedSums,
    units: Sequence[Tensor],
    *,
    sensitivity: float,
    physical_batch: int,
) -> None:
    """Refuse a path in which one unit moves the clipped sum by more than its share.

    `path` is as it would train, on a model of its own. `units` are public or synthetic, as
    many as one pass takes. `sensitivity` is what one unit may change at a clip norm of 1.

    Raises:
        PrivacyConfigError: one unit moves the sum by more, or a probe cannot be run.
    """

    def total(members: Sequence[Tensor], l2_clip_norm: float) -> Tensor:
        return path.clipped_sum(
            members,
            torch.Generator().manual_seed(0),  # the same views for the same places
            l2_clip_norm=l2_clip_norm,
            augmentations=1,
            physical_batch=physical_batch,
        )

    with refusing_errors(name):
        typical = float(total(units, UNCLIPPED).norm()) / len(units)
        if not (math.isfinite(typical) and typical > 0):
            raise Violation(Clause.DEPENDS, "in the types of production").refusal(name)
        bound = _SHARE * typical
        before = total(units, bound)
        for kind, stranger in _strangers(units[0]).items():
            moved = float((total([stranger, *units[1:]], bound) - before).norm())
            # One that is not finite contributes nothing: only the old contribution goes.
            contributions = 1 if kind == NAN else 2
            if not moved <= contributions * sensitivity * bound * (1 + _ROUNDING):
                detail = f"a unit that became {kind} moved it {moved / bound:.1f} clip norms"
                raise Violation(Clause.BOUNDED, detail).refusal(name)


def _strangers(unit: Tensor) -> dict[str, Tensor]:
    kinds = {FRESH: fresh_records(unit)}
    if unit.is_floating_point():
        kinds |= {TIMES_100: unit * 100, NAN: unit * torch.nan}
    return kinds
