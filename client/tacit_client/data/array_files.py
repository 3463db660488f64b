"""NumPy arrays on disk: `.npy` stays there, `.npz` is read into memory. Nothing is unpickled."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tacit_client.data.pixels import LARGEST, can_convert, fit_image, scale_to_unit
from tacit_client.data.records import Records, unfit

FEW_CHANNELS = 4
"""An axis this short holds the channels of an image, not its rows or columns."""

SCAN_VALUES = 2**22
"""Values that are checked at once."""


def open_array(path: Path, *, image_size: int, channels: int) -> Records:
    """Images [N, H, W], [N, C, H, W] or [N, H, W, C] of uint8, uint16, bool or floats.

    In an `.npz` the images are called `images`, and the classes, if any, `labels` [N].

    Raises:
        DataError: it is not such an array, or its floats are outside [0, 1].
    """
    stored, labels = _load(path)
    images = _channels_first(stored, channels, path)  # [N, C, H, W]
    _check_values(images, path)

    def decode(index: int) -> Tensor:
        image = scale_to_unit(np.asarray(images[index]))
        return fit_image(image, image_size=image_size, channels=channels)

    return Records(
        decode, len(images), None if labels is None else _checked(labels, len(images), path)
    )


def _load(path: Path) -> tuple[NDArray[np.generic], NDArray[np.generic] | None]:
    """The arrays of images and labels as they are stored."""
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            members = {key: loaded[key] for key in ("images", "labels") if key in loaded}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise unfit(
            path,
            "it is not a NumPy array that can be read without pickle",
            "write it with numpy.save or numpy.savez, as numbers",
        ) from None
    if "images" not in members:
        raise unfit(path, "it has no array 'images'", "save it with numpy.savez(images=...)")
    return members["images"], members.get("labels")


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
    """Refuse pixel types and ranges that have no one meaning; a NaN is its record's own matter."""
    if images.dtype.name in LARGEST or images.dtype.kind == "b":
        return
    if images.dtype.kind != "f":
        raise unfit(
            path,
            f"its pixels are {images.dtype}",
            "save them as uint8, uint16, or floats in [0, 1]",
        )
    rows = max(1, SCAN_VALUES // images[0].size)
    for start in range(0, len(images), rows):
        part = np.asarray(images[start : start + rows], dtype=np.float32)
        if (part < 0).any() or (part > 1).any():
            raise unfit(
                path,
                "some of its float pixels are outside [0, 1]",
                "scale them to [0, 1], or save 8-bit pixels as uint8",
            )


def _checked(labels: NDArray[np.generic], count: int, path: Path) -> NDArray[np.int64]:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise unfit(
            path,
            f"its labels are {labels.dtype} of shape {labels.shape}",
            f"save {count} whole numbers, one for each image",
        )
    return labels.astype(np.int64)
