"""A site's records: in memory, or on disk in the formats that people have."""

from tacit_client.data.arrays import ArraySource, LabeledArraySource
from tacit_client.data.files import open_source
from tacit_client.data.folders import class_folders
from tacit_client.data.pixels import fit_image
from tacit_client.data.records import LabeledRecordSource, RecordSource
from tacit_client.data.subjects import Grouping, Subject, resolve_grouping

__all__ = [
    "ArraySource",
    "Grouping",
    "LabeledArraySource",
    "LabeledRecordSource",
    "RecordSource",
    "Subject",
    "class_folders",
    "fit_image",
    "open_source",
    "resolve_grouping",
]
