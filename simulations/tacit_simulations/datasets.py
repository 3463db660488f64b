"""The data of a simulation: one pool of images for all sites, and images held out to judge by."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tacit_client.data import (
    ArraySource,
    LabeledArraySource,
    class_folders,
    fit_image,
    open_source,
)
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.errors import DataError
from tacit_common.plugins import PluginTable, require
from tacit_common.procedural import strokes
from tacit_common.study import PluginPlan
from tacit_common.training import seeded_generator

DIGITS_HELD_OUT = 360
DIGITS_SPLIT_SEED = 0  # the split never moves, so that studies with other seeds compare

STROKES_TRAIN, STROKES_HELD_OUT = 2000, 500

HELD_OUT_SHARE = 0.2
"""Share of a data set without a split of its own that is held out."""


@dataclass(frozen=True)
class LabeledImages:
    """Images for the sites and images held out: `LabeledArraySource`, unless `classes` is 0."""

    train: ArraySource
    test: ArraySource
    classes: int
    description: str


def load_dataset(
    name: str, *, image_size: int, channels: int, seed: int, plugins: PluginTable
) -> LabeledImages:
    """The data set that a simulation names, converted to the encoder's size and channels.

    - `digits`: the 1,797 scanned digits of 8 x 8 pixels that ship with scikit-learn (UCI,
      Alpaydin and Kaynak), 360 of them held out, stratified, the same for every seed.
    - `strokes`: 2,500 procedural images without labels, drawn from `seed`, 500 held out.
    - a name under [plugins]: a factory of a `DataSource`, called with `image_size` and
      `channels`; 20 % of its records are held out by `seed`.
    - a path: a folder with the image folders `train` and `test`, or anything that
      `tacit_client.data.open_source` reads, split as above.

    Raises:
        DataError: there is no such data set, or it cannot be read.
        PluginError: the plug-in cannot be used.
    """
    if name == "digits":
        return _digits(image_size, channels)
    if name == "strokes":
        return _strokes(image_size, channels, seed)
    if name in plugins.targets:
        plan = PluginPlan(
            kind="plugin", name=name, options={"image_size": image_size, "channels": channels}
        )
        source = require(plugins.create(plan, "data set"), DataSource, name)
        return _split(source, seed, f"plug-in {name}")
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"there is no data set '{name}'",
            why="it is not digits or strokes, not a name under [plugins], and not a path",
            fix="set simulation.dataset to one of these",
        )
    if (path / "train").is_dir() and (path / "test").is_dir():
        return _folders(path, image_size, channels)
    source = open_source(path, image_size=image_size, channels=channels)
    return _split(source, seed, path.name)


def _digits(image_size: int, channels: int) -> LabeledImages:
    # scikit-learn takes a second to import, which other data sets need not wait.
    from sklearn.datasets import load_digits  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415

    pixels, labels = load_digits(return_X_y=True)
    planes = (pixels / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    images = torch.stack(
        [fit_image(plane, image_size=image_size, channels=channels) for plane in planes]
    )
    train, test = train_test_split(
        np.arange(len(labels)),
        test_size=DIGITS_HELD_OUT,
        stratify=labels,
        random_state=DIGITS_SPLIT_SEED,
    )
    pool = LabeledArraySource(images, labels.astype(np.int64))
    return _described(pool.take(train), pool.take(test), "scikit-learn's scanned digits")


def _strokes(image_size: int, channels: int, seed: int) -> LabeledImages:
    # A stream of its own: the warm start and the probes draw from other ones.
    count = STROKES_TRAIN + STROKES_HELD_OUT
    generator = seeded_generator(seed, "simulated strokes")
    images = strokes(count, image_size=image_size, channels=channels, generator=generator)
    train, test = ArraySource(images[:STROKES_TRAIN]), ArraySource(images[STROKES_TRAIN:])
    return _described(train, test, "procedural strokes")


def _folders(path: Path, image_size: int, channels: int) -> LabeledImages:
    folders = [path / "train", path / "test"]
    # Both folders get one numbering, also where one of them lacks a class.
    names = sorted({entry.name for folder in folders for entry in class_folders(folder)})
    class_names = None if all(name.isdecimal() for name in names) else names
    train, test = (
        _read(
            open_source(folder, image_size=image_size, channels=channels, class_names=class_names)
        )
        for folder in folders
    )
    return _described(train, test, path.name)


def _split(source: DataSource, seed: int, name: str) -> LabeledImages:
    if len(source) < 2:
        raise DataError(
            f"data set '{name}' cannot be split",
            why=f"it has {len(source)} records, and some are held out",
            fix="give two records or more",
        )
    pool = _read(source)
    held_out = max(1, round(HELD_OUT_SHARE * len(pool)))
    order = np.random.default_rng(seed).permutation(len(pool))
    return _described(pool.take(order[held_out:]), pool.take(order[:held_out]), name)


def _read(source: DataSource) -> ArraySource:
    """All records in memory, with their labels where there are some."""
    images = torch.stack([source[index] for index in range(len(source))])
    if not isinstance(source, LabeledDataSource):
        return ArraySource(images)
    labels = [source.label_of(index) for index in range(len(source))]
    return LabeledArraySource(images, np.array(labels, dtype=np.int64))


def _described(train: ArraySource, test: ArraySource, name: str) -> LabeledImages:
    classes = 0
    if isinstance(train, LabeledArraySource) and isinstance(test, LabeledArraySource):
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
    kind = f"{classes} classes" if classes else "no labels"
    return LabeledImages(
        train=train,
        test=test,
        classes=classes,
        description=f"{name} ({kind}): {len(train):,} for the sites, {len(test):,} held out",
    )
