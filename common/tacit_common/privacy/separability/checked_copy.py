"""What a check works on: a model and an objective in float64, off to the side."""

import copy
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.privacy.separability.object_state import reachable, state_of
from tacit_common.privacy.separability.violation import Clause, Violation
from tacit_common.training import seeded_generator

JITTER_STDDEV = 0.02  # on every parameter: a layer that starts at zero hides what is behind it


class CheckedCopy:
    """A copy of a model and its objective, which may hold parts of each other.

    Every tensor is on the CPU, floats are float64, and parameters lie a little off where they
    were. Separability is a matter of the function, so any parameters will do.
    """

    def __init__(self, model: PretrainModel, objective: Objective) -> None:
        self.model = model
        self.objective = objective

    @classmethod
    def of(cls, model: PretrainModel, objective: Objective) -> Self:
        """A first copy; the originals stay as they are."""
        generator = seeded_generator("jitter of a check")
        tensors: dict[int, object] = {}
        for _, leaf in reachable("", [model, objective]):
            if isinstance(leaf, Tensor) and id(leaf) not in tensors:
                tensors[id(leaf)] = _copied(leaf, generator)
        # Copied together, so that what both hold stays one thing.
        return copy.deepcopy(cls(model, objective), tensors)

    def twin(self) -> Self:
        """Another copy with the same values."""
        return copy.deepcopy(self)

    def loss(self, views: Views) -> Tensor:
        """Loss of every row, [B]."""
        return self.objective.loss(self.model, views)

    def memory(self, *, attributes: bool = True) -> dict[str, str]:
        """Digests of all that is remembered; of the model without `attributes`, tensors only.

        A gradient path keeps attributes of its own on the modules that it hooks.
        """
        named = dict([*self.model.named_parameters(), *self.model.named_buffers()])
        of_model = state_of("model", self.model if attributes else named)
        return of_model | state_of("objective", self.objective)


def memory_violations(before: dict[str, str], after: dict[str, str]) -> Iterator[Violation]:
    """What changed between two looks at `CheckedCopy.memory`."""
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    if changed:
        yield Violation(Clause.MEMORY, f"{min(changed)} changed")


def first_use_violations(checked: CheckedCopy, one: Tensor, other: Tensor) -> Iterator[Violation]:
    """What is kept of the first batch: two copies that began with other records must be equal.

    A constant that is made on first use is the same in both. A statistic of the first batch
    is not: in production that batch is private, and what it leaves reaches every later step.
    """
    memories = []
    for records in (one, other):
        twin = checked.twin()
        with torch.no_grad():
            twin.loss(twin.objective.views(records, seeded_generator("first use")))
        memories.append(twin.memory())
    before, after = memories
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    if changed:
        yield Violation(Clause.MEMORY, f"{min(changed)} depends on the records that came first")


def in_float64(records: Tensor) -> Tensor:
    """Records on the CPU; floats as float64, whole numbers as they are."""
    return records.cpu().double() if records.is_floating_point() else records.cpu()


def _copied(tensor: Tensor, generator: torch.Generator) -> Tensor:
    copied = in_float64(tensor.detach()).clone()
    if not isinstance(tensor, nn.Parameter):
        return copied
    if copied.is_floating_point():
        copied += JITTER_STDDEV * torch.randn(copied.shape, generator=generator, dtype=copied.dtype)
    return nn.Parameter(copied, requires_grad=tensor.requires_grad)
