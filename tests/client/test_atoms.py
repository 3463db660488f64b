"""Atoms: every unit is charged for all that it was in, whatever name and form it had."""

import contextlib
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tacit_client.atoms import bind
from tacit_client.ledger import Ledger
from tacit_client.ledger_file import read_ledger
from tacit_common.errors import LedgerError, UnreadableRecordError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Cap, Charge
from tacit_common.privacy.events import GaussianRelease

IDENTITY = Identity.create()
CAP = Cap(epsilon=50.0, delta=1e-5)


class Source:
    """Records that are numbers, and perhaps subjects; None is a record that cannot be read."""

    def __init__(self, records: list[float | None], subjects: list[Hashable] | None = None) -> None:
        self.records = records
        self.subjects = subjects

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Tensor:
        value = self.records[index]
        if value is None:
            raise UnreadableRecordError("a record cannot be read", why="it is torn", fix="mend it")
        return torch.full((1, 2, 2), value)

    def unit_of(self, index: int) -> Hashable:
        return index if self.subjects is None else self.subjects[index]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "ledger.db", site="s", identity=IDENTITY, survive_power_loss=False)
    yield ledger
    ledger.close()


@pytest.fixture
def bound(ledger: Ledger) -> Callable[..., tuple[str, ...]]:
    """`bound([1, 2], ["a", "b"], lineage="scans")`: the atoms of those records."""

    def bind_records(
        records: list[float | None],
        subjects: list[Hashable] | None = None,
        *,
        lineage: str = "scans",
    ) -> tuple[str, ...]:
        return bind(ledger, IDENTITY, Source(records, subjects), lineage=lineage)

    return bind_records


Bound = Callable[..., tuple[str, ...]]
numbers = itertools.count()


def charge(ledger: Ledger, atoms: tuple[str, ...], run: str) -> None:
    event = GaussianRelease(noise_multiplier=10.0)
    one = Charge(
        key=f"k{next(numbers)}",
        run=run,
        study="study",
        study_digest="d" * 64,
        action="probe",
        label=run,
        unit="record",
        event=event,
        planned=(event,),
        atoms=atoms,
        cap=CAP,
    )
    ledger.reserve(one, lambda *_: None)


def releases(ledger: Ledger, atoms: tuple[str, ...]) -> list[int]:
    return [ledger.spend.of_atom(atom, CAP).releases for atom in atoms]


# --- the same data -----------------------------------------------------------------------


def test_binding_the_same_data_again_adds_no_row(ledger: Ledger, bound: Bound) -> None:
    first = bound([1, 2, 3])
    rows = ledger.entries()
    assert first == ("a0",)
    assert bound([1, 2, 3]) == first
    assert bound([3, 1, 2]) == first  # the order of records means nothing
    assert bound([3, 3, 1, 2]) == first  # nor does a record that is there twice
    assert bound([1, 2, 3], lineage="by another name") == first
    assert ledger.entries() == rows


def test_data_that_was_never_seen_is_an_atom_without_parents(ledger: Ledger, bound: Bound) -> None:
    bound([1, 2, 3])
    assert bound([4, 5], lineage="letters") == ("a1",)
    assert ledger.atoms[1].parents == ()
    assert ledger.atoms[1].lineage == "letters"


def test_a_part_of_an_atom_and_the_rest_of_it_inherit_its_charges(
    ledger: Ledger, bound: Bound
) -> None:
    charge(ledger, bound([1, 2, 3]), "whole")
    part = bound([1, 2])
    assert part == ("a1",)
    assert [atom.parents for atom in ledger.atoms] == [(), ("a0",), ("a0",)]
    charge(ledger, part, "part")
    whole = bound([1, 2, 3])
    assert whole == ("a1", "a2")
    assert releases(ledger, whole) == [2, 1]


def test_records_that_are_added_are_charged_from_then_on_alone(
    ledger: Ledger, bound: Bound
) -> None:
    charge(ledger, bound([1, 2]), "before")
    grown = bound([1, 2, 3])
    assert grown == ("a0", "a1")
    charge(ledger, grown, "after")
    assert releases(ledger, grown) == [2, 1]


def test_two_data_sets_that_overlap_share_what_they_share(ledger: Ledger, bound: Bound) -> None:
    charge(ledger, bound([1, 2, 3], lineage="left"), "left")
    right = bound([3, 4], lineage="right")
    charge(ledger, right, "right")
    by_parents = {atom.atom: atom.parents for atom in ledger.atoms}
    assert sorted(by_parents[atom] for atom in right) == [(), ("a0",)]
    assert sorted(releases(ledger, right)) == [1, 2]
    assert releases(ledger, bound([1, 2], lineage="left")) == [1]


