"""Which objectives are legal under which privacy: separability (docs/privacy.md 3).

Differential privacy for records clips the gradient of each record. If the loss of one
record depends on others, no such gradient exists, and clipping what looks like one does
not bound what a record changes. An objective declares what it couples (`require_legal`),
and before the first round the declaration is checked by what the objective does, on the
encoder and the gradient path about to be used (`check_separable`).

The check finds faults; it proves nothing. A coupling that shows in none of its probes, for
example one that waits for a larger batch than the records it was given, stays unseen.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views
from tacit_common.privacy.separability.checked_copy import (
    CheckedCopy,
    first_use_violations,
    in_float64,
    memory_violations,
)
from tacit_common.privacy.separability.influence import (
    TOLERANCE,
    derivative_violations,
    fresh_records,
    row_violations,
    view_violations,
    views_of,
    views_pool,
)
from tacit_common.privacy.separability.violation import Clause, Violation, refusing_errors
from tacit_common.study import NoPrivacyPlan, PrivacyPlan
from tacit_common.training import seeded_generator, trained_parameters

LEAST_RECORDS = 4


class RowGradients(Protocol):
    """A gradient path that gives a gradient for each row, ready to be clipped."""

    def rows(self, views: Views) -> list[Tensor]:
        """One tensor [B, *shape] a parameter, in the order of `trained_parameters`."""
        ...


RowGradientPath = Callable[[PretrainModel, Objective], RowGradients]


def require_legal(coupling: Coupling, objective_name: str, privacy: PrivacyPlan) -> None:
    """Refuse an objective that couples what the plan protects one from another.

    Guarantees: returns only if the mode is `none`; or `coupling` is none; or records are
    coupled and the unit is the subject, whose records may meet; or they are coupled through
    similarities (Logit-DP) and the unit is the record.

    Raises:
        PrivacyConfigError: the objective has no gradient of a unit to clip.
    """
    if coupling is Coupling.NONE or isinstance(privacy, NoPrivacyPlan):
        return
    if coupling is Coupling.BATCH and privacy.records_per_subject == 1:
        raise PrivacyConfigError(
            f"objective '{objective_name}' has nothing to compare",
            why="it contrasts the records of one subject, and privacy.records_per_subject is 1",
            fix="set privacy.records_per_subject to 2 or more",
        )
    if (coupling, privacy.unit) in {(Coupling.BATCH, "subject"), (Coupling.LOGITS, "record")}:
        return
    if coupling is Coupling.LOGITS:
        raise PrivacyConfigError(
            f"objective '{objective_name}' bounds what one record changes, not one {privacy.unit}",
            why="its similarities are clipped one by one, and a subject takes part in several",
            fix="use unit 'record', or objective 'simclr' with unit 'subject', which contrasts "
            "the records of a subject with one another",
        )
    raise PrivacyConfigError(
        f"objective '{objective_name}' couples the examples of a batch",
        why=f"{privacy.unit}-level DP has no per-example gradient to clip",
        fix="use objective 'masked' or 'bank_contrast', whose loss of a record is its own, or "
        "unit 'subject' with in-subject contrast, or objective 'logit_dp', or mode 'none' where "
        "nothing has to be protected",
    )


def check_separable(
    model: PretrainModel,
    objective: Objective,
    records: Tensor,
    *,
    gradient_path: RowGradientPath,
) -> None:
    """Refuse an objective whose rows, as `gradient_path` forms them, are not separate.

    `model` is as it was built: no gradient path has its hooks on it yet. `records` [B, ...],
    B at least 4, are public or synthetic and have the shape of the study's records. The first
    four are probed by gradients, all of them by losses: with more records, a coupling is found
    that waits for a larger batch. Works on copies in float64; model and objective stay as
    they are.

    Raises:
        PrivacyConfigError: a clause is broken, or a probe cannot be run.
    """
    _require_enough(records)
    name = type(objective).__name__
    with refusing_errors(name):
        violation = find_violation(model, objective, records, gradient_path=gradient_path)
    if violation:
        raise violation.refusal(name)


def find_violation(
    model: PretrainModel,
    objective: Objective,
    records: Tensor,
    *,
    gradient_path: RowGradientPath,
    nan_gradients: bool = True,
) -> Violation | None:
    """The first clause that is broken, if any; arguments are those of `check_separable`.

    Without `nan_gradients` a record that is NaN is tried on losses alone: plain autograd, which
    no private run uses, multiplies it by another row's zero, and that is NaN.

    Errors of the model, the objective and the path are passed on as they are.
    """
    _require_enough(records)
    plain = CheckedCopy.of(model, objective)
    hooked = plain.twin()
    path = gradient_path(hooked.model, hooked.objective)
    with torch.random.fork_rng(devices=[]):
        return next(_violations(plain, hooked, path, in_float64(records), nan_gradients), None)


def _require_enough(records: Tensor) -> None:
    if len(records) < LEAST_RECORDS:
        raise ValueError(f"the check needs at least {LEAST_RECORDS} records")


def _violations(
    plain: CheckedCopy,
    hooked: CheckedCopy,
    path: RowGradients,
    records: Tensor,
    nan_gradients: bool,
) -> Iterator[Violation]:
    """One clause after the other; the next one is tried only if it is asked for."""
    probed = range(LEAST_RECORDS)
    unused = plain.twin()
    yield from view_violations(plain.objective, records[:LEAST_RECORDS], touched=probed)

    draw = seeded_generator("views of a check")
    views = plain.objective.views(records, draw)
    fresh = plain.objective.views(fresh_records(records), draw)
    few = views_of(views, probed)
    # A constant that is made on first use may stay: only what changes later is a memory.
    path.rows(few)
    with torch.no_grad():
        plain.loss(views)
    before = plain.memory(), hooked.memory(attributes=False)

    pool, pooled = views_pool(few, views_of(fresh, probed), nan=nan_gradients)
    yield from row_violations(
        lambda company: path.rows(views_of(pooled, company)), pool, touched=probed
    )
    yield from _total_violations(plain, path, few)

    pool, pooled = views_pool(views, fresh)
    sparse = sorted({0, len(records) // 2, len(records) - 1})
    with torch.no_grad():
        yield from row_violations(
            lambda company: [plain.loss(views_of(pooled, company))], pool, touched=sparse
        )
        yield from derivative_violations(plain.loss, plain.model, few)

    yield from memory_violations(before[0], plain.memory())
    yield from memory_violations(before[1], hooked.memory(attributes=False))
    yield from first_use_violations(unused, records, fresh_records(records))


def _total_violations(plain: CheckedCopy, path: RowGradients, views: Views) -> Iterator[Violation]:
    """Parameters whose rows do not add up to plain autograd's gradient: they bypass the clip."""
    names, parameters = zip(*trained_parameters(plain.model), strict=True)
    total = torch.autograd.grad(plain.loss(views).sum(), parameters, materialize_grads=True)
    sums = [rows.sum(dim=0) for rows in path.rows(views)]
    if [part.shape for part in sums] != [part.shape for part in total]:
        yield Violation(Clause.TOTAL, "the rows do not have the parameters' shapes")
        return
    largest = max(float(part.abs().max()) for part in (*total, *sums))
    for name, ours, true in zip(names, sums, total, strict=True):
        if not float((ours - true).abs().max()) <= TOLERANCE * largest:
            yield Violation(Clause.TOTAL, f"parameter '{name}'")
