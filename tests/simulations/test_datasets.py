"""What a simulation trains on: real digits, procedural strokes, or a data set of one's own."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from tacit_common.data import LabeledDataSource
from tacit_common.errors import DataError, PluginError
from tacit_common.plugins import PluginTable
from tacit_simulations.datasets import LabeledImages, load_dataset

NO_PLUGINS = PluginTable()


def load(
    name: str, *, image_size: int = 8, channels: int = 1, seed: int = 0, **targets: str
) -> LabeledImages:
    return load_dataset(
        name,
        image_size=image_size,
        channels=channels,
        seed=seed,
        plugins=PluginTable(targets),
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


def test_a_single_record_cannot_be_split(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 8, 8), np.uint8))
    with pytest.raises(DataError, match="two records"):
        load(str(tmp_path / "x.npy"))