# --- lineage -----------------------------------------------------------------------------


def test_records_that_come_back_in_another_form_are_the_same_atom(
    ledger: Ledger, bound: Bound
) -> None:
    charge(ledger, bound([1, 2, 3]), "before")
    changed = bound([1.5, 2.5, 3.5])  # another decoder, say: no tag is known
    assert releases(ledger, changed) == [1]
    charge(ledger, changed, "after")
    assert releases(ledger, bound([1, 2, 3])) == [2]  # and the old form is charged too


def test_one_record_that_was_exchanged_may_be_the_one_that_is_missing(
    ledger: Ledger, bound: Bound
) -> None:
    charge(ledger, bound([1, 2, 3]), "before")
    exchanged = bound([1, 2, 4])
    assert max(releases(ledger, exchanged)) == min(releases(ledger, exchanged)) == 1
    charge(ledger, bound([4], lineage="another"), "the new one alone")
    assert 2 in releases(ledger, bound([3], lineage="a third"))  # which may be it


def test_another_lineage_with_other_tags_is_other_data(ledger: Ledger, bound: Bound) -> None:
    charge(ledger, bound([1, 2, 3]), "before")
    assert releases(ledger, bound([4, 5, 6], lineage="another")) == [0]


def test_known_records_under_a_name_whose_records_are_gone_inherit_both(
    ledger: Ledger, bound: Bound
) -> None:
    charge(ledger, bound([1, 2], lineage="old"), "old")
    charge(ledger, bound([3, 4], lineage="new"), "new")
    assert releases(ledger, bound([3, 4], lineage="old")) == [2]


def test_a_record_that_can_be_read_one_day_was_in_what_was_charged_before(
    ledger: Ledger, bound: Bound
) -> None:
    torn = bound([1, None])
    assert bound([1, None]) == torn
    charge(ledger, torn, "torn")
    assert set(releases(ledger, bound([1, 2]))) == {1}


def test_a_site_without_records_is_charged_like_any_other(ledger: Ledger, bound: Bound) -> None:
    assert bound([]) == bound([]) == ("a0",)
    charge(ledger, ("a0",), "nothing")
    assert releases(ledger, bound([1])) == [1]


# --- subjects ----------------------------------------------------------------------------


def test_records_and_subjects_of_the_same_data_share_atoms(ledger: Ledger, bound: Bound) -> None:
    by_record = bound([1, 2, 3])
    charge(ledger, by_record, "by record")
    by_subject = bound([1, 2, 3], ["ann", "ann", "bob"])
    assert releases(ledger, by_subject) == [1]
    charge(ledger, by_subject, "by subject")
    assert releases(ledger, bound([1, 2, 3])) == [2]


def test_a_new_record_of_a_known_subject_is_the_subjects(ledger: Ledger, bound: Bound) -> None:
    charge(ledger, bound([1, 2], ["ann", "bob"]), "first visit")
    second = bound([3], ["ann"], lineage="second visit")
    assert releases(ledger, second) == [1]
    charge(ledger, second, "second visit")
    assert releases(ledger, bound([1], lineage="her first record")) == [2]
    assert releases(ledger, bound([2], lineage="his")) == [1]


def test_a_record_under_another_subject_links_the_two(ledger: Ledger, bound: Bound) -> None:
    charge(ledger, bound([1], ["ann"], lineage="x"), "ann")
    charge(ledger, bound([2], ["bob"], lineage="y"), "bob")
    linked = bound([1], ["bob"], lineage="z")
    assert releases(ledger, linked) == [2]
    assert releases(ledger, bound([2], lineage="w")) == [2]


def test_a_chain_of_shared_records_links_all_of_it(ledger: Ledger, bound: Bound) -> None:
    subjects: list[Hashable] = ["a", "b", "b", "c", "c", "d"]
    bound([1, 1, 2, 2, 3, 3], subjects)
    charge(ledger, bound([9], ["a"], lineage="x"), "the first of the chain")
    assert releases(ledger, bound([8], ["d"], lineage="y")) == [1]


def test_a_subject_has_one_name_whatever_its_type(ledger: Ledger, bound: Bound) -> None:
    charge(ledger, bound([1, 2], ["7", "8"], lineage="x"), "as text")
    assert 1 in releases(ledger, bound([3, 4], [7, 9], lineage="y"))


def test_a_record_whose_subject_has_no_lasting_name_is_charged_by_its_content(
    bound: Bound,
) -> None:
    """Training leaves such a record out; were it found again, it would be known."""
    assert bound([1, 2], [object(), object()]) == ("a0",)
    assert bound([1, 2], [object(), object()]) == ("a0",)


