"""`tacit site inspect`: what a site holds, for its operator's own eyes. Nothing of it leaves.

The figures are exact and have no privacy at all. They go to the terminal of whoever may
read the data anyway, and are written nowhere.
"""

import hashlib
import statistics
from collections import Counter
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table

from tacit_client.deployment.site_config import SiteConfig
from tacit_client.deployment.site_data import identity_source
from tacit_client.deployment.stored_shapes import stored_shapes
from tacit_client.units import subject_name
from tacit_common.data import DataSource, LabeledDataSource

_SHOWN = 10  # of a list, then a count


@dataclass
class Inspection:
    """What was found. Records count from 0 in the data set's own order."""

    records: int = 0
    unreadable: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)  # alike to one before them
    shapes: Counter[str] = field(default_factory=Counter)
    lowest: float | None = None
    highest: float | None = None
    labels: Counter[str] | None = None
    subjects: Counter[bytes] | None = None  # records of each
    without_subject: int = 0


def inspect_data(config: SiteConfig) -> Inspection:
    """Read every record once.

    Raises:
        UsageError: the data set cannot be opened.
    """
    source = identity_source(config)
    found = Inspection(records=len(source))
    if config.data_path is not None:
        found.shapes = stored_shapes(config.data_path)
    _look_at_records(source, found)
    if isinstance(source, LabeledDataSource):
        found.labels = Counter(sorted(_label(source, index) for index in range(len(source))))
    names = [subject_name(source, index) for index in range(len(source))]
    if any(name != str(index).encode() for index, name in enumerate(names)):
        found.subjects = Counter(name for name in names if name is not None)
        found.without_subject = names.count(None)
    return found


def print_inspection(config: SiteConfig, found: Inspection, console: Console) -> None:
    """Print all of it."""
    console.print(f"What site {config.site} holds, for your eyes: nothing on this page is sent.")
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(config, found):
        table.add_row(name, value)
    console.print(table)


def _rows(config: SiteConfig, found: Inspection) -> list[tuple[str, str]]:
    rows = [
        ("data set", f"{config.data} (called {config.lineage})"),
        ("records", str(found.records)),
        ("declared", f"{config.declared_units} units: the only number of these that is public"),
        ("unreadable", _listed(found.unreadable)),
        ("duplicates", _listed(found.duplicates)),
    ]
    if found.shapes:
        rows.append(("stored as", _counted(found.shapes)))
    if found.lowest is not None and found.highest is not None:
        rows.append(("values", f"{found.lowest:.3g} to {found.highest:.3g} of [0, 1]"))
    labels = "none that probes may use" if found.labels is None else _counted(found.labels)
    rows.append(("labels", labels))
    if found.subjects is None:
        rows.append(("subjects", "none: each record is a unit of its own"))
        return rows
    counts = list(found.subjects.values())
    rows.append(("subjects", str(len(counts))))
    rows.append(
        (
            "records each",
            f"{min(counts)} to {max(counts)}, half of them at most {statistics.median(counts):g}",
        )
    )
    if found.without_subject:
        rows.append(("without one", f"{found.without_subject} records, which are never used"))
    return rows


def _look_at_records(source: DataSource, found: Inspection) -> None:
    seen: set[bytes] = set()
    for index in range(len(source)):
        try:
            record = source[index]
            low, high = float(record.min()), float(record.max())
            digest = hashlib.sha256(record.contiguous().numpy().tobytes()).digest()
        except Exception:  # whatever a data source may raise; the index is all that is kept
            found.unreadable.append(index)
            continue
        found.lowest = low if found.lowest is None else min(found.lowest, low)
        found.highest = high if found.highest is None else max(found.highest, high)
        if digest in seen:
            found.duplicates.append(index)
        seen.add(digest)


def _label(source: LabeledDataSource, index: int) -> str:
    try:
        return str(source.label_of(index))
    except Exception:  # whatever a data source may raise
        return "unreadable"


def _listed(indices: list[int]) -> str:
    if not indices:
        return "none"
    shown = ", ".join(map(str, indices[:_SHOWN]))
    return f"{len(indices)}: records {shown}{', …' if len(indices) > _SHOWN else ''}"


def _counted(counter: Counter[str]) -> str:
    most = counter.most_common(_SHOWN)
    rest = len(counter) - len(most)
    return ", ".join(f"{name}: {count}" for name, count in most) + (
        f", and {rest} more" if rest else ""
    )
