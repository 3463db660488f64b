"""The data plug-in point: random access to records, so that Poisson sampling is real."""

from collections.abc import Hashable
from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class DataSource(Protocol):
    """The records of one site.

    `len(source)` is private: plans use the site's declared count instead
    (see `tacit_client.site.Site.declared_units`).
    """

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> Tensor:
        """Record `index`, float32; an image is [C, H, W] with values in [0, 1].

        Raises:
            UnreadableRecordError: the record cannot be decoded.
        """
        ...

    def unit_of(self, index: int) -> Hashable:
        """The privacy unit that record `index` belongs to: itself, or its subject."""
        ...


@runtime_checkable
class LabeledDataSource(DataSource, Protocol):
    """A data source whose records also have a class label, which only probes read."""

    def label_of(self, index: int) -> int:
        """The class of record `index`, in [0, number of classes)."""
        ...
