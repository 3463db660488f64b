"""What a simulation trains on: real digits, procedural strokes, or a data set of one's own."""

import hashlib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from tacit_common.data import LabeledDataSource
from tacit_common.errors import DataError, PluginError, UnreadableRecordError
from tacit_common.plugins import PluginTable
from tacit_common.study import (
    BlockSubjects,
    ColumnSubjects,
    FolderSubjects,
    FunctionSubjects,
    SubjectsPlan,
)
from tacit_common.testing import check_data_source
from tacit_simulations.datasets import LabeledImages, load_dataset


def load(
    name: str,
    *,
    image_size: int = 8,
    channels: int = 1,
    seed: int = 0,
    subjects: SubjectsPlan | None = None,
    **targets: str,
) -> LabeledImages:
    return load_dataset(
        name,
        image_size=image_size,
        channels=channels,
        seed=seed,
        plugins=PluginTable(targets),
        subjects=subjects,
    )


def rows(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_digits_are_the_real_ones_split_into_1437_and_360() -> None:
    data = load("digits")
    assert (len(data.train), len(data.test), data.classes) == (1437, 360, 10)
    both = torch.cat([data.train.images, data.test.images]).numpy().reshape(1797, 64)
    pixels, labels = load_digits(return_X_y=True)
    got = np.column_stack([both * 16, np.concatenate([data.train.labels, data.test.labels])])
    wanted = np.column_stack([pixels, labels])
    assert sorted(map(tuple, got)) == sorted(map(tuple, wanted))
    assert "1,437" in data.description


def test_digits_held_out_are_stratified_and_the_same_for_every_seed() -> None:
    first, second = load("digits", seed=0), load("digits", seed=7)
    assert torch.equal(first.test.images, second.test.images)
    shares = np.bincount(first.test.labels) / 360 - np.bincount(first.train.labels) / 1437
    assert float(np.abs(shares).max()) < 0.002


def test_digits_fit_an_encoder_of_another_size() -> None:
    data = load("digits", image_size=16, channels=3)
    assert data.train.images.shape == (1437, 3, 16, 16)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    small = load("digits")
    np.testing.assert_allclose(
        data.train.images.mean(dim=(1, 2, 3)), small.train.images.mean(dim=(1, 2, 3)), atol=0.02
    )


def test_strokes_depend_on_the_seed_alone_and_have_no_labels() -> None:
    first, again, other = load("strokes"), load("strokes"), load("strokes", seed=1)
    assert torch.equal(first.train.images, again.train.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.classes == 0
    assert not isinstance(first.train, LabeledDataSource)
    assert not rows(first.train.images) & rows(first.test.images)


def test_a_path_is_split_by_the_seed_without_overlap(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(50) % 3)
    path = str(tmp_path / "own.npz")
    data, again, other = load(path), load(path), load(path, seed=1)
    assert (len(data.train), len(data.test), data.classes) == (40, 10, 3)
    assert torch.equal(data.test.images, again.test.images)
    assert not torch.equal(data.test.images, other.test.images)
    everything = rows(torch.from_numpy(images[:, None].astype(np.float32) / 255))
    assert rows(data.train.images) | rows(data.test.images) == everything
    label_of = {images[i].tobytes(): i % 3 for i in range(50)}
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert label_of[(image[0] * 255).round().to(torch.uint8).numpy().tobytes()] == label


def test_train_and_test_folders_share_one_numbering(tmp_path: Path) -> None:
    # The test folder lacks "ant": numbered alone, "bee" would be 0 there.
    for split, name in (("train", "ant"), ("train", "bee"), ("test", "bee")):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "1.png")
    data = load(str(tmp_path))
    assert data.train.labels.tolist() == [0, 1]
    assert data.test.labels.tolist() == [1]
    assert data.classes == 2


def test_class_folders_named_by_numbers_keep_them_in_both_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / split / "3"
        folder.mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / "1.png")
    data = load(str(tmp_path))
    assert data.train.labels.tolist() == data.test.labels.tolist() == [3]


class OwnSource:
    """A data source of ten records, as a plug-in."""

    def __init__(self, image_size: int, channels: int) -> None:
        self.shape = (channels, image_size, image_size)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.full(self.shape, index / 10)

    def unit_of(self, index: int) -> int:
        return index

    def label_of(self, index: int) -> int:
        return index % 2


