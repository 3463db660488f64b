"""Sound data sources conform, and every clause for them catches a fault planted for it."""

import math
from collections.abc import Hashable

import numpy as np
import pytest
import torch
from tests.common.conformance.sound import BATCH
from torch import Tensor

from tacit_client.data import ArraySource, LabeledArraySource
from tacit_common.errors import UnreadableRecordError
from tacit_common.testing import ConformanceError, check_data_source


class _Source:
    """A sound source of 20 records; faults are planted by overriding a part."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.record(index)

    def record(self, index: int) -> Tensor:
        return torch.full((1, 2, 2), index / 20)

    def unit_of(self, index: int) -> Hashable:
        return ("subject", index // 2)


def unreadable() -> UnreadableRecordError:
    return UnreadableRecordError("record", why="test", fix="none")


class _SomeUnreadable(_Source):
    def record(self, index: int) -> Tensor:
        if index % 3 == 0:
            raise unreadable()
        return super().record(index)


@pytest.mark.parametrize(
    "source",
    [
        _Source(),
        _SomeUnreadable(),
        ArraySource(BATCH[:1]),
        LabeledArraySource(BATCH, np.arange(5)),
    ],
    ids=["own", "some-unreadable", "one-record", "labelled"],
)
def test_sound_data_sources_conform(source: _Source) -> None:
    check_data_source(source)


class _Empty(_Source):
    def __len__(self) -> int:
        return 0


class _AllUnreadable(_Source):
    def record(self, index: int) -> Tensor:
        raise unreadable()


class _Bytes(_Source):
    def record(self, index: int) -> Tensor:
        return torch.zeros(1, 2, 2, dtype=torch.uint8)


class _NotFinite(_Source):
    def record(self, index: int) -> Tensor:
        return torch.full((3,), math.nan)


class _RawPixels(_Source):
    def record(self, index: int) -> Tensor:
        return super().record(index) * 255


class _Shapes(_Source):
    def record(self, index: int) -> Tensor:
        return torch.zeros(1, 2 + index % 2, 2)


class _Sequential(_Source):
    def record(self, index: int) -> Tensor:
        return torch.full((1, 2, 2), min(self.reads / 100, 1))


class _Vanishing(_Source):
    def record(self, index: int) -> Tensor:
        if self.reads > 20:
            raise unreadable()
        return super().record(index)


class _ListUnit(_Source):
    def unit_of(self, index: int) -> Hashable:
        return [index]  # type: ignore[return-value]


class _NewUnit(_Source):
    def unit_of(self, index: int) -> Hashable:
        return object()


class _NegativeLabel(_Source):
    def label_of(self, index: int) -> int:
        return -1


@pytest.mark.parametrize(
    ("source", "clause"),
    [
        ([1, 2], "a data source has __len__, __getitem__, unit_of"),
        (_Empty(), "a data source to check has records"),
        (_AllUnreadable(), "some records can be decoded"),
        (_Bytes(), "a record is a float32 tensor"),
        (_NotFinite(), "a record is finite"),
        (_RawPixels(), "pixels of an image lie in [0, 1]"),
        (_Shapes(), "records have one shape"),
        (_Sequential(), "a record is the same each time it is read, in any order"),
        (_Vanishing(), "a record is the same each time it is read, in any order"),
        (_ListUnit(), "unit_of is hashable"),
        (_NewUnit(), "unit_of is stable"),
        (_NegativeLabel(), "label_of is a whole number from 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_data_source_is_found(source: _Source, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_data_source(source)
    assert caught.value.clause == clause
