"""A site's data set, in the shape that an encoder takes, and in the one that the ledger knows.

No encoder is known when a site starts, and each study may bring another one. So the data
set is opened anew for every shape that is asked for, each record resized when it is read.

Whose budget is charged must not depend on the encoder. The ledger's tags are therefore
taken of records in a form of their own (`identity_source`): 64 x 64 pixels, in the number
of channels that the configuration names once. Images that differ and are alike in this
form count as one unit, which can only charge more than was touched.
"""

import os
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from torch import Tensor

from tacit_client.data import open_source, resolve_grouping
from tacit_client.data.files import ARRAY_SUFFIXES
from tacit_client.deployment.site_config import SiteConfig
from tacit_client.units import Units
from tacit_common.data import DataSource
from tacit_common.errors import DataError, PluginError, TacitError, UsageError
from tacit_common.plugins import PluginTable, require
from tacit_common.study import PluginPlan

IDENTITY_SIZE = 64
"""Pixels of an image's side in the form by which the ledger knows it. It never changes."""

_MOST_CHANNELS = 16


def open_data(config: SiteConfig, *, image_size: int, channels: int) -> DataSource:
    """The site's data set as images of that shape; without classes where probes may not use them.

    Raises:
        DataError: there is nothing there, nothing that can be read as such images, or some
            record's subject is not known.
        PluginError: the data set, or the function of subjects, is a plug-in that fails.
    """
    plugins = PluginTable(config.plugins)
    if config.data_path is None:
        options: dict[str, bool | int | float | str] = {
            "image_size": image_size,
            "channels": channels,
        }
        plan = PluginPlan(kind="plugin", name=config.data, options=options)
        source = _create(plugins, plan)
    else:
        source = open_source(
            config.data_path,
            image_size=image_size,
            channels=channels,
            class_names=config.class_names,
            subjects=resolve_grouping(config.subjects, plugins),
        )
    return source if config.labels else _Unlabelled(source)


def identity_source(config: SiteConfig) -> DataSource:
    """The data set in the form by which the ledger knows its records, whatever the encoder.

    Raises:
        DataError: it cannot be opened.
        PluginError: a plug-in fails.
    """
    return open_data(config, image_size=IDENTITY_SIZE, channels=config.identity_channels)


def find_identity_channels(config: SiteConfig) -> int:
    """The channels that suit a new site's data: 3, unless it cannot be read so.

    Raises:
        DataError: it cannot be opened with any number.
        PluginError: a plug-in fails with any number.
    """
    try:
        identity_source(config)
    except (DataError, PluginError) as error:
        refused = error
    else:
        return config.identity_channels
    path = config.data_path
    if path is None or path.suffix.lower() in ARRAY_SUFFIXES:  # others have 1, 3 or 4
        for channels in range(1, _MOST_CHANNELS + 1):
            with suppress(DataError, PluginError):
                identity_source(config.model_copy(update={"identity_channels": channels}))
                return channels
    raise refused


def files_of(config: SiteConfig) -> frozenset[tuple[str, int, int]]:
    """What differs after a file of the data set was written, added or taken away.

    It is the name, the time and the size of each file, and nothing for a plug-in's data.
    """
    path = config.data_path
    if path is None:
        return frozenset()
    names = (
        [path]
        if path.is_file()
        else [Path(folder, name) for folder, _, found in os.walk(path) for name in found]
    )
    states = ((name, _stat(name)) for name in names)
    return frozenset(
        (str(name), stat.st_mtime_ns, stat.st_size) for name, stat in states if stat is not None
    )


def require_declarable(config: SiteConfig, units: int) -> None:
    """Raises UsageError if a site declares more units than the `units` that it has."""
    if config.declared_units > units:
        raise UsageError(
            f"{config.declared_units} declared units are more than there are",
            why="sampling rates and δ are judged by the declared number, so that a larger one "
            "would promise more privacy than there is",
            fix="declare a round number below what the site holds (declared_units in site.toml)",
        )


def count_units(source: DataSource, unit: Literal["record", "subject"]) -> int:
    """How many units a data set has, as training counts them: private."""
    return len(Units.of(source, unit, None if unit == "record" else 1))


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # it was taken away meanwhile
        return None


def _create(plugins: PluginTable, plan: PluginPlan) -> DataSource:
    try:
        source = require(plugins.create(plan, "data set"), DataSource, plan.name)
        count = len(source)
    except TacitError:
        raise
    except Exception as error:  # its text may quote a record: only the type is kept
        raise PluginError(
            f"the data set '{plan.name}' cannot be opened",
            why=f"its plug-in raises {type(error).__name__}",
            fix="make it take image_size and channels, whatever they are",
        ) from None
    if count == 0:
        raise DataError(
            f"data set '{plan.name}' cannot be used",
            why="it holds no records",
            fix="give a data set of at least one record",
        )
    return source


class _Unlabelled:
    """A data set whose classes nobody asks for: it is no `LabeledDataSource`."""

    def __init__(self, source: DataSource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Tensor:
        return self._source[index]

    def unit_of(self, index: int) -> Hashable:
        return self._source.unit_of(index)
