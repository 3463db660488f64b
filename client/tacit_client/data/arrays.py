"""Images in memory as a data source: simulations, tests, and sets that are small."""

from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit_common.errors import DataError


class ArraySource:
    """Images [N, C, H, W], float32 in [0, 1]; every record is its own privacy unit."""

    def __init__(self, images: Tensor) -> None:
        if images.ndim != 4 or 0 in images.shape:
            raise _unfit(
                f"they have shape {tuple(images.shape)}",
                fix="give at least one image, as [N, C, H, W]",
            )
        if images.dtype != torch.float32:
            raise _unfit(f"they are {images.dtype}", fix="give float32 values in [0, 1]")
        # Written so that NaN fails too.
        if not bool(((images >= 0) & (images <= 1)).all()):
            raise _unfit("some values are outside [0, 1]", fix="divide 8-bit pixels by 255")
        self.images = images

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, [C, H, W]: a view, not a copy."""
        return self.images[index]

    def unit_of(self, index: int) -> Hashable:
        """The record itself."""
        return index

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """A source of the records `indices` alone, in that order."""
        return type(self)(self.images[torch.as_tensor(indices, dtype=torch.int64)])


class LabeledArraySource(ArraySource):
    """Images with a class [N] each, int64 and not negative."""

    def __init__(self, images: Tensor, labels: NDArray[np.int64]) -> None:
        super().__init__(images)
        if labels.shape != (len(images),) or labels.dtype != np.int64:
            raise _unfit(
                f"their labels are {labels.dtype} of shape {labels.shape}",
                fix=f"give {len(images)} labels, one for each image, as int64",
            )
        if labels.min() < 0:
            raise _unfit("some labels are negative", fix="number classes from 0")
        self.labels = labels

    def label_of(self, index: int) -> int:
        """The class of image `index`."""
        return int(self.labels[index])

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Self:
        """A source of the records `indices` alone, in that order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return type(self)(self.images[torch.from_numpy(chosen)], self.labels[chosen])


def _unfit(why: str, *, fix: str) -> DataError:
    return DataError("these images cannot be a data source", why=why, fix=fix)
