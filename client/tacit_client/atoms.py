"""Atoms: which of a site's units were used together, so that each is charged for what it was in.

A *unit* is all that a data set ever showed to belong together: the records of a subject,
or one record where there are no subjects. Records and subjects are both tagged, with
HMAC-SHA256 under a secret of the site: a record by its canonical decoded content, a
subject by its id. Units that share a tag are one unit, for ever: a record that shows up
again under another subject links the two, and a study of single records and a study of
subjects on the same data share their units. Linking is never undone, so it can only make
more be charged than was touched.

An *atom* is a set of units that every data set so far held together or not at all. A new
data set is cut against the atoms so far:

    all of an atom in it      the atom, used again
    a part of an atom in it   two new atoms, the part and the rest, both children of it
    a unit of two atoms       a new atom, a child of both
    units not known           a new atom without a parent

A child inherits all that its parents were charged (`tacit_common.privacy.spend`).

**The same declared lineage is the same atom unless the tags prove otherwise.** A record
whose content changed, or that another decoder reads differently, has another tag. So if a
lineage comes back with units that it did not have, they are new only if every tag that the
lineage ever had is there too: whatever they are, they are then none of the old ones.
Otherwise each of them may be one of those that are missing, and all that are missing and
all that are new are linked: they count as one unit from then on. That over-charges where a
site exchanges records. It misses nothing but a changed copy beside its unchanged original,
and then both are in the study, each a record of its own.

Tags are kept in this file's tables, beside the ledger's rows, and never leave the site. A
row of the ledger holds a hash over them only, by which a table that was changed or lost is
noticed. What an export shows of the data is how many atoms there are: which data sets of
the site overlap, never by how much.
"""

import hashlib
import hmac
import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from tacit_client.ledger import Ledger
from tacit_client.units import subject_name
from tacit_common.data import DataSource
from tacit_common.errors import LedgerError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Atom

