"""A data set on disk as a data source: random access, one record decoded at a time.

| path | records | classes |
|---|---|---|
| `.npy` | [N, H, W], [N, C, H, W] or [N, H, W, C]; stays on disk | none |
| `.npz` | the same, under `images` | under `labels` |
| folder of image files | sorted by name | none |
| folder of class folders | sorted by class, then path | the folders |
| `.parquet`, `.csv`, `.jsonl` | column `image` | column `label` |

Pixels become float32 in [0, 1]: 8-bit pixels are divided by 255, 16-bit ones by 65535,
floats must be in [0, 1] already. Images are converted to the encoder's channels and
resized to its size (`pixels.py`). A record that cannot be decoded is an error when it is
read, and no hindrance to the others.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tacit_client.data.array_files import open_array
from tacit_client.data.folders import open_folder
from tacit_client.data.records import Records, as_source, unfit
from tacit_client.data.subjects import Grouping, subjects_by_number
from tacit_common.data import DataSource
from tacit_common.errors import DataError
from tacit_common.study import BlockSubjects, ColumnSubjects, FolderSubjects

ARRAY_SUFFIXES = frozenset({".npy", ".npz"})
TABLE_SUFFIXES = frozenset({".parquet", ".csv", ".jsonl", ".ndjson"})
READABLE = ".npy, .npz, .parquet, .csv, .jsonl, a folder of images or a folder of class folders"


def open_source(
    path: Path,
    *,
    image_size: int,
    channels: int,
    class_names: Sequence[str] | None = None,
    subjects: Grouping | None = None,
) -> DataSource:
    """Open the data set at `path`; it is a `LabeledDataSource` where it has classes.

    A class that is named by a whole number is that number. Other names are numbered by
    their place in `class_names`, or without it by their sorted order *at this path*:
    sites that do not all hold every class need the same `class_names`, or one class has
    different numbers at two of them.

    `subjects` says which records are of one subject (`subjects.py`); without it every
    record is its own unit of privacy.

    Raises:
        DataError: there is nothing there, nothing that can be read as images, or some
            record's subject is not known.
        PluginError: a function of subjects fails.
    """
    if not path.exists():
        raise DataError(
            f"data set '{path}' cannot be opened",
            why="there is no such file or folder",
            fix=f"give the path of one of: {READABLE}",
        )
    records = _open(path, image_size, channels, subjects)
    if isinstance(subjects, BlockSubjects) or callable(subjects):
        records = replace(records, subjects=subjects_by_number(range(records.count), subjects))
    return as_source(records, class_names, path)


def _open(path: Path, image_size: int, channels: int, subjects: Grouping | None) -> Records:
    suffix = path.suffix.lower()
    column = subjects.column if isinstance(subjects, ColumnSubjects) else None
    level = subjects.level if isinstance(subjects, FolderSubjects) else None
    if path.is_dir():
        if column is not None:
            raise unfit(path, "a folder of images has no columns", "group subjects by 'folder'")
        return open_folder(path, image_size=image_size, channels=channels, subject_level=level)
    if level is not None:
        raise unfit(path, "it is a file, not a folder of images", "group subjects by 'column'")
    if suffix in ARRAY_SUFFIXES:
        return open_array(path, image_size=image_size, channels=channels, subject_column=column)
    if suffix in TABLE_SUFFIXES:
        # Arrow and `datasets` take a second to import, which other sites need not wait.
        from tacit_client.data.tables import open_table  # noqa: PLC0415

        return open_table(path, image_size=image_size, channels=channels, subject_column=column)
    raise unfit(path, f"files that end in '{suffix}' are not known", f"give one of: {READABLE}")
