"""The check for objectives that couple the records of one unit: units must stay apart.

Where the unit is the subject, records of one subject may meet (docs/privacy.md 3). Their
gradient path gives a sum over units only, so what unit j adds is the sum less what the others
add when each of them is alone. If that is always the same, the sum is one of separate units.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.privacy.separability.checked_copy import (
    CheckedCopy,
    first_use_violations,
    in_float64,
    memory_violations,
)
from tacit_common.privacy.separability.influence import (
    FRESH,
    NAN,
    TIMES_100,
    TOLERANCE,
    Company,
    Pool,
    Rows,
    fresh_records,
    row_violations,
)
from tacit_common.privacy.separability.violation import Clause, Violation, refusing_errors
from tacit_common.training import seeded_generator

LEAST_UNITS = 3
LEAST_RECORDS_OF_UNIT = 2
UNCLIPPED = 1e30  # a clip norm that no gradient of a check reaches


class ClippedSums(Protocol):
    """A gradient path that gives the sum of units' clipped gradients."""

    def clipped_sum(
        self,
        units: Iterable[Tensor],
        generator: torch.Generator,
        *,
        l2_clip_norm: float,
        augmentations: int,
        physical_batch: int,
    ) -> Tensor:
        """The sum over units, each the tensor of its records [n, ...]: float64 [P]."""
        ...


ClippedSumPath = Callable[[PretrainModel, Objective], ClippedSums]


def check_units_separate(
    model: PretrainModel,
    objective: Objective,
    units: Sequence[Tensor],
    *,
    gradient_path: ClippedSumPath,
) -> None:
    """Refuse a path of clipped sums in which one unit reaches what another adds.

    What unit j adds must be a function of unit j alone, and no longer than the clip norm.
    `units` are at least three tensors of public or synthetic records [n, ...], n at least 2.
    Views are drawn by a seed that depends on the unit's records alone, so that sums over
    different units can be compared. Works on copies in float64.

    Raises:
        PrivacyConfigError: a clause is broken, or a probe cannot be run.
    """
    if len(units) < LEAST_UNITS or min(map(len, units)) < LEAST_RECORDS_OF_UNIT:
        raise ValueError(
            f"the check needs {LEAST_UNITS} units of {LEAST_RECORDS_OF_UNIT} records or more"
        )
    name = type(objective).__name__
    with refusing_errors(name), torch.random.fork_rng(devices=[]):
        checked = CheckedCopy.of(model, objective)
        path = gradient_path(checked.model, _ViewsOfContent(checked.objective))
        violation = next(_violations(checked, path, [in_float64(unit) for unit in units]), None)
    if violation:
        raise violation.refusal(name)


def _violations(
    checked: CheckedCopy, path: ClippedSums, units: Sequence[Tensor]
) -> Iterator[Violation]:
    unused = checked.twin()
    pool, pooled = _units_pool(units)

    def total(company: Company, l2_clip_norm: float = UNCLIPPED) -> Tensor:
        return path.clipped_sum(
            [pooled[unit] for unit in company],
            torch.Generator(),
            l2_clip_norm=l2_clip_norm,
            augmentations=1,
            physical_batch=max(map(len, pooled)),
        )

    alone = torch.stack([total([unit]) for unit in range(len(pooled))])
    before = checked.memory()  # a constant that is made on first use may stay

    def added(company: Company) -> Rows:
        """The sum less what the others add when they are alone: one piece [U, P]."""
        members = alone[list(company)]
        return [total(company) - (members.sum(dim=0) - members)]

    yield from row_violations(added, pool, touched=range(pool.size))

    bound = float(alone[: pool.size].norm(dim=1).max()) / 10
    for kind, company in {"as they are": range(pool.size), **pool.strangers}.items():
        whole = total(company, bound)
        rest = [total([u for u in company if u != left], bound) for left in company]
        if not float((whole - torch.stack(rest)).norm(dim=1).max()) <= bound * (1 + TOLERANCE):
            detail = f"with records {kind}, at a tenth of the longest gradient"
            yield Violation(Clause.BOUNDED, detail)
    yield from memory_violations(before, checked.memory())
    yield from first_use_violations(unused, units[0], fresh_records(units[0]))


def _units_pool(units: Sequence[Tensor]) -> tuple[Pool, list[Tensor]]:
    """A pool of units, and the records of all of it."""
    kinds = {FRESH: [fresh_records(unit) for unit in units]}
    if all(unit.is_floating_point() for unit in units):
        kinds[TIMES_100] = [unit * 100 for unit in units]
        kinds[NAN] = [unit * torch.nan for unit in units]
    pooled, strangers = list(units), {}
    for kind, came in kinds.items():
        strangers[kind] = range(len(pooled), len(pooled) + len(came))
        pooled += came
    return Pool(len(units), strangers), pooled


class _ViewsOfContent:
    """An objective whose views of a batch are drawn by a seed of the batch's content."""

    def __init__(self, objective: Objective) -> None:
        self.coupling = objective.coupling
        self._objective = objective

    def build_head(self, encoder: Encoder) -> nn.Module:
        return self._objective.build_head(encoder)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:  # noqa: ARG002
        digest = hashlib.sha256(batch.numpy().tobytes()).hexdigest()
        return self._objective.views(batch, seeded_generator(digest))

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self._objective.loss(model, views)
