"""Reading a sample of records, and what to do with one that cannot be used."""

import torch
from torch import Tensor

from tacit_client.sampling import Indices
from tacit_common.data import DataSource


def read_records(source: DataSource, sample: Indices) -> Tensor:
    """Records of `sample` stacked to [B, ...]; an empty sample gives a tensor of length 0.

    Raises:
        UnreadableRecordError: a record cannot be decoded.
    """
    if len(sample) == 0:
        return torch.empty(0)
    return torch.stack([source[int(index)] for index in sample])
