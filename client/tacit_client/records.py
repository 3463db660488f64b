"""Reading a sample of records, and what becomes of one that cannot be used.

Without privacy, an unreadable record is an error. Under differential privacy it must
not be: an error would tell the server that the secret sample held that record. There
it contributes zero, like any record whose gradient is not finite, and the site's own
log says which one it was.
"""

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit_client.sampling import Indices
from tacit_common.data import DataSource, LabeledDataSource
from tacit_common.encoders import image_shape
from tacit_common.errors import PrivacyConfigError
from tacit_common.study import EncoderPlan

_log = logging.getLogger(__name__)


def read_records(source: DataSource, sample: Indices) -> Tensor:
    """Records of `sample` stacked to [B, ...]; an empty sample gives a tensor of length 0.

    Raises:
        UnreadableRecordError: a record cannot be decoded.
    """
    return _stack([source[int(index)] for index in sample])


def readable_records(
    source: DataSource, sample: Indices, shape: tuple[int, ...]
) -> tuple[Tensor, Indices]:
    """The records of `sample` that can be used, [B', ...], and their indices [B'].

    A record is left out if decoding it fails in any way, or if it is not a float32 tensor
    of `shape`. Never raises for a record's content.
    """
    records, kept, left_out = [], [], []
    for index in sample:
        record = _record_or_none(source, int(index))
        if record is None or tuple(record.shape) != shape:
            left_out.append(int(index))
        else:
            records.append(record)
            kept.append(index)
    if left_out:
        _log.warning("records that cannot be used are left out: %s", left_out)
    return _stack(records), np.array(kept, dtype=np.intp)


def required_image_shape(plan: EncoderPlan) -> tuple[int, int, int]:
    """The shape (C, H, W) that every record of a study has.

    Raises:
        PrivacyConfigError: the study does not say it, so a record of another shape could
            not be told apart, and would stop a private round.
    """
    shape = image_shape(plan)
    if shape is None:
        raise PrivacyConfigError(
            "the study does not say the size of its images",
            why="under differential privacy a record of another size must be left out, not "
            "stop the round, which would tell that it is there",
            fix="give the plug-in encoder the options image_size and channels",
        )
    return shape


def readable_labels(
    source: LabeledDataSource, indices: Indices
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Labels [N] of the records `indices`, and which of them could be read [N].

    A label that could not be read is -1. Never raises for a record's content.
    """
    found = [_label_or_none(source, int(index)) for index in indices]
    labels = np.array([-1 if label is None else label for label in found], dtype=np.int64)
    return labels, np.array([label is not None for label in found], dtype=np.bool_)


def _record_or_none(source: DataSource, index: int) -> Tensor | None:
    try:
        record: object = source[index]
    except Exception:  # whatever a data source may raise
        return None
    return record if isinstance(record, Tensor) and record.dtype == torch.float32 else None


def _label_or_none(source: LabeledDataSource, index: int) -> np.int64 | None:
    try:
        return np.int64(source.label_of(index))
    except Exception:  # whatever a data source may raise; a number too large for int64
        return None


def _stack(records: list[Tensor]) -> Tensor:
    return torch.stack(records) if records else torch.empty(0)
