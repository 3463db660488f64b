"""NumPy arrays on disk: `.npy` stays there, `.npz` is read into memory. Nothing is unpickled."""

import logging
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tacit_client.data.pixels import LARGEST, can_convert, fit_image, scale_to_unit
from tacit_client.data.records import Records, unfit
from tacit_client.data.subjects import Subject, column_subjects

_log = logging.getLogger(__name__)

FEW_CHANNELS = 4
"""An axis this short holds the channels of an image, not its rows or columns."""

SCAN_VALUES = 2**22
"""Values that are checked at once."""


def open_array(
    path: Path, *, image_size: int, channels: int, subject_column: str | None = None
) -> Records:
    """Images [N, H, W], [N, C, H, W] or [N, H, W, C] of uint8, uint16, bool or floats.

    In an `.npz` the images are called `images`, and the classes, if any, `labels` [N].
    `subject_column` names the array of an `.npz` with the subjects [N], texts or whole
    numbers.

    Raises:
        DataError: it is not such an array, no image has its floats in [0, 1], or a record
            has no subject.
    """
    members = _load(path, subject_column)
    stored, labels = members["images"], members.get("labels")
    images = _channels_first(stored, channels, path)  # [N, C, H, W]
    _check_values(images, path)

    def decode(index: int) -> Tensor:
        image = scale_to_unit(np.asarray(images[index]))
        return fit_image(image, image_size=image_size, channels=channels)

    return Records(
        decode,
        len(images),
        classes=None if labels is None else _checked(labels, len(images), path),
        subjects=None
        if subject_column is None
        else _subjects(members.get(subject_column), subject_column, len(images), path),
    )


def _load(path: Path, subject_column: str | None) -> dict[str, NDArray[np.generic]]:
    """The arrays that are read, by name, as they are stored."""
    wanted = {"images", "labels", subject_column}
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"images": loaded}
        with loaded:
            members = {key: loaded[key] for key in loaded.files if key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise unfit(
            path,
            "it is not a NumPy array that can be read without pickle",
            "write it with numpy.save or numpy.savez, as numbers",
        ) from None
    if "images" not in members:
        raise unfit(path, "it has no array 'images'", "save it with numpy.savez(images=...)")
    return members


def _channels_first(images: NDArray[np.generic], channels: int, path: Path) -> NDArray[np.generic]:
    """A view [N, C, H, W] of the images."""
    if 0 in images.shape:
        raise unfit(path, "it holds no images", "give a data set of at least one record")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4:
        raise unfit(
            path,
            f"its images have shape {images.shape}",
            "save them as [N, H, W], [N, C, H, W] or [N, H, W, C]",
        )
    first, last = images.shape[1], images.shape[3]
    few = {channels, *range(1, FEW_CHANNELS + 1)}
    if first not in few and last in few:
        images = images.transpose(0, 3, 1, 2)
    stored = images.shape[1]
    if not can_convert(stored, channels):
        raise unfit(
            path,
            f"its images have {stored} channels",
            f"set encoder.channels to {stored}, or convert them to {channels}",
        )
    return images


def _check_values(images: NDArray[np.generic], path: Path) -> None:
    """Refuse pixel types that have no one meaning, and floats of which no image is in [0, 1].

    An image beside others that can be used is its record's own matter.
    """
    if images.dtype.name in LARGEST or images.dtype.kind == "b":
        return
    if images.dtype.kind != "f":
        raise unfit(
            path,
            f"its pixels are {images.dtype}",
            "save them as uint8, uint16, or floats in [0, 1]",
        )
    rows = max(1, SCAN_VALUES // images[0].size)
    unfit_images = 0
    for start in range(0, len(images), rows):
        part = np.asarray(images[start : start + rows], dtype=np.float32)
        fits = ((part >= 0) & (part <= 1)).all(axis=(1, 2, 3))  # written so that NaN fails too
        unfit_images += int((~fits).sum())
    if unfit_images == len(images):
        raise unfit(
            path,
            "each of its images has a float pixel that is NaN or outside [0, 1]",
            "scale them to [0, 1], or save 8-bit pixels as uint8",
        )
    if unfit_images:
        _log.warning(
            "%d of %d images have a pixel that is no number in [0, 1] and cannot be used",
            unfit_images,
            len(images),
        )


def _checked(labels: NDArray[np.generic], count: int, path: Path) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise unfit(
            path,
            f"its labels are {labels.dtype} of shape {labels.shape}",
            f"save {count} whole numbers, one for each image",
        )
    return labels.astype(np.int64)


def _subjects(
    array: NDArray[np.generic] | None, name: str, count: int, path: Path
) -> list[Subject]:
    if array is None or array.shape != (count,) or array.dtype.kind not in "iuU":
        found = "no array" if array is None else f"{array.dtype} of shape {array.shape} under"
        raise unfit(
            path,
            f"it has {found} '{name}'",
            f"save {count} texts or whole numbers under that name in an .npz, one for each image",
        )
    return column_subjects([str(value) for value in array.tolist()], name, path)
