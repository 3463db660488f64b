"""Features of new data from an exported encoder, as a NumPy or a Parquet file."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from tacit_client.data import open_source
from tacit_common.encoders import embed, image_shape, load_encoder, read_encoder_plan
from tacit_common.errors import DataError, PluginError
from tacit_common.files import write_atomically
from tacit_common.plugins import PluginTable

_BATCH = 256

Features = NDArray[np.float32]


def embed_data(encoder_directory: Path, data: Path, plugins: PluginTable) -> Features:
    """Features [N, D] of all records of a data set, in its order.

    Raises:
        CheckpointError: the encoder cannot be loaded.
        DataError: the data set cannot be opened or does not fit the encoder.
        UnreadableRecordError: a record cannot be decoded.
    """
    encoder = load_encoder(encoder_directory, plugins)
    shape = image_shape(read_encoder_plan(encoder_directory))
    if shape is None:
        raise PluginError(
            "the encoder does not say the size of its images",
            why="it is a plug-in without the options image_size and channels",
            fix="give it these options in the study, and export it again",
        )
    channels, size, _ = shape
    source = open_source(data, image_size=size, channels=channels)
    batches = (
        torch.stack([source[i] for i in range(first, min(first + _BATCH, len(source)))])
        for first in range(0, len(source), _BATCH)
    )
    return np.concatenate([embed(encoder, batch) for batch in batches])


def parse_plugins(assignments: list[str]) -> PluginTable:
    """A plug-in table from 'name=module:attribute' assignments.

    Raises:
        PluginError: one of them is not an assignment.
    """
    targets = {}
    for assignment in assignments:
        name, equals, target = assignment.partition("=")
        if not equals:
            raise PluginError(
                f"--plugin {assignment!r} is not an assignment",
                why="it has no '='",
                fix="write --plugin name=module:attribute",
            )
        targets[name] = target
    return PluginTable(targets)


def write_features(path: Path, features: Features) -> None:
    """Write features [N, D] to a .npy file, or to a .parquet file with columns f0 … f{D-1}.

    Raises:
        DataError: the suffix is neither, or the file cannot be written.
    """
    buffer = io.BytesIO()
    match path.suffix:
        case ".npy":
            np.save(buffer, features, allow_pickle=False)
        case ".parquet":
            columns = {f"f{index}": column for index, column in enumerate(features.T)}
            pq.write_table(pa.table(columns), buffer)
        case suffix:
            raise DataError(
                f"features cannot be written as '{suffix or 'a file without suffix'}'",
                why="NumPy and Parquet are the formats",
                fix="give an --out that ends in .npy or .parquet",
            )
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"cannot write '{path}'",
            why=error.strerror or type(error).__name__,
            fix="give an --out that can be written",
        ) from None
