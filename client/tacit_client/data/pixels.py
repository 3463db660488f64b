"""From pixels as they are stored to the float32 image that an encoder takes."""

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from tacit_common.errors import DataError

FloatImage = NDArray[np.float32]
"""Pixels [C, H, W] in [0, 1]."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), as in Pillow's mode L."""

FILE_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode for a number of channels."""

LARGEST = {"uint8": 255.0, "uint16": 65535.0}
"""What pixels of an unsigned integer type are divided by."""


def scale_to_unit(pixels: NDArray[np.generic]) -> NDArray[np.float32]:
    """float32 pixels in [0, 1]: uint8 over 255, uint16 over 65535, all else as it is.

    Raises:
        ValueError: a value is not a number in [0, 1]; the message does not name it.
    """
    scaled = pixels.astype(np.float32) / np.float32(LARGEST.get(pixels.dtype.name, 1.0))
    if not ((scaled >= 0) & (scaled <= 1)).all():  # written so that NaN fails too
        raise ValueError("a pixel is not a number in [0, 1]")
    return scaled


def can_convert(stored: int, wanted: int) -> bool:
    """Whether `to_channels` knows a way from `stored` to `wanted` channels."""
    return stored in (1, wanted) or (stored in (3, 4) and wanted in (1, 3))


def to_channels(image: FloatImage, channels: int) -> FloatImage:
    """Pixels [channels, H, W] from [C, H, W].

    One channel is repeated; red, green and blue become a grey value; a fourth channel,
    transparency, is dropped.
    """
    stored = image.shape[0]
    if stored == channels:
        return image
    if stored == 1:
        return np.repeat(image, channels, axis=0)
    colour = image[:3]
    if channels == 3:
        return colour
    return np.tensordot(LUMINANCE, colour, axes=1)[None].clip(0.0, 1.0)


def resize(image: FloatImage, size: int) -> FloatImage:
    """Pixels [C, size, size] from [C, H, W], bilinear and antialiased; unchanged if they fit.

    An image that is not square is stretched: nothing is cut off.
    """
    if image.shape[1:] == (size, size):
        return image
    planes = [
        np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR))
        for plane in image
    ]
    return np.stack(planes).clip(0.0, 1.0)


def fit_image(image: FloatImage, *, image_size: int, channels: int) -> Tensor:
    """A record [channels, image_size, image_size] from pixels [C, H, W] in [0, 1]."""
    fitted = resize(to_channels(image, channels), image_size)
    return torch.from_numpy(np.array(fitted, dtype=np.float32))  # a copy: owned and writable


def decode_image(file: Path | BinaryIO, *, image_size: int, channels: int) -> Tensor:
    """A record [channels, image_size, image_size] from an image file.

    The image is turned as its EXIF orientation says; of several frames the first counts.

    Raises:
        Exception: whatever Pillow raises for a damaged file; its text may quote the file.
    """
    with warnings.catch_warnings():
        # Odd metadata is no concern here; an image so large that it may be an attack is.
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode[0] in "IF":  # grey values that mode L would cut off at 255
                largest = LARGEST["uint16"] if image.mode[0] == "I" else 1.0
                plane = scale_to_unit(np.asarray(image, dtype=np.float32) / np.float32(largest))
                return fit_image(plane[None], image_size=image_size, channels=channels)
            if "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert(FILE_MODES[channels])
            if image.size != (image_size, image_size):
                image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
            pixels = scale_to_unit(np.asarray(image))
    stacked = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return torch.from_numpy(np.array(stacked, order="C"))


def require_file_channels(channels: int) -> None:
    """Check that an image file can give `channels` channels.

    Raises:
        DataError: it cannot.
    """
    if channels not in FILE_MODES:
        raise DataError(
            f"image files cannot give {channels} channels",
            why="they hold 1 (grey), 3 (colour) or 4 (with transparency)",
            fix="set encoder.channels to 1, 3 or 4, or store the images as a .npy array",
        )
