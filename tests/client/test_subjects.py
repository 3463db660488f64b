"""Records are grouped by subject as the data set says, and errors name no subject."""

import io
import json
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet

from tacit_client.data import (
    ArraySource,
    Grouping,
    LabeledArraySource,
    Subject,
    open_source,
    resolve_grouping,
)
from tacit_client.data.subjects import number_subjects, subjects_by_number
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.errors import DataError, PluginError
from tacit_common.plugins import PluginTable
from tacit_common.study import BlockSubjects, ColumnSubjects, FolderSubjects, FunctionSubjects
from tacit_common.testing import check_data_source

SIZE = 4
SECRET = "patient-4711"  # noqa: S105  # stands for a subject's id
WHO = ColumnSubjects(by="column", column="who")
LABELS = [0, 2, 1, 0]


def level(number: int) -> FolderSubjects:
    return FolderSubjects(by="folder", level=number)


def blocks(size: int) -> BlockSubjects:
    return BlockSubjects(by="blocks", size=size)


def opened(path: Path, subjects: Grouping | None) -> DataSource:
    return open_source(path, image_size=SIZE, channels=1, subjects=subjects)


def units(source: DataSource) -> list[object]:
    return [source.unit_of(index) for index in range(len(source))]


def png() -> bytes:
    file = io.BytesIO()
    Image.new("L", (SIZE, SIZE), 7).save(file, "PNG")
    return file.getvalue()


# --- a column --------------------------------------------------------------------------

Cells = list[str | None] | list[int | None]
Writer = Callable[[Path, Cells, bool], Path]


def write_parquet(folder: Path, who: Cells, labelled: bool) -> Path:
    columns: dict[str, object] = {"image": [png()] * len(who), "who": who}
    if labelled:
        columns["label"] = LABELS[: len(who)]
    parquet.write_table(pa.table(columns), folder / "x.parquet")
    return folder / "x.parquet"


def write_csv(folder: Path, who: Cells, labelled: bool) -> Path:
    (folder / "1.png").write_bytes(png())
    rows = [
        ["1.png", "" if cell is None else str(cell), *([str(LABELS[row])] if labelled else [])]
        for row, cell in enumerate(who)
    ]
    head = ["image", "who", "label"] if labelled else ["image", "who"]
    (folder / "x.csv").write_text("\n".join(",".join(row) for row in [head, *rows]))
    return folder / "x.csv"


def write_jsonl(folder: Path, who: Cells, labelled: bool) -> Path:
    rows = [
        {"image": [[0.5]], "who": cell} | ({"label": LABELS[row]} if labelled else {})
        for row, cell in enumerate(who)
    ]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "x.jsonl"


def write_npz(folder: Path, who: Cells, labelled: bool) -> Path:
    arrays: dict[str, NDArray[np.generic]] = {
        "images": np.zeros((len(who), SIZE, SIZE), np.uint8),
        "who": np.array(["" if cell is None else cell for cell in who]),
    }
    if labelled:
        arrays["labels"] = np.array(LABELS[: len(who)])
    np.savez(folder / "x.npz", allow_pickle=False, **arrays)
    return folder / "x.npz"


WRITERS: list[Writer] = [write_parquet, write_csv, write_jsonl, write_npz]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_rows_with_one_value_in_the_column_are_one_subject(
    write: Writer, labelled: bool, tmp_path: Path
) -> None:
    source = opened(write(tmp_path, ["eve", "bob", " eve ", "Bob"], labelled), WHO)
    assert units(source) == ["eve", "bob", "eve", "Bob"]
    assert isinstance(source, LabeledDataSource) == labelled
    check_data_source(source)


@pytest.mark.parametrize("write", WRITERS)
def test_a_person_has_one_id_in_every_format(write: Writer, tmp_path: Path) -> None:
    assert units(opened(write(tmp_path, [12, 7, 12], False), WHO)) == ["12", "7", "12"]


def test_zeros_before_a_number_are_part_of_an_id(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png())
    (tmp_path / "x.csv").write_text("image,who\n1.png,007\n1.png,7\n")
    assert units(opened(tmp_path / "x.csv", WHO)) == ["007", "7"]


@pytest.mark.parametrize("cells", [["eve", "bob", "eve"], [3, 1, 3]], ids=["texts", "numbers"])
def test_a_dictionary_encoded_column_is_read_as_its_values(cells: Cells, tmp_path: Path) -> None:
    table = pa.table({"image": [png()] * 3, "who": pa.array(cells).dictionary_encode()})
    parquet.write_table(table, tmp_path / "x.parquet")
    assert units(opened(tmp_path / "x.parquet", WHO)) == [str(cell) for cell in cells]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("gap", [None, " ", "NaN", "<NA>", "None"])
