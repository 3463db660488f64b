"""The units of privacy at a site: which records belong to one, and who joins a step."""

import logging
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tacit_client.sampling import Indices
from tacit_common.data import DataSource
from tacit_common.privacy.noise import RandomSource

_log = logging.getLogger(__name__)


def subject_name(source: DataSource, index: int) -> bytes | None:
    """The one name of a record's subject, for training and for the ledger alike.

    Text, so that '7' read from a table is the subject 7 of a folder. None where it cannot
    be told: the source raises, or the id is missing, not a number, or written differently
    each time.
    """
    try:
        subject = source.unit_of(index)
        unnamed = type(subject).__str__ is object.__str__ and (
            type(subject).__repr__ is object.__repr__
        )
        if subject is None or subject != subject or unnamed:  # noqa: PLR0124 - NaN
            return None
        return str(subject).encode()
    except Exception:  # whatever a data source may raise
        return None


@dataclass(frozen=True)
class Units:
    """Records grouped by unit: unit u holds records `_order[_ends[u - 1] : _ends[u]]`."""

    _order: NDArray[np.intp]  # [N], record numbers, those of a unit side by side
    _ends: NDArray[np.intp]  # [U], where each unit's records end
    records_per_unit: int
    """Contribution cap m: how many records of a unit one release may use."""

    @classmethod
    def of_records(cls, source: DataSource) -> Self:
        """Every record is a unit."""
        count = len(source)
        return cls(np.arange(count), np.arange(1, count + 1), 1)

    @classmethod
    def of_subjects(cls, source: DataSource, *, records_per_subject: int) -> Self:
        """Records with the same `unit_of` are one unit.

        A record whose subject cannot be told is left out: an error would tell that the
        site holds such a record, and guessing could give a person a second unit.
        """
        numbers: dict[bytes, int] = {}
        subjects, kept = [], []
        for index in range(len(source)):
            subject = subject_name(source, index)
            if subject is None:
                _log.warning("record %d is left out: its subject cannot be told", index)
                continue
            subjects.append(numbers.setdefault(subject, len(numbers)))
            kept.append(index)
        unit_of = np.array(subjects, dtype=np.intp)
        order = np.array(kept, dtype=np.intp)[np.argsort(unit_of, kind="stable")]
        return cls(order, np.cumsum(np.bincount(unit_of)).astype(np.intp), records_per_subject)

    @classmethod
    def of(
        cls,
        source: DataSource,
        unit: Literal["record", "subject"],
        records_per_subject: int | None,
    ) -> Self:
        """The units that a study asks for."""
        if unit == "record":
            return cls.of_records(source)
        if records_per_subject is None:
            raise TypeError("a study whose unit is the subject has a contribution cap")
        return cls.of_subjects(source, records_per_subject=records_per_subject)

    def __len__(self) -> int:
        """Number of units: private."""
        return len(self._ends)

    def records(self, unit: int, random: RandomSource) -> Indices:
        """At most `records_per_unit` records of a unit; a secret choice where it has more."""
        start = self._ends[unit - 1] if unit else 0
        records = self._order[start : self._ends[unit]]
        if len(records) <= self.records_per_unit:
            return records
        chosen = np.argsort(random.uniform(len(records)))[: self.records_per_unit]
        return records[np.sort(chosen)]
