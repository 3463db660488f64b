"""Whatever an object can remember shows in its state, by name; what it cannot does not."""

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tacit_common.privacy.separability.object_state import reachable, state_of


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1


class Everything:
    """One place of each kind in which a call can leave something."""

    on_the_class: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        self.number = 1
        self.tensor = torch.zeros(2)
        self.flags = torch.zeros(2, dtype=torch.bool)
        self.array = np.zeros(2)
        self.listed: list[int] = []
        self.queue: deque[Tensor] = deque([torch.zeros(1)])
        self.by_name = {"a": 1}
        self.names = {"a"}
        self.slots = Slots()
        self.torch_generator = torch.Generator().manual_seed(0)
        self.numpy_generator = np.random.default_rng(0)
        self.python_generator = random.Random(0)  # noqa: S311 - what an objective may hold
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.partial = partial(max, [0])
        self.function = counter()


def counter() -> Callable[[], int]:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


def fill(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.fill_(5)


CHANGES: dict[str, Callable[[Any], object]] = {
    "number": lambda x: setattr(x, "number", 2),
    "new": lambda x: setattr(x, "new", None),
    "tensor": lambda x: fill(x.tensor),
    "flags": lambda x: x.flags.fill_(True),
    "array": lambda x: x.array.fill(np.nan),
    "listed": lambda x: x.listed.append(1),
    "queue": lambda x: fill(x.queue[0]),
    "by_name": lambda x: x.by_name.update(b=2),
    "names": lambda x: x.names.add("b"),
    "slots.value": lambda x: setattr(x.slots, "value", 2),
    "torch_generator": lambda x: torch.rand(1, generator=x.torch_generator),
    "numpy_generator": lambda x: x.numpy_generator.random(),
    "python_generator": lambda x: x.python_generator.random(),
    "module.0.weight": lambda x: fill(x.module[0].weight),
    "module.1.running_mean": lambda x: fill(x.module[1].running_mean),
    "module.0.last": lambda x: setattr(x.module[0], "last", torch.ones(1)),
    "module.training": lambda x: x.module.eval(),
    "partial.args": lambda x: x.partial.args[0].append(1),
    "function.count": lambda x: x.function(),
    "on_the_class": lambda x: x.on_the_class.append(1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_is_remembered_shows_under_its_name(name: str) -> None:
    thing = Everything()
    before = state_of("thing", thing)
    assert state_of("thing", thing) == before  # looking leaves no trace
    CHANGES[name](thing)
    after = state_of("thing", thing)
    changed = [path for path in before | after if before.get(path) != after.get(path)]
    assert changed
    wanted = f"thing.{name}"
    assert any(path.startswith(wanted) for path in changed), changed
    Everything.on_the_class[:] = [0]


def test_a_forward_and_backward_pass_leaves_no_state_in_a_plain_module() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.GELU())
    before = state_of("module", module)
    module(torch.rand(2, 3)).sum().backward()
    assert state_of("module", module) == before


def test_two_equal_objects_have_one_state() -> None:
    assert state_of("thing", Everything()) == state_of("thing", Everything())


def test_an_object_that_holds_itself_has_an_end() -> None:
    thing = Everything()
    thing.itself = thing  # type: ignore[attr-defined]
    thing.listed.append(thing.listed)  # type: ignore[arg-type]
    assert state_of("thing", thing)["thing.itself"] == "'the same as thing'"


def test_which_of_two_parts_is_held_is_state() -> None:
    thing = Everything()
    thing.other = [1]  # type: ignore[attr-defined]
    thing.current = thing.listed  # type: ignore[attr-defined]
    before = state_of("thing", thing)
    thing.current = thing.other  # type: ignore[attr-defined]
    assert state_of("thing", thing) != before


def test_tensors_are_reached_as_they_are_not_as_copies() -> None:
    module = nn.Linear(2, 2)
    leaves = [leaf for _, leaf in reachable("module", {"again": [module], "bias": module.bias})]
    assert any(leaf is module.weight for leaf in leaves)
    assert sum(leaf is module.bias for leaf in leaves) == 2