def test_a_row_without_a_subject_is_refused_at_opening(
    write: Writer, gap: str | None, tmp_path: Path
) -> None:
    path = write(tmp_path, [SECRET, gap, gap, SECRET], False)
    with pytest.raises(DataError, match="2 of its 4 rows have no subject in 'who'") as caught:
        opened(path, WHO)
    assert SECRET not in str(caught.value)
    assert caught.value.fix
    assert len(opened(path, None)) == 4  # without subjects the same file is sound


def test_whole_numbers_with_a_null_are_refused_for_the_null(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of its 2 rows have no subject"):
        opened(write_jsonl(tmp_path, [12, None], False), WHO)


def test_a_column_of_nulls_alone_is_refused_for_the_nulls(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of its 2 rows have no subject"):
        opened(write_jsonl(tmp_path, [None, None], False), WHO)


def two_columns(folder: Path) -> Path:
    (folder / "1.png").write_bytes(png())
    (folder / "x.csv").write_text(f"image,who,who\n1.png,{SECRET},{SECRET}\n")
    return folder / "x.csv"


def floats(folder: Path) -> Path:
    table = pa.table({"image": [png()], "who": [4711.5]})
    parquet.write_table(table, folder / "x.parquet")
    return folder / "x.parquet"


def short_array(folder: Path) -> Path:
    np.savez(folder / "x.npz", images=np.zeros((2, 4, 4), np.uint8), who=np.array([SECRET]))
    return folder / "x.npz"


def plain_array(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((2, 4, 4), np.uint8))
    return folder / "x.npy"


def one_image(folder: Path) -> Path:
    (folder / "1.png").write_bytes(png())
    return folder


OTHER = ColumnSubjects(by="column", column="other")


@pytest.mark.parametrize(
    ("make", "grouping", "why"),
    [
        (lambda f: write_csv(f, [SECRET], False), OTHER, "no column 'other'"),
        (lambda f: write_npz(f, [SECRET], False), OTHER, "no array 'other'"),
        (two_columns, WHO, "twice"),
        (floats, WHO, "column 'who' is double"),
        (short_array, WHO, "of shape"),
        (plain_array, WHO, "no array 'who'"),
        (one_image, WHO, "no columns"),
        (plain_array, level(1), "not a folder"),
        (lambda f: write_csv(f, [SECRET], False), level(1), "not a folder"),
    ],
)
def test_a_data_set_that_does_not_say_whose_records_they_are_is_refused(
    make: Callable[[Path], Path], grouping: Grouping, why: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=why) as caught:
        opened(make(tmp_path), grouping)
    assert SECRET not in str(caught.value)
    assert "4711" not in str(caught.value)
    assert caught.value.fix


# --- a folder level --------------------------------------------------------------------


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png())
    return root


def test_at_level_one_the_folders_are_subjects_and_not_classes(tmp_path: Path) -> None:
    root = tree(tmp_path, "bob/1.png", "eve/1.png", "eve/deep/2.png")
    source = opened(root, level(1))
    assert units(source) == ["bob", "eve", "eve"]
    assert not isinstance(source, LabeledDataSource)
    assert isinstance(opened(root, None), LabeledDataSource)
    check_data_source(source)


def test_below_level_one_the_first_folder_stays_the_class(tmp_path: Path) -> None:
    root = tree(tmp_path, "cat/bob/1.png", "cat/eve/deep/1.png", "dog/eve/1.png")
    source = opened(root, level(2))
    assert units(source) == ["bob", "eve", "eve"]  # eve is one person in two classes
    assert isinstance(source, LabeledDataSource)
    assert [source.label_of(index) for index in range(3)] == [0, 0, 1]


def test_a_level_deeper_than_an_image_lies_is_refused_with_the_deepest_that_does(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path, f"cat/{SECRET}/deep/1.png", f"cat/{SECRET}/2.png", "dog/eve/3.png")
    with pytest.raises(DataError, match="2 of its 3 images lie less than 3 folders") as caught:
        opened(root, level(3))
    assert "at most 2" in caught.value.fix
    assert SECRET not in str(caught.value)
    assert units(opened(root, level(2))) == [SECRET, SECRET, "eve"]


def test_images_in_no_folder_have_no_subject(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="move each image into a folder"):
        opened(one_image(tmp_path), level(1))


# --- a function, and blocks ------------------------------------------------------------


def test_a_function_is_asked_once_for_every_record(tmp_path: Path) -> None:
    asked: list[int] = []

    def whose(number: int) -> Subject:
        asked.append(number)
        return np.int64(number % 2) if number else " zero "  # type: ignore[return-value]

    source = opened(write_npz(tmp_path, ["a"] * 4, True), whose)
    assert units(source) == units(source) == ["zero", 1, 0, 1]
    assert asked == [0, 1, 2, 3]
    assert all(type(unit) in (str, int) for unit in units(source))
    assert isinstance(source, LabeledDataSource)
    check_data_source(source)


def fails(number: int) -> Subject:
    raise ValueError(SECRET)


@pytest.mark.parametrize(
    "function",
    [fails, lambda n: None, lambda n: "", lambda n: "nan", lambda n: True, lambda n: 1.5,
     lambda n: (SECRET,)],
    ids=["raises", "None", "empty", "nan", "bool", "float", "tuple"],
)  # fmt: skip
def test_a_function_that_gives_no_id_is_refused_with_the_records_number_alone(
    function: Callable[[int], Subject], tmp_path: Path
) -> None:
    path = write_npz(tmp_path, ["a"], False)
    with pytest.raises(PluginError, match="record 0") as caught:
        opened(path, function)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("write", WRITERS)
def test_blocks_take_so_many_records_in_a_row(write: Writer, tmp_path: Path) -> None:
    assert units(opened(write(tmp_path, ["a"] * 4, False), blocks(3))) == [0, 0, 0, 1]


@given(count=st.integers(1, 200), size=st.integers(1, 50))
def test_all_blocks_but_the_last_are_of_one_size(count: int, size: int) -> None:
    subjects = subjects_by_number(range(count), blocks(size))
    sizes = np.bincount(number_subjects(subjects)).tolist()
    assert sizes[:-1] == [size] * (len(sizes) - 1)
    assert 1 <= sizes[-1] <= size
    assert sum(sizes) == count


@given(subjects=st.lists(st.sampled_from(["a", "b", 1, 2, ("c",)]), min_size=1))
def test_subjects_are_numbered_as_they_first_appear(subjects: list[object]) -> None:
    numbers = number_subjects(subjects)  # type: ignore[arg-type]
    first = list(dict.fromkeys(subjects))
    assert [first[number] for number in numbers] == subjects


# --- plans -----------------------------------------------------------------------------


def test_a_plan_is_its_own_grouping_except_for_a_function() -> None:
    plugins = PluginTable({"whose": "operator:neg", "number": "math:pi"})
    for plan in (None, WHO, level(2), blocks(3)):
        assert resolve_grouping(plan, plugins) == plan
    function = resolve_grouping(FunctionSubjects(by="function", name="whose"), plugins)
    assert callable(function)
    assert function(3) == -3
    with pytest.raises(PluginError, match="not a function"):
        resolve_grouping(FunctionSubjects(by="function", name="number"), plugins)
    with pytest.raises(PluginError, match="not configured"):
        resolve_grouping(FunctionSubjects(by="function", name="other"), plugins)


# --- in memory -------------------------------------------------------------------------

IMAGES = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
CLASSES = np.arange(8, dtype=np.int64)
IDS = st.lists(st.one_of(st.integers(), st.text()), min_size=8, max_size=8)


@settings(max_examples=50, deadline=None)
@given(subjects=IDS, chosen=st.lists(st.integers(0, 7), min_size=1), labelled=st.booleans())
def test_records_that_are_taken_keep_their_subjects(
    subjects: list[int | str], chosen: list[int], labelled: bool
) -> None:
    source = (
        LabeledArraySource(IMAGES, CLASSES, subjects=subjects)
        if labelled
        else ArraySource(IMAGES, subjects=subjects)
    )
    part = source.take(chosen)
    assert units(part) == [subjects[index] for index in chosen]
    assert isinstance(part, LabeledDataSource) == labelled
    again = part.take([0])
    assert units(again) == [subjects[chosen[0]]]
    assert torch.equal(again[0], IMAGES[chosen[0]])


def test_without_subjects_a_record_that_is_taken_stays_a_unit_of_its_own() -> None:
    assert units(ArraySource(IMAGES).take([5, 5, 2])) == [0, 1, 2]


@pytest.mark.parametrize("subjects", [["a"] * 7, ["a"] * 7 + [None]], ids=["few", "none"])
def test_an_array_source_needs_a_subject_for_every_image(subjects: list[str | None]) -> None:
    with pytest.raises(DataError, match="subject"):
        ArraySource(IMAGES, subjects=subjects)


def test_array_sources_with_subjects_pass_the_conformance_suite() -> None:
    check_data_source(ArraySource(IMAGES, subjects=["a", "b"] * 4))
    check_data_source(LabeledArraySource(IMAGES, CLASSES, subjects=[1] * 8))
