"""The forms in which a data set stores its images, read from headers: nothing is decoded."""

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tacit_client.data.files import ARRAY_SUFFIXES
from tacit_client.data.folders import IMAGE_SUFFIXES

UNREADABLE = "unreadable"


def stored_shapes(path: Path) -> Counter[str]:
    """How many images there are of each form, e.g. '28 x 28 L' or 'uint8 [3, 32, 32]'.

    Empty for a table, whose cells would all have to be read. `path` has been opened as a data
    set before; never raises for a record's content.
    """
    if path.is_dir():
        return Counter(_of_file(file) for file in sorted(path.rglob("*")) if _is_image(file, path))
    if path.suffix.lower() not in ARRAY_SUFFIXES:
        return Counter()
    loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    images = loaded if isinstance(loaded, np.ndarray) else loaded["images"]
    return Counter({f"{images.dtype} {list(images.shape[1:])}": len(images)})


def _is_image(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in IMAGE_SUFFIXES and not hidden and file.is_file()


def _of_file(file: Path) -> str:
    try:
        with Image.open(file) as image:
            return f"{image.width} x {image.height} {image.mode}"
    except Exception:  # whatever Pillow may raise
        return UNREADABLE