_TAG_BYTES = 16

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS tags (
        tag  BLOB PRIMARY KEY,
        unit BLOB NOT NULL,
        atom TEXT NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS lineages (
        lineage TEXT NOT NULL,
        tag     BLOB NOT NULL,
        PRIMARY KEY (lineage, tag)
    ) STRICT, WITHOUT ROWID""",
)

Tag = bytes
Tags = tuple[Tag, ...]
"""The tags of one record of a data set: its own, and its subject's if it has one."""


def bind(
    ledger: Ledger, identity: Identity, source: DataSource, *, lineage: str
) -> tuple[str, ...]:
    """The atoms that a data set consists of: what each of its charges names.

    Reads every record once. Binding the same data again adds no row.

    Args:
        lineage: what the operator calls the data set: the same name, the same people.

    Raises:
        LedgerError: the tags cannot be trusted, or the rows cannot be written.
    """
    records = list(_tags(source, identity.secret("atom tags"), lineage))
    touched: list[str] = []

    def cut_in(database: sqlite3.Connection, atoms: tuple[Atom, ...]) -> list[Atom]:
        known = _read(database, atoms, lineage)
        cut = _cut(known, atoms, records, lineage)
        _write(database, known, cut, lineage, records)
        touched.extend(cut.touched)
        return cut.new_atoms

    ledger.add_atoms(cut_in)
    return tuple(touched)


# --- tags ------------------------------------------------------------------------------


def _tags(source: DataSource, secret: bytes, lineage: str) -> Iterator[Tags]:
    if len(source) == 0:  # charged like any other, so that it cannot be told apart
        yield (_tag(secret, b"no records", lineage.encode()),)
    subjects = [subject_name(source, index) for index in range(len(source))]
    has_subjects = any(name != str(index).encode() for index, name in enumerate(subjects))
    for index, name in enumerate(subjects):
        record = _tag(secret, *_content(source, index, lineage))
        if has_subjects and name is not None:
            yield record, _tag(secret, b"subject", name)
        else:
            yield (record,)


def _content(source: DataSource, index: int, lineage: str) -> tuple[bytes, bytes]:
    """A record in one canonical form, whatever file it came from."""
    record: object = None
    with suppress(Exception):  # whatever a data source may raise
        record = source[index]
    if not isinstance(record, Tensor):
        # It may be decoded one day. Until then its place is all that is known of it.
        return b"unreadable", f"{lineage}\n{index}".encode()
    array = np.ascontiguousarray(record.detach().cpu().numpy(), dtype="<f4")
    return f"record {array.shape}".encode(), array.tobytes()


def _tag(secret: bytes, domain: bytes, content: bytes) -> Tag:
    return hmac.digest(secret, domain + b"\0" + content, "sha256")[:_TAG_BYTES]


def _tags_sha256(tags: Iterable[Tag]) -> str:
    return hashlib.sha256(b"".join(sorted(tags))).hexdigest()


# --- cutting ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What the site's tables say: to each tag its unit (a tag that stands for it) and its atom."""

    unit_of: dict[Tag, Tag]
    atom_of: dict[Tag, str]
    in_lineage: set[Tag]  # every tag that the data set's lineage ever had


@dataclass
class _Cut:
    """What a data set makes of the atoms: those that it touches, and those that are new."""

    touched: list[str] = field(default_factory=list)
    new_atoms: list[Atom] = field(default_factory=list)
    unit_of: dict[Tag, Tag] = field(default_factory=dict)
    atom_of: dict[Tag, str] = field(default_factory=dict)


class _Units:
    """Which tags are of one unit (union-find)."""

    def __init__(self, unit_of: dict[Tag, Tag]) -> None:
        self._above = dict(unit_of)

    def of(self, tag: Tag) -> Tag:
        """The tag that stands for a tag's unit; a tag not seen before is its own."""
        top = tag
        while (above := self._above.setdefault(top, top)) != top:
            top = above
        self._above[tag] = top
        return top

    def link(self, tags: Iterable[Tag]) -> None:
        """All of these are of one unit."""
        first, *others = {self.of(tag) for tag in tags}
        for other in others:
            self._above[other] = first


def _cut(known: _Known, atoms: tuple[Atom, ...], records: list[Tags], lineage: str) -> _Cut:
    units = _Units(known.unit_of)
    for record in records:
        units.link(record)
    present = {tag for record in records for tag in record}
    missing = known.in_lineage - present
    old_units = {units.of(tag) for tag in known.in_lineage}
    new = [tag for tag in present if units.of(tag) not in old_units]
    if new and missing:
        units.link([*new, *missing])

    # All tags of the units that the data set touches, by the atoms that each unit was in.
    touched: dict[Tag, list[Tag]] = {units.of(tag): [] for tag in present}
    for tag in known.unit_of.keys() | present:
        if units.of(tag) in touched:
            touched[units.of(tag)].append(tag)
    parts: dict[frozenset[str], set[Tag]] = defaultdict(set)
    for tags in touched.values():
        before = frozenset(known.atom_of[tag] for tag in tags if tag in known.atom_of)
        parts[before].update(tags)

    cut = _Cut(unit_of={tag: units.of(tag) for tags in touched.values() for tag in tags})
    lineage_of = {atom.atom: atom.lineage for atom in atoms}
    names = map("a{}".format, itertools.count(len(atoms)))

    def add(parents: Iterable[str], lineage: str, tags: set[Tag]) -> str:
        atom = Atom(
            atom=next(names),
            lineage=lineage,
            parents=tuple(sorted(parents, key=_number)),
            tags_sha256=_tags_sha256(tags),
        )
        cut.new_atoms.append(atom)
        cut.atom_of.update(dict.fromkeys(tags, atom.atom))
        return atom.atom

    whole = _tags_of(known.atom_of)
    taken_from: dict[str, set[Tag]] = defaultdict(set)
    for parents in sorted(parts, key=lambda part: sorted(map(_number, part))):
        inside = parts[parents]
        if len(parents) == 1 and whole[min(parents)] == inside:
            cut.touched.append(min(parents))
            continue
        cut.touched.append(add(parents, lineage, inside))
        for parent in parents:
            taken_from[parent] |= inside
    for parent, taken in taken_from.items():
        if rest := whole[parent] - taken:
            add([parent], lineage_of[parent], rest)
    cut.touched.sort(key=_number)
    return cut


def _tags_of(atom_of: dict[Tag, str]) -> dict[str, set[Tag]]:
    tags: dict[str, set[Tag]] = defaultdict(set)
    for tag, atom in atom_of.items():
        tags[atom].add(tag)
    return tags


def _number(atom: str) -> int:
    return int(atom.removeprefix("a"))


# --- the tables ------------------------------------------------------------------------


def _read(database: sqlite3.Connection, atoms: tuple[Atom, ...], lineage: str) -> _Known:
    for statement in _SCHEMA:
        database.execute(statement)
    unit_of: dict[Tag, Tag] = {}
    atom_of: dict[Tag, str] = {}
    for tag, unit, atom in database.execute("SELECT tag, unit, atom FROM tags"):
        unit_of[tag], atom_of[tag] = unit, atom
    of_lineage = database.execute("SELECT tag FROM lineages WHERE lineage = ?", (lineage,))
    known = _Known(unit_of, atom_of, {tag for (tag,) in of_lineage})
    lineages = {name for (name,) in database.execute("SELECT DISTINCT lineage FROM lineages")}
    _require_intact(known, atoms, lineages)
    return known


def _require_intact(known: _Known, atoms: tuple[Atom, ...], lineages: set[str]) -> None:
    """Refuse tables that the ledger's rows do not describe: their units would look new."""
    whole = _tags_of(known.atom_of)
    cut = {parent for atom in atoms for parent in atom.parents}
    described = {atom.atom: atom.tags_sha256 for atom in atoms if atom.atom not in cut}
    found = {atom: _tags_sha256(tags) for atom, tags in whole.items()}
    if found != described or not {atom.lineage for atom in atoms} <= lineages:
        raise LedgerError(
            "the tags of the site's data cannot be trusted",
            why="they are not those that the ledger's rows were written for",
            fix="restore the site's folder from a backup; units without their tags would look "
            "new, and be charged anew",
        )


def _write(
    database: sqlite3.Connection, known: _Known, cut: _Cut, lineage: str, records: list[Tags]
) -> None:
    rows = []
    for tag, unit in cut.unit_of.items():
        atom = cut.atom_of.get(tag) or known.atom_of[tag]
        if (known.unit_of.get(tag), known.atom_of.get(tag)) != (unit, atom):
            rows.append((tag, unit, atom))
    moved = cut.atom_of.keys() - cut.unit_of.keys()  # the rest of atoms that were cut
    rows += [(tag, known.unit_of[tag], cut.atom_of[tag]) for tag in moved]
    database.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?, ?)", sorted(rows))
    added = {tag for record in records for tag in record} - known.in_lineage
    database.executemany(
        "INSERT INTO lineages VALUES (?, ?)", sorted((lineage, tag) for tag in added)
    )