# --- the guarantee -----------------------------------------------------------------------

person = st.integers(0, 5)
bindings = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 8), person), max_size=6),
        st.booleans(),  # with subjects?
        st.sampled_from(["x", "y"]),
    ),
    min_size=1,
    max_size=6,
)


@contextlib.contextmanager
def temporary_ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        with contextlib.closing(
            Ledger(path, site="s", identity=IDENTITY, survive_power_loss=False)
        ) as ledger:
            yield ledger


@settings(max_examples=30)
@given(bindings=bindings)
def test_every_record_and_subject_is_charged_for_all_that_it_was_in(
    bindings: list[tuple[list[tuple[int, int]], bool, str]],
) -> None:
    with temporary_ledger() as ledger:
        was_in: dict[tuple[str, int], set[int]] = {}
        for number, (records, with_subjects, lineage) in enumerate(bindings):
            subjects: list[Hashable] = [f"p{subject}" for _, subject in records]
            source = Source([float(r) for r, _ in records], subjects if with_subjects else None)
            charge(ledger, bind(ledger, IDENTITY, source, lineage=lineage), f"run {number}")
            for record, subject in records:
                was_in.setdefault(("record", record), set()).add(number)
                if with_subjects:
                    was_in.setdefault(("subject", subject), set()).add(number)
        for (kind, one), runs in was_in.items():
            source = (
                Source([float(one)])
                if kind == "record"
                else Source([100.0 + one, 200.0 + one], [f"p{one}", f"nobody {one}"])
            )
            atoms = bind(ledger, IDENTITY, source, lineage=f"look at {kind} {one}")
            assert max(releases(ledger, atoms)) >= len(runs)


def test_every_unit_is_in_exactly_one_atom_that_was_not_cut(
    ledger: Ledger, bound: Bound, tmp_path: Path
) -> None:
    for records in ([1, 2, 3, 4], [2, 3], [3, 4, 5], [1, 5, 6]):
        bound(records)
    database = sqlite3.connect(tmp_path / "ledger.db")
    atoms = {name for (name,) in database.execute("SELECT DISTINCT atom FROM tags")}
    database.close()
    assert atoms == set(ledger.spend.atoms)


# --- secrets and damage ------------------------------------------------------------------


def tags_on_disk(path: Path) -> set[bytes]:
    database = sqlite3.connect(path)
    tags = {tag for (tag,) in database.execute("SELECT tag FROM tags")}
    database.close()
    return tags


def test_tags_do_not_leave_with_an_export(ledger: Ledger, bound: Bound, tmp_path: Path) -> None:
    bound([1, 2, 3], ["ann", "bob", "bob"])
    text = ledger.export().model_dump_json()
    tags = tags_on_disk(tmp_path / "ledger.db")
    assert len(tags) == 5
    assert not any(tag.hex() in text for tag in tags)
    assert "ann" not in text
    assert read_ledger(tmp_path / "ledger.db").atoms == ledger.atoms


def test_tags_of_two_sites_have_nothing_in_common(tmp_path: Path) -> None:
    found = []
    for site in "ab":
        identity = Identity.create()
        path = tmp_path / site / "ledger.db"
        ledger = Ledger(path, site=site, identity=identity)
        bind(ledger, identity, Source([1, 2, 3], ["x", "y", "y"]), lineage="scans")
        ledger.close()
        found.append(tags_on_disk(path))
    assert not found[0] & found[1]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM tags",
        "DELETE FROM tags WHERE tag = (SELECT min(tag) FROM tags)",
        "UPDATE tags SET atom = 'a1' WHERE tag = (SELECT min(tag) FROM tags WHERE atom = 'a0')",
        "DELETE FROM lineages",
    ],
)
def test_tags_that_were_lost_or_moved_are_noticed(
    ledger: Ledger, bound: Bound, tmp_path: Path, damage: str
) -> None:
    bound([1, 2, 3])
    bound([4, 5], lineage="letters")
    database = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    database.execute(damage)
    database.close()
    rows = ledger.entries()
    with pytest.raises(LedgerError, match="cannot be trusted"):
        bound([1, 2, 3])
    assert ledger.entries() == rows


def test_the_same_content_in_another_shape_is_another_record(ledger: Ledger) -> None:
    class Flat(Source):
        def __getitem__(self, index: int) -> Tensor:
            return super().__getitem__(index).reshape(1, 1, 4)

    assert bind(ledger, IDENTITY, Source([1, 2]), lineage="square") == ("a0",)
    assert bind(ledger, IDENTITY, Flat([1, 2]), lineage="flat") == ("a1",)
