"""What a data set on disk comes down to: a decoder, a count, and maybe classes and subjects."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tacit_common.data import DataSource
from tacit_common.errors import DataError, UnreadableRecordError


@dataclass(frozen=True)
class Records:
    """An opened data set: `decode(i)` for i < `count`, and what is known of each record.

    Classes are numbers [count], or names that still have to be numbered. Subjects are ids
    [count]; without them every record is a privacy unit of its own.
    """

    decode: Callable[[int], Tensor]
    count: int
    classes: NDArray[np.int64] | list[str] | None = None
    subjects: Sequence[Hashable] | None = None


class RecordSource:
    """Records that are decoded when they are asked for.

    The privacy unit of a record is its subject [N], or without subjects itself.
    """

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        count: int,
        *,
        subjects: Sequence[Hashable] | None = None,
    ) -> None:
        self._decode = decode
        self._count = count
        self._subjects = subjects

    def __len__(self) -> int:
        """Number of records."""
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        """Record `index`, float32 [C, H, W] in [0, 1].

        Raises:
            UnreadableRecordError: it cannot be decoded; the message holds the index alone.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"record {index} is not one of {self._count}")
        try:
            return self._decode(index)
        except Exception:  # a decoder's own text can quote the record: none of it is kept
            raise UnreadableRecordError(
                f"record {index} cannot be read",
                why="it is damaged, missing, or not an image with values in [0, 1]",
                fix="repair it or take it out; records count from 0 in the set's own order",
            ) from None

    def unit_of(self, index: int) -> Hashable:
        """The subject of record `index`, or the record itself."""
        return index if self._subjects is None else self._subjects[index]


class LabeledRecordSource(RecordSource):
    """Records with a class [N] each."""

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        labels: NDArray[np.int64],
        *,
        subjects: Sequence[Hashable] | None = None,
    ) -> None:
        super().__init__(decode, len(labels), subjects=subjects)
        self._labels = labels

    def label_of(self, index: int) -> int:
        """The class of record `index`."""
        return int(self._labels[index])


def as_source(records: Records, class_names: Sequence[str] | None, path: Path) -> DataSource:
    """A data source of `records`, labelled where their classes are known.

    Names are numbered by their place in `class_names`; without it, whole numbers stand
    for themselves and other names are numbered in sorted order.

    Raises:
        DataError: a name is not in `class_names`, a class is negative, or no record at all
            can be decoded.
    """
    if not any(_decodes(records, index) for index in range(records.count)):
        raise unfit(
            path,
            "none of its records can be read",
            "check that they are images, that paths in a table are relative to its folder, "
            "and that encoder.channels fits them",
        )
    if records.classes is None:
        return RecordSource(records.decode, records.count, subjects=records.subjects)
    if isinstance(records.classes, list):
        labels = _number(records.classes, class_names, path)
    else:
        labels = records.classes
    if labels.min() < 0:
        raise unfit(path, "some classes are negative numbers", "number classes from 0")
    return LabeledRecordSource(records.decode, labels, subjects=records.subjects)


def unfit(path: Path, why: str, fix: str) -> DataError:
    """The error for a data set that is there but cannot be used."""
    return DataError(f"data set '{path}' cannot be used", why=why, fix=fix)


def _decodes(records: Records, index: int) -> bool:
    try:
        records.decode(index)
    except Exception:  # as in RecordSource: a decoder may raise anything
        return False
    return True


def _number(names: list[str], class_names: Sequence[str] | None, path: Path) -> NDArray[np.int64]:
    distinct = sorted(set(names))
    if class_names is not None:
        if len(set(class_names)) != len(class_names):
            raise unfit(path, "class_names has a name twice", "name every class once")
        if not set(distinct) <= set(class_names):
            raise unfit(path, "a class is not among class_names", "name every class there")
        number = {name: place for place, name in enumerate(class_names)}
    elif all(name.removeprefix("-").isdecimal() for name in distinct):
        number = {name: int(name) for name in distinct}
    else:
        number = {name: place for place, name in enumerate(distinct)}
    return np.array([number[name] for name in names], dtype=np.int64)
