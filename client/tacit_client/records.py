"""Reading a sample of records, and what becomes of one that cannot be used.

Without privacy, an unreadable record is an error. Under differential privacy it must
not be: an error would tell the server that the secret sample held that record. There
it contributes zero, like any record whose gradient is not finite, and the site's own
log says which one it was.
"""

import logging

import numpy as np
import torch
from torch import Tensor

from tacit_client.sampling import Indices
from tacit_common.data import DataSource

_log = logging.getLogger(__name__)


def read_records(source: DataSource, sample: Indices) -> Tensor:
    """Records of `sample` stacked to [B, ...]; an empty sample gives a tensor of length 0.

    Raises:
        UnreadableRecordError: a record cannot be decoded.
    """
    return _stack([source[int(index)] for index in sample])


def readable_records(
    source: DataSource, sample: Indices, shape: tuple[int, ...] | None
) -> tuple[Tensor, Indices]:
    """The records of `sample` that can be used, [B', ...], and their indices [B'].

    A record is left out if decoding it fails in any way, or if it has another shape than
    `shape` (None where the study does not say it). Never raises for a record's content.
    """
    records, kept, left_out = [], [], []
    for index in sample:
        record = _record_or_none(source, int(index))
        if record is None or (shape is not None and tuple(record.shape) != shape):
            left_out.append(int(index))
        else:
            records.append(record)
            kept.append(index)
    if left_out:
        _log.warning("records that cannot be used are left out: %s", left_out)
    return _stack(records), np.array(kept, dtype=np.intp)


def _record_or_none(source: DataSource, index: int) -> Tensor | None:
    try:
        return source[index]
    except Exception:  # whatever a data source may raise
        return None


def _stack(records: list[Tensor]) -> Tensor:
    return torch.stack(records) if records else torch.empty(0)
