"""Parquet, CSV and JSON lines as a Hugging Face `datasets.Dataset`.

The column `image` holds encoded images (bytes, or the struct of bytes and path that
Hugging Face writes), paths relative to the table's folder, or nested lists of pixels
[H][W] or [C][H][W]: whole numbers up to 255, or floats in [0, 1]. The column `label`, if
there, holds whole numbers or names. A column of subjects holds texts or whole numbers; its
ids are texts either way, so that a person has one id in every format.

Tables are read into memory by Arrow itself: the loaders of `datasets` would leave a
second copy of private data in a cache folder.
"""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, Image
from numpy.typing import NDArray
from pyarrow import csv, json, parquet
from torch import Tensor

from tacit_client.data.pixels import (
    can_convert,
    decode_image,
    fit_image,
    require_file_channels,
    scale_to_unit,
)
from tacit_client.data.records import Records, unfit
from tacit_client.data.subjects import Subject, column_subjects


def open_table(
    path: Path, *, image_size: int, channels: int, subject_column: str | None = None
) -> Records:
    """The images of column `image`, and the classes of column `label` where there is one.

    With `subject_column`, each row's subject is what stands in that column.

    Raises:
        DataError: it is not such a table, or a row has no subject.
    """
    table = _read_arrow(path, subject_column)
    if len(set(table.column_names)) != len(table.column_names):
        raise unfit(path, "it has a column name twice", "give every column a name of its own")
    dataset = Dataset(table)
    missing = "image" not in dataset.column_names
    if missing or len(dataset) == 0:
        raise unfit(
            path,
            "it has no column 'image'" if missing else "it has no rows",
            "give a table with one row a record and its image in the column 'image'",
        )
    _check_images(dataset.data.schema.field("image").type, channels, path)
    images = _without_decoding(dataset)

    def decode(index: int) -> Tensor:
        value = images[index]["image"]
        if isinstance(value, list):
            pixels = _nested_pixels(value, channels)
            return fit_image(pixels, image_size=image_size, channels=channels)
        if isinstance(value, dict):
            value = value["bytes"] if value["bytes"] is not None else value["path"]
        file = path.parent / value if isinstance(value, str) else io.BytesIO(value)
        return decode_image(file, image_size=image_size, channels=channels)

    return Records(
        decode,
        len(images),
        classes=_classes(dataset, path),
        subjects=None if subject_column is None else _subjects(table, subject_column, path),
    )


def _read_arrow(path: Path, subject_column: str | None) -> pa.Table:
    """The whole table in memory."""
    suffix = path.suffix.lower()
    # Ids are names, also where they look like numbers: '007' and '7' are not the same.
    as_text = {} if subject_column is None else {subject_column: pa.string()}
    try:
        if suffix == ".parquet":
            return parquet.read_table(path)
        if suffix == ".csv":
            return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=as_text))
        return json.read_json(path)
    except (pa.ArrowException, OSError):  # Arrow's text quotes rows: none of it is kept
        raise unfit(
            path,
            f"Arrow cannot read it as {suffix}",
            "check it with pyarrow; JSON needs one object a line",
        ) from None


def _without_decoding(dataset: Dataset) -> Dataset:
    """The column `image` alone, as it is stored: decoding is ours."""
    images = dataset.select_columns(["image"])
    if isinstance(images.features["image"], Image):
        images = images.cast_column("image", Image(decode=False))
    return images


def _check_images(stored: pa.DataType, channels: int, path: Path) -> None:
    """Refuse a column type in which no record could be an image."""
    types = pa.types
    if types.is_list(stored) or types.is_large_list(stored):
        return
    is_file = types.is_struct(stored) and {"bytes", "path"} <= {field.name for field in stored}
    is_encoded = types.is_binary(stored) or types.is_large_binary(stored)
    if not (is_file or is_encoded or types.is_string(stored) or types.is_large_string(stored)):
        raise unfit(
            path,
            f"its column 'image' is {stored}",
            "store encoded images, paths relative to the table's folder, or lists of pixels",
        )
    require_file_channels(channels)


def _nested_pixels(value: list[object], channels: int) -> NDArray[np.float32]:
    """Pixels [C, H, W] in [0, 1] from nested lists [H][W] or [C][H][W].

    Raises:
        ValueError: they are ragged, out of range, or of another number of channels.
    """
    pixels = np.array(value)
    if pixels.ndim == 2:
        pixels = pixels[None]
    if pixels.ndim != 3 or not can_convert(pixels.shape[0], channels):
        raise ValueError("not an image")
    return scale_to_unit(pixels / 255.0 if pixels.dtype.kind in "iu" else pixels)


def _classes(dataset: Dataset, path: Path) -> NDArray[np.int64] | list[str] | None:
    if "label" not in dataset.column_names:
        return None
    column = dataset.data.column("label")
    is_name = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if column.null_count or not (is_name or pa.types.is_integer(column.type)):
        raise unfit(
            path,
            f"its column 'label' is {column.type} with {column.null_count} empty cells",
            "fill it with whole numbers or names, or leave it out",
        )
    if is_name:
        return [str(name) for name in column.to_pylist()]
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _subjects(table: pa.Table, name: str, path: Path) -> list[Subject]:
    if name not in table.column_names:
        raise unfit(
            path, f"it has no column '{name}'", "name the column that says whose record a row is"
        )
    column = table.column(name)
    types = pa.types
    stored = column.type.value_type if types.is_dictionary(column.type) else column.type
    is_text = types.is_string(stored) or types.is_large_string(stored)
    if not (is_text or types.is_integer(stored) or column.null_count == len(column)):
        raise unfit(
            path,
            f"its column '{name}' is {column.type}",
            "store subjects as texts or whole numbers; gaps turn whole numbers into floats",
        )
    return column_subjects(column.cast(pa.string()).to_pylist(), name, path)
