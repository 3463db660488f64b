"""The data of a simulation: one pool of images for all sites, and images held out to judge by."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tacit_client.data import (
    ArraySource,
    Grouping,
    LabeledArraySource,
    class_folders,
    fit_image,
    open_source,
    resolve_grouping,
)
from tacit_client.data.subjects import Subject, number_subjects, subjects_by_number
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.errors import DataError, UnreadableRecordError
from tacit_common.plugins import PluginTable, require
from tacit_common.procedural import strokes
from tacit_common.study import (
    BlockSubjects,
    ColumnSubjects,
    FolderSubjects,
    PluginPlan,
    SubjectsPlan,
)
from tacit_common.training import seeded_generator

DIGITS_HELD_OUT = 360
DIGITS_SPLIT_SEED = 0  # the split never moves, so that studies with other seeds compare

STROKES_TRAIN, STROKES_HELD_OUT = 2000, 500

HELD_OUT_SHARE = 0.2
"""Share of the units of a data set without a split of its own that is held out."""


@dataclass(frozen=True)
class LabeledImages:
    """Images for the sites and images held out: `LabeledArraySource`, unless `classes` is 0.

    `train.subjects` says whose record each is, or is None where all are of their own.
    """

    train: ArraySource
    test: ArraySource
    classes: int
    description: str


def load_dataset(
    name: str,
    *,
    image_size: int,
    channels: int,
    seed: int,
    plugins: PluginTable,
    subjects: SubjectsPlan | None = None,
) -> LabeledImages:
    """The data set that a simulation names, converted to the encoder's size and channels.

    - `digits`: the 1,797 scanned digits of 8 x 8 pixels that ship with scikit-learn (UCI,
      Alpaydin and Kaynak), 360 of them held out, stratified, the same for every seed.
    - `strokes`: 2,500 procedural images without labels, drawn from `seed`, 500 held out.
    - a name under [plugins]: a factory of a `DataSource`, called with `image_size` and
      `channels`; 20 % of its units of privacy are held out by `seed`.
    - a path: a folder with the image folders `train` and `test`, or anything that
      `tacit_client.data.open_source` reads, split as above.

    `subjects` groups the records for the sites; a function is called with a record's
    number in the data set's own order. A subject is held out whole, except where the data
    set fixes what is held out: `digits` and `strokes` (the same for every grouping, so that
    studies compare) and a `test` folder.

    Records that cannot be read are left out, and the description says how many.

    Raises:
        DataError: there is no such data set, it cannot be read, or it does not say whose
            records they are in the way that `subjects` asks for.
        PluginError: the plug-in, or the function of subjects, cannot be used.
    """
    grouping = resolve_grouping(subjects, plugins)
    if name == "digits":
        return _digits(image_size, channels, grouping)
    if name == "strokes":
        return _strokes(image_size, channels, seed, grouping)
    if name in plugins.targets:
        plan = PluginPlan(
            kind="plugin", name=name, options={"image_size": image_size, "channels": channels}
        )
        source = require(plugins.create(plan, "data set"), DataSource, name)
        ids = (
            _own_subjects(source)
            if grouping is None
            else _by_number(range(len(source)), grouping, name)
        )
        return _split(source, ids, seed, f"plug-in {name}")
    path = Path(name)
    if not path.exists():
        raise DataError(
            f"there is no data set '{name}'",
            why="it is not digits or strokes, not a name under [plugins], and not a path",
            fix="set simulation.dataset to one of these",
        )
    if (path / "train").is_dir() and (path / "test").is_dir():
        return _folders(path, image_size, channels, grouping)
    source = open_source(path, image_size=image_size, channels=channels, subjects=grouping)
    return _split(source, _subjects(source, grouping), seed, path.name)


def _digits(image_size: int, channels: int, grouping: Grouping | None) -> LabeledImages:
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
    sites = pool.take(train)
    if grouping is not None:
        ids = _by_number(train.tolist(), grouping, "digits")
        sites = LabeledArraySource(sites.images, sites.labels, subjects=ids)
    return _described(sites, pool.take(test), "scikit-learn's scanned digits")


def _strokes(image_size: int, channels: int, seed: int, grouping: Grouping | None) -> LabeledImages:
    # A stream of its own: the warm start and the probes draw from other ones.
    count = STROKES_TRAIN + STROKES_HELD_OUT
    generator = seeded_generator(seed, "simulated strokes")
    images = strokes(count, image_size=image_size, channels=channels, generator=generator)
    ids = None if grouping is None else _by_number(range(STROKES_TRAIN), grouping, "strokes")
    train = ArraySource(images[:STROKES_TRAIN], subjects=ids)
    return _described(train, ArraySource(images[STROKES_TRAIN:]), "procedural strokes")


def _by_number(numbers: Iterable[int], grouping: Grouping, name: str) -> list[Subject]:
    """Subjects of the records `numbers` of a data set that has neither columns nor folders.

    Blocks are formed of these records alone, in the order of their numbers, so that all but
    the last are of one size.
    """
    if isinstance(grouping, ColumnSubjects | FolderSubjects):
        raise DataError(
            f"data set '{name}' has no {grouping.by} that names a subject",
            why="only files and folders on disk have one",
            fix="set simulation.subjects.by to 'function' or 'blocks', or let unit_of of a "
            "plug-in say it",
        )
    asked = list(numbers)
    if isinstance(grouping, BlockSubjects):
        asked = np.argsort(np.argsort(asked)).tolist()
    return subjects_by_number(asked, grouping)


def _folders(
    path: Path, image_size: int, channels: int, grouping: Grouping | None
) -> LabeledImages:
    folders = [path / "train", path / "test"]
    # Both folders get one numbering, also where one of them lacks a class.
    names = sorted({entry.name for folder in folders for entry in class_folders(folder)})
    class_names = None if all(name.isdecimal() for name in names) else names
    train, test = (
        open_source(
            folder,
            image_size=image_size,
            channels=channels,
            class_names=class_names,
            # What is held out needs no subjects, but its folders mean what the others do.
            subjects=grouping if part == "train" or isinstance(grouping, FolderSubjects) else None,
        )
        for part, folder in zip(("train", "test"), folders, strict=True)
    )
    sites, left_out = _read(train, _subjects(train, grouping), "train")
    held_out, left_out_too = _read(test, None, "test")
    return _described(sites, held_out, path.name, left_out + left_out_too)


def _subjects(source: DataSource, grouping: Grouping | None) -> list[Hashable] | None:
    """The subjects of a source that was opened with `grouping`."""
    return None if grouping is None else [source.unit_of(i) for i in range(len(source))]


def _own_subjects(source: DataSource) -> list[Hashable] | None:
    """The subjects that a plug-in names; None where every record is a unit of its own."""
    units = [source.unit_of(index) for index in range(len(source))]
    return None if units == list(range(len(units))) else units


def _split(
    source: DataSource, subjects: Sequence[Hashable] | None, seed: int, name: str
) -> LabeledImages:
    pool, left_out = _read(source, subjects, name)
    unit_of = number_subjects(range(len(pool)) if pool.subjects is None else pool.subjects)  # [N]
    units = 1 + int(unit_of.max())
    if units < 2:
        raise DataError(
            f"data set '{name}' cannot be split",
            why=f"its {len(pool)} records are of one unit of privacy, and some are held out",
            fix="give two records or more, of two subjects or more",
        )
    held_out = max(1, round(HELD_OUT_SHARE * units))
    # Records in the order in which their units are drawn: the first units are held out.
    place = np.argsort(np.random.default_rng(seed).permutation(units))[unit_of]  # [N]
    order = np.argsort(place, kind="stable")
    first = int((place < held_out).sum())
    return _described(pool.take(order[first:]), pool.take(order[:first]), name, left_out)


def _read(
    source: DataSource, subjects: Sequence[Hashable] | None, name: str
) -> tuple[ArraySource, int]:
    """All records that can be read, with subjects and labels, and how many could not be."""
    kept, images = [], []
    for index in range(len(source)):
        try:
            images.append(source[index])
        except UnreadableRecordError:
            continue
        kept.append(index)
    if not kept:
        raise DataError(
            f"data set '{name}' cannot be used",
            why=f"none of its {len(source)} records can be read",
            fix="give at least one record that can",
        )
    pixels, left_out = torch.stack(images), len(source) - len(kept)
    ids = None if subjects is None else [subjects[index] for index in kept]
    if not isinstance(source, LabeledDataSource):
        return ArraySource(pixels, subjects=ids), left_out
    labels = np.array([source.label_of(index) for index in kept], dtype=np.int64)
    return LabeledArraySource(pixels, labels, subjects=ids), left_out


def _described(
    train: ArraySource, test: ArraySource, name: str, left_out: int = 0
) -> LabeledImages:
    classes = 0
    if isinstance(train, LabeledArraySource) and isinstance(test, LabeledArraySource):
        classes = 1 + int(max(train.labels.max(), test.labels.max()))
    kind = f"{classes} classes" if classes else "no labels"
    whose = "" if train.subjects is None else f" of {len(set(train.subjects)):,} subjects"
    damaged = f", {left_out:,} that cannot be read left out" if left_out else ""
    return LabeledImages(
        train=train,
        test=test,
        classes=classes,
        description=f"{name} ({kind}): {len(train):,}{whose} for the sites, "
        f"{len(test):,} held out{damaged}",
    )
