"""Which records belong to one subject: the unit of privacy where a person has several.

A grouping says where a record's subject is written:

| grouping | where | subject id |
|---|---|---|
| `ColumnSubjects` | `.parquet`, `.csv`, `.jsonl`, or an array of an `.npz` | the cell, as text |
| `FolderSubjects` | a folder of image files | the name of the folder at that level |
| a function | any data set | what it returns for a record's number |
| `BlockSubjects` | any data set, for rehearsal | the number of the block |

Ids are compared as they are. Two spellings of one person are two subjects, and each is
protected alone: only the site can know that they are one. Where Tacit has the choice, it
takes two people for one rather than one for two, because a group of people is then
protected together: white space around an id does not count, and folders of the same name
are one subject wherever they are, so that a person may have records in several classes.

A record without an id is refused when the data set is opened, and not left out: it may
well belong to a person who has other records, and a column with gaps is most often a
mistake that the site can mend, while data left out unseen stays unseen.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tacit_client.data.records import unfit
from tacit_common.errors import PluginError
from tacit_common.plugins import PluginTable
from tacit_common.study import (
    BlockSubjects,
    ColumnSubjects,
    FolderSubjects,
    FunctionSubjects,
    SubjectsPlan,
)

Subject: TypeAlias = str | int
"""A subject's id: the same whenever the data set is opened."""

Grouping: TypeAlias = ColumnSubjects | FolderSubjects | BlockSubjects | Callable[[int], Subject]
"""Where a record's subject is written; a function is called with the record's number."""

MISSING = frozenset({"", "na", "n/a", "<na>", "#n/a", "nan", "none", "null"})
"""What an absent id looks like once a program has written it as text, in lower case."""


def resolve_grouping(plan: SubjectsPlan | None, plugins: PluginTable) -> Grouping | None:
    """The grouping that a plan names; a function is looked up in the local plug-ins.

    Raises:
        PluginError: the function is not configured here, or cannot be called.
    """
    if not isinstance(plan, FunctionSubjects):
        return plan
    function = plugins.load(plan.name, "subjects")
    if not callable(function):
        raise PluginError(
            f"subjects plug-in '{plan.name}' is not a function",
            why="its target under [plugins] cannot be called",
            fix="name a function that takes a record's number and returns its subject",
        )
    return function


def subjects_by_number(
    numbers: Iterable[int], grouping: BlockSubjects | Callable[[int], Subject]
) -> list[Subject]:
    """The subjects of the records with these numbers.

    The function is called once a record, here, so that an id cannot change later.

    Raises:
        PluginError: the function fails, or returns something that is no id.
    """
    if isinstance(grouping, BlockSubjects):
        return [number // grouping.size for number in numbers]
    return [_call(grouping, number) for number in numbers]


def column_subjects(cells: Sequence[str | None], column: str, path: Path) -> list[Subject]:
    """The subjects that a column names, without the white space around them.

    Raises:
        DataError: a cell is empty, or says in a word that it is.
    """
    ids = ["" if cell is None else cell.strip() for cell in cells]
    missing = sum(subject.casefold() in MISSING for subject in ids)
    if missing:
        raise unfit(
            path,
            f"{missing} of its {len(ids)} rows have no subject in '{column}'",
            "fill in whose record each of them is, or take these rows out of the data set",
        )
    return list(ids)


def number_subjects(subjects: Iterable[Hashable]) -> NDArray[np.int64]:
    """Each record's subject as a number [N], in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(s, len(numbers)) for s in subjects], dtype=np.int64)


def _call(function: Callable[[int], Subject], number: int) -> Subject:
    try:
        subject: object = function(number)
    except Exception as error:  # its text may quote the record: only the type is kept
        raise PluginError(
            f"the function of subjects fails for record {number}",
            why=f"it raises {type(error).__name__}",
            fix="make it return a text or a whole number for every record's number from 0",
        ) from None
    if isinstance(subject, str) and subject.strip().casefold() not in MISSING:
        return subject.strip()
    if isinstance(subject, Integral) and not isinstance(subject, bool):
        return int(subject)
    raise PluginError(
        f"the function of subjects gives no id for record {number}",
        why=f"it returns {type(subject).__name__}, or a text that says there is none",
        fix="return a text or a whole number for every record, and leave out records without one",
    )
