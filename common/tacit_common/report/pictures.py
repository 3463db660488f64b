"""Pictures as text: small PNG images that a JSON or HTML document holds inside itself."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tacit_common.errors import DataError


def png_data_uri(image: NDArray[np.floating]) -> str:
    """A PNG data URI of `image`, [H, W] or [C, H, W] with values in [0, 1].

    Three channels are red, green and blue; any other number is averaged to grey.
    Values outside [0, 1] (a reconstruction may have some) are clipped, NaN is black.

    Raises:
        DataError: the array is not an image.
    """
    if image.ndim not in {2, 3} or 0 in image.shape:
        raise DataError(
            "an array cannot be drawn as a picture",
            why=f"it has shape {image.shape}",
            fix="pass [H, W] or [C, H, W] with at least one pixel",
        )
    levels = np.rint(np.clip(np.nan_to_num(image.astype(np.float64)), 0.0, 1.0) * 255)
    if image.ndim == 3 and image.shape[0] == 3:
        picture = Image.fromarray(levels.transpose(1, 2, 0).astype(np.uint8))
    else:
        grey = np.rint(levels.mean(axis=0)) if image.ndim == 3 else levels
        picture = Image.fromarray(grey.astype(np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
