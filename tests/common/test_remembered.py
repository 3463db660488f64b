"""What is kept by identity is computed once an object, for no other object, and not for ever."""

import gc
import weakref

import numpy as np
import pytest

from tacit_common.messages import RoundPlan, parameters_sha256
from tacit_common.remembered import remembered
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY


class Thing:
    pass


def test_a_result_is_computed_once_for_each_of_the_newest_objects() -> None:
    asked: list[Thing] = []

    @remembered(kept=2)
    def number(thing: Thing) -> int:
        asked.append(thing)
        return len(asked)

    one, two, three = Thing(), Thing(), Thing()
    assert [number(one), number(two), number(one), number(two)] == [1, 2, 1, 2]
    assert [number(three), number(two), number(one)] == [3, 2, 4]  # the oldest was forgotten


def test_equal_objects_are_two_and_a_failure_is_not_kept() -> None:
    @remembered(kept=2)
    def first(items: list[int]) -> int:
        return items[0]

    assert (first([1]), first([2])) == (1, 2)
    items: list[int] = []
    with pytest.raises(IndexError):
        first(items)
    items.append(3)
    assert first(items) == 3


def test_what_is_forgotten_is_let_go() -> None:
    @remembered(kept=1)
    def name(thing: Thing) -> str:
        return type(thing).__name__

    thing = Thing()
    gone = weakref.ref(thing)
    name(thing)
    del thing
    assert gone() is not None  # so no other object can have its identity
    name(Thing())
    gc.collect()
    assert gone() is None


def test_a_vector_on_bytes_has_the_hash_of_its_numbers() -> None:
    values = np.arange(6, dtype=np.float32)
    on_bytes = np.frombuffer(values.tobytes(), dtype=np.float32)
    assert parameters_sha256(on_bytes) == parameters_sha256(values)
    assert parameters_sha256(on_bytes[::2]) == parameters_sha256(values[::2].copy())
    assert parameters_sha256(on_bytes[:3]) == parameters_sha256(values[:3].copy())
    assert parameters_sha256(on_bytes[::-1]) == parameters_sha256(values[::-1].copy())
    values[0] = 9  # a vector that may change is hashed anew
    assert parameters_sha256(values) != parameters_sha256(on_bytes)


def test_a_plan_that_was_copied_with_a_change_has_another_key_and_digest() -> None:
    study = parse_study(EXAMPLE_STUDY).travelling()
    plan = RoundPlan(
        run="r", round=1, study=study, noise_multiplier=1.0, parameters_sha256="0" * 64
    )
    assert plan.key() == plan.key()
    assert plan.model_copy(update={"round": 2}).key() != plan.key()
    assert study.model_copy(update={"seed": study.seed + 1}).digest() != study.digest()