def test_a_plug_in_is_built_for_the_encoder_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "own_source", OwnSource, raising=False)  # a module to name
    data = load("mine", image_size=4, mine="hashlib:own_source")
    assert (len(data.train), len(data.test), data.classes) == (8, 2, 2)
    assert data.train.images.shape[1:] == (1, 4, 4)
    for image, label in zip(data.train.images, data.train.labels, strict=True):
        assert round(float(image[0, 0, 0]) * 10) % 2 == label


def test_a_plug_in_that_is_no_data_source_is_refused() -> None:
    with pytest.raises(PluginError):
        load("mine", mine="collections:UserDict")


def test_an_unknown_name_is_refused_with_what_would_do() -> None:
    with pytest.raises(DataError, match="not digits or strokes"):
        load("digit")


# --- subjects --------------------------------------------------------------------------

WHO = ColumnSubjects(by="column", column="who")
NEGATED = FunctionSubjects(by="function", name="whose")


def blocks(size: int) -> BlockSubjects:
    return BlockSubjects(by="blocks", size=size)


@pytest.mark.parametrize("name", ["digits", "strokes"])
def test_without_subjects_there_are_none(name: str) -> None:
    assert load(name).train.subjects is None


@pytest.mark.parametrize("name", ["digits", "strokes"])
def test_pretended_subjects_have_one_size_and_leave_the_data_as_it_is(name: str) -> None:
    plain, data = load(name), load(name, subjects=blocks(7))
    assert torch.equal(plain.train.images, data.train.images)
    assert torch.equal(plain.test.images, data.test.images)
    assert isinstance(data.train, LabeledDataSource) == isinstance(plain.train, LabeledDataSource)
    assert data.train.subjects is not None
    sizes = sorted(Counter(data.train.subjects).values())
    assert set(sizes[1:]) == {7}
    assert 1 <= sizes[0] <= 7
    assert f"of {len(sizes)} subjects" in data.description
    check_data_source(data.train)


def test_blocks_of_digits_follow_the_order_in_which_they_were_written() -> None:
    # A block of the training part spans few places of the whole set: 5 records in 20 % more.
    pixels, _ = load_digits(return_X_y=True)
    place = {row.astype(np.float32).tobytes(): index for index, row in enumerate(pixels / 16)}
    data = load("digits", subjects=blocks(5))
    numbers: dict[object, list[int]] = {}
    for index, image in enumerate(data.train.images):
        where = place[image.numpy().tobytes()]
        numbers.setdefault(data.train.unit_of(index), []).append(where)
    spans = [(min(found), max(found)) for found in numbers.values()]
    assert all(high < low for (_, high), (low, _) in pairwise(sorted(spans)))


@pytest.mark.parametrize("name", ["digits", "strokes"])
def test_a_function_gets_the_number_in_the_data_sets_own_order(name: str) -> None:
    data = load(name, subjects=NEGATED, whose="operator:neg")
    assert data.train.subjects is not None
    assert len(set(data.train.subjects)) == len(data.train)
    if name == "strokes":
        assert list(data.train.subjects) == [-index for index in range(len(data.train))]
        return
    pixels, labels = load_digits(return_X_y=True)
    for index in (0, 700, 1436):
        number = -int(str(data.train.subjects[index]))
        assert data.train.labels[index] == labels[number]
        np.testing.assert_array_equal(data.train.images[index].flatten() * 16, pixels[number])


