"""Everything that an object remembers, by name: to see what a call changed, and what a check saw.

Parameters and buffers are only part of what a module or an objective can remember: a queue
of keys is as well kept in a plain list, in a closure or on the class.
"""

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

# Torch's own book-keeping of a module; its tensors and children are visited by name.
_MODULE_KEYS = frozenset(vars(nn.Module())) - {"training"}
# Classes whose own attributes say nothing of the object.
_FOREIGN = frozenset({"abc", "builtins", "collections", "enum", "pydantic", "torch", "typing"})
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def reachable(name: str, root: object) -> Iterator[tuple[str, object]]:
    """Every leaf that can be reached from `root`, with its path: tensors, arrays, plain values.

    Follows containers, attributes, class attributes, closures, bound methods and partials.
    What is reached a second time is a leaf that names the first path.
    """
    seen: dict[int, str] = {}
    alive: list[object] = []  # numbers in `seen` must not be given to a new object
    stack = [(name, root)]
    while stack:
        path, value = stack.pop()
        if not isinstance(value, (*_PLAIN, Tensor)):
            if id(value) in seen:
                yield path, f"the same as {seen[id(value)]}"
                continue
            seen[id(value)] = path
            alive.append(value)
        parts = _parts(value)
        if parts is None:
            yield path, value
        else:
            stack.extend((path + step, part) for step, part in reversed(parts))


def state_of(name: str, root: object) -> dict[str, str]:
    """A digest of every leaf, by path: equal before and after a call that remembered nothing.

    A value that cannot be looked into counts by its `repr`.
    """
    return {path: _digest(leaf) for path, leaf in reachable(name, root)}


def _parts(value: object) -> list[tuple[str, object]] | None:
    """The parts of a value, each with its step of the path; None for a leaf."""
    if isinstance(value, (*_PLAIN, Tensor, np.ndarray, type, ModuleType)):
        return None
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [(f"[{index}]", part) for index, part in enumerate(value)] or None
    if isinstance(value, (set, frozenset)):
        return [(f"[{index}]", part) for index, part in enumerate(sorted(value, key=repr))] or None
    if isinstance(value, FunctionType):
        return _captured(value)
    if isinstance(value, MethodType):
        return [("", value.__self__), ("()", value.__func__)]
    if isinstance(value, partial):
        return [("()", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, (torch.Generator, random.Random, np.random.Generator)):
        return None
    return _attributes(value)


def _captured(function: FunctionType) -> list[tuple[str, object]]:
    """What a function is and remembers: code, defaults, variables of the function around it."""
    constants = [x for x in function.__code__.co_consts if isinstance(x, _PLAIN)]
    captured: list[tuple[str, object]] = [
        ("()", function.__code__.co_code),
        (".constants", constants),
        (".__defaults__", function.__defaults__),
        (".__kwdefaults__", function.__kwdefaults__),
        (".__dict__", function.__dict__),
    ]
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a variable that has no value yet
            captured.append((f".{name}", cell.cell_contents))
    return captured


def _attributes(value: object) -> list[tuple[str, object]] | None:
    """What an object holds, and what its class holds for it."""
    held: dict[str, object] = {}
    slots: list[str] = []
    for cls in reversed(type(value).__mro__):
        if cls.__module__.partition(".")[0] not in _FOREIGN:
            held.update(
                {key: part for key, part in vars(cls).items() if _is_data_of_class(key, part)}
            )
        named = vars(cls).get("__slots__", ())
        slots += [named] if isinstance(named, str) else named
    own = getattr(value, "__dict__", None)
    if own is None and not slots:
        return None
    held.update({slot: getattr(value, slot) for slot in slots if hasattr(value, slot)})
    held.update(own or {})
    if isinstance(value, nn.Module):
        own_parts = (value._parameters, value._buffers, value._modules)
        held = {key: part for key, part in held.items() if key not in _MODULE_KEYS}
        held.update({key: part for parts in own_parts for key, part in parts.items()})
    return [("", type(value)), *((f".{key}", part) for key, part in held.items())]


def _is_data_of_class(key: str, value: object) -> bool:
    """Not a method, a property, a slot, or Python's own book-keeping."""
    own = key.startswith(("__", "_abc_", "_is_protocol", "_is_runtime"))
    return not own and not hasattr(type(value), "__get__")


def _digest(leaf: object) -> str:
    if isinstance(leaf, Tensor):
        kept = leaf.detach().cpu().contiguous()
        return f"{kept.dtype} {tuple(kept.shape)} {_sha256(_bytes(kept))}"
    if isinstance(leaf, np.ndarray):
        return f"{leaf.dtype} {leaf.shape} {_sha256(leaf.tobytes())}"
    if isinstance(leaf, torch.Generator):
        return _sha256(_bytes(leaf.get_state()))
    if isinstance(leaf, random.Random):
        return repr(leaf.getstate())
    if isinstance(leaf, np.random.Generator):
        return repr(leaf.bit_generator.state)
    return repr(leaf)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
