"""Images in memory as a data source: simulations, tests, and sets that are small."""

from collections.abc import Hashable, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit_common.errors import DataError, UnreadableRecordError

Indices = Sequence[int] | NDArray[np.int64]


class ArraySource:
    """Images [N, C, H, W], float32 in [0, 1], and maybe the subject [N] of each.

    Without subjects every record is its own privacy unit. An image with a pixel that is
    not a number in [0, 1] cannot be read; the others can.
    """

    def __init__(self, images: Tensor, *, subjects: Sequence[Hashable] | None = None) -> None:
        if images.ndim != 4 or 0 in images.shape:
            raise _unfit(
                f"they have shape {tuple(images.shape)}",
                fix="give at least one image, as [N, C, H, W]",
            )
        if images.dtype != torch.float32:
            raise _unfit(f"they are {images.dtype}", fix="give float32 values in [0, 1]")
        # Written so that NaN fails too.
        readable = ((images >= 0) & (images <= 1)).flatten(1).all(dim=1)  # [N]
        if not bool(readable.any()):
            raise _unfit(
                "each of them has a value that is not a number in [0, 1]",
                fix="divide 8-bit pixels by 255",
            )
        if subjects is not None and len(subjects) != len(images):
            raise _unfit(
                f"they are {len(images)} with {len(subjects)} subjects",
                fix="give one subject for each image",
            )
        if subjects is not None and None in subjects:
            raise _unfit(
                f"{sum(subject is None for subject in subjects)} of them have no subject",
                fix="say whose they are, or leave them out",
            )
        self.images = images
        self.subjects = None if subjects is None else tuple(subjects)
        self._readable = readable.tolist()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index`, [C, H, W]: a view, not a copy.

        Raises:
            UnreadableRecordError: a pixel of it is not a number in [0, 1].
        """
        if not self._readable[index]:
            raise UnreadableRecordError(
                f"record {index} cannot be read",
                why="it has a pixel that is not a number in [0, 1]",
                fix="repair it or take it out; records count from 0",
            )
        return self.images[index]

    def unit_of(self, index: int) -> Hashable:
        """The subject of image `index`, or the record itself."""
        return index if self.subjects is None else self.subjects[index]

    def take(self, indices: Indices) -> Self:
        """A source of the records `indices` alone, in that order, with their subjects."""
        chosen = np.asarray(indices, dtype=np.int64)
        return type(self)(self.images[torch.from_numpy(chosen)], subjects=self._subjects_of(chosen))

    def _subjects_of(self, chosen: NDArray[np.int64]) -> list[Hashable] | None:
        return None if self.subjects is None else [self.subjects[i] for i in chosen.tolist()]


class LabeledArraySource(ArraySource):
    """Images with a class [N] each, int64 and not negative."""

    def __init__(
        self,
        images: Tensor,
        labels: NDArray[np.int64],
        *,
        subjects: Sequence[Hashable] | None = None,
    ) -> None:
        super().__init__(images, subjects=subjects)
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

    def take(self, indices: Indices) -> Self:
        """A source of the records `indices` alone, in that order, with labels and subjects."""
        chosen = np.asarray(indices, dtype=np.int64)
        return type(self)(
            self.images[torch.from_numpy(chosen)],
            self.labels[chosen],
            subjects=self._subjects_of(chosen),
        )


def _unfit(why: str, *, fix: str) -> DataError:
    return DataError("these images cannot be a data source", why=why, fix=fix)