def own_npz(folder: Path, who: list[str]) -> str:
    images = np.arange(len(who), dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
    labels = np.arange(len(who)) % 3
    np.savez(folder / "own.npz", images=images, labels=labels, who=np.array(who))
    return str(folder / "own.npz")


def test_whole_subjects_are_held_out_and_records_keep_theirs(tmp_path: Path) -> None:
    who = [f"p{index % 10}" for index in range(50)]
    path = own_npz(tmp_path, who)
    data, again, other = (load(path, subjects=WHO, seed=seed) for seed in (0, 0, 1))
    for part in (data.train, data.test):
        assert part.subjects is not None
        for image, subject, label in zip(part.images, part.subjects, part.labels, strict=True):
            number = round(float(image[0, 0, 0]) * 255)
            assert (subject, label) == (who[number], number % 3)
    assert (len(set(data.train.subjects)), len(set(data.test.subjects))) == (8, 2)
    assert not set(data.train.subjects) & set(data.test.subjects)
    assert (len(data.train), len(data.test)) == (40, 10)
    assert data.test.subjects == again.test.subjects != other.test.subjects
    assert "40 of 8 subjects" in data.description


def test_blocks_of_a_data_set_of_ones_own_are_held_out_whole(tmp_path: Path) -> None:
    data = load(own_npz(tmp_path, ["x"] * 50), subjects=blocks(5))
    assert data.train.subjects is not None
    assert data.test.subjects is not None
    assert set(Counter(data.train.subjects).values()) == {5}
    assert not set(data.train.subjects) & set(data.test.subjects)


def test_one_subject_alone_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two subjects"):
        load(own_npz(tmp_path, ["x"] * 50), subjects=WHO)


def test_without_subjects_records_are_held_out_as_they_were_before_there_were_any(
    tmp_path: Path,
) -> None:
    data = load(own_npz(tmp_path, ["x"] * 50), seed=4)
    order = np.random.default_rng(4).permutation(50)
    numbers = [(part.images[:, 0, 0, 0] * 255).round().int() for part in (data.test, data.train)]
    assert torch.cat(numbers).tolist() == order.tolist()


def test_folders_of_subjects_are_no_classes_in_either_split(tmp_path: Path) -> None:
    for split, names in (("train", ("eve", "bob", "eve")), ("test", ("sue",))):
        for index, name in enumerate(names):
            file = tmp_path / split / name / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (8, 8)).save(file)
    data = load(str(tmp_path), subjects=FolderSubjects(by="folder", level=1))
    assert data.train.subjects == ("bob", "eve", "eve")
    assert data.classes == 0
    assert not isinstance(data.test, LabeledDataSource)
    in_blocks = load(str(tmp_path), subjects=blocks(2))
    assert in_blocks.train.subjects == (0, 0, 1)
    assert in_blocks.classes == 3


@pytest.mark.parametrize("name", ["digits", "strokes", "mine"])
@pytest.mark.parametrize(
    "plan", [WHO, FolderSubjects(by="folder", level=1)], ids=["column", "folder"]
)
def test_data_without_columns_or_folders_says_so(
    name: str, plan: SubjectsPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashlib, "own_source", OwnSource, raising=False)
    with pytest.raises(DataError, match=f"has no {plan.by}"):
        load(name, subjects=plan, mine="hashlib:own_source")


class OfTwo(OwnSource):
    """Records 2 k and 2 k + 1 are of one subject, which the source names itself."""

    def unit_of(self, index: int) -> tuple[str, int]:  # type: ignore[override]
        return ("subject", index // 2)


def test_a_plug_in_says_itself_whose_its_records_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "own_source", OfTwo, raising=False)
    data = load("mine", image_size=4, mine="hashlib:own_source")
    assert (len(data.train), len(data.test)) == (8, 2)
    for image, subject in zip(data.train.images, data.train.subjects or (), strict=True):
        assert subject == ("subject", round(float(image[0, 0, 0]) * 10) // 2)
    assert len(set(data.train.subjects or ())) == 4
    regrouped = load("mine", image_size=4, subjects=blocks(5), mine="hashlib:own_source")
    assert set(regrouped.train.subjects or ()) | set(regrouped.test.subjects or ()) == {0, 1}


# --- records that cannot be read -------------------------------------------------------


def test_records_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    images = np.arange(50, dtype=np.float32)[:, None, None].repeat(8, 1).repeat(8, 2) / 50
    images[[3, 30], 0, 0] = [np.nan, 7.0]
    who = [f"p{index}" for index in range(50)]
    np.savez(tmp_path / "own.npz", images=images, labels=np.arange(50), who=np.array(who))
    data = load(str(tmp_path / "own.npz"), subjects=WHO)
    assert len(data.train) + len(data.test) == 48
    assert "2 that cannot be read left out" in data.description
    for part in (data.train, data.test):
        for image, label, subject in zip(
            part.images, part.labels, part.subjects or (), strict=True
        ):
            assert round(float(image[0, 0, 0]) * 50) == label
            assert subject == f"p{label}"
    assert "left out" not in load("digits").description


class Damaged(OwnSource):
    """No record of it can be read."""

    def __getitem__(self, index: int) -> Tensor:
        raise UnreadableRecordError("a record is damaged", why="it is", fix="mend it")


def test_a_data_set_of_which_nothing_can_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hashlib, "own_source", Damaged, raising=False)
    with pytest.raises(DataError, match="none of its 10 records"):
        load("mine", mine="hashlib:own_source")


def test_a_single_record_cannot_be_split(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(DataError, match="two records"):
        load(str(tmp_path / "x.npy"))
