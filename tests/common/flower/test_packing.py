"""A content that is packed is the same when it is unpacked, and takes few records."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.errors import WireError
from tacit_common.flower import packing
from tacit_common.flower.packing import CHUNK, LARGEST_TEXTS, pack, unpack
from tacit_common.wire import content_sha256

NAMES = st.text(st.characters(max_codepoint=126), min_size=1, max_size=8)
TEXTS = st.dictionaries(NAMES, st.text(max_size=20), max_size=3)
ARRAYS = st.dictionaries(NAMES, st.binary(max_size=64), max_size=3)


def array(data: bytes) -> Array:
    return Array(dtype="|u1", shape=(len(data),), stype="tacit.raw", data=data)


@given(
    texts=st.dictionaries(NAMES, TEXTS, max_size=3),
    arrays=st.dictionaries(NAMES, ARRAYS, max_size=3),
)
def test_what_is_unpacked_is_what_was_packed(
    texts: dict[str, dict[str, str]], arrays: dict[str, dict[str, bytes]]
) -> None:
    content = RecordDict({name: ConfigRecord(dict(record)) for name, record in texts.items()})
    for name, record in arrays.items():
        content[f"of {name}"] = ArrayRecord({key: array(data) for key, data in record.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK", 16)  # so that there are pieces
        unpacked = unpack(pack(content), largest=1024)
    assert set(unpacked) == set(content)
    assert content_sha256(unpacked) == content_sha256(content)
    assert unpacked.config_records == content.config_records


def test_a_message_of_4_mb_takes_two_records() -> None:
    content = RecordDict(
        {
            "tacit": ConfigRecord({"kind": "train", "body": "{}"}),
            "ledger": ConfigRecord({"head": "{}"}),
            "envelope": ConfigRecord({"envelope": "{}"}),
            "arrays": ArrayRecord({"parameters": array(bytes(4_000_000))}),
        }
    )
    assert len(pack(content)) == 2


def test_what_two_messages_share_is_the_same_record() -> None:
    data = np.arange(3 * CHUNK // 4, dtype="<u4").tobytes()
    one, other = (
        pack(
            RecordDict(
                {
                    "envelope": ConfigRecord({"envelope": site}),
                    "arrays": ArrayRecord({"parameters": array(data)}),
                }
            )
        )
        for site in ("one", "another")
    )
    shared = [name for name in one if one[name].object_id == other[name].object_id]
    assert shared == ["0", "1", "2"]


def test_an_array_beyond_the_bound_is_refused() -> None:
    packed = pack(RecordDict({"arrays": ArrayRecord({"parameters": array(bytes(100))})}))
    assert unpack(packed, largest=100)
    with pytest.raises(WireError, match="too large"):
        unpack(packed, largest=99)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"numbers": ConfigRecord({"number": 1})}),
        RecordDict({"text": ConfigRecord({"text": "x" * LARGEST_TEXTS})}),
    ],
    ids=["metrics", "a number", "too much text"],
)
def test_what_cannot_travel_is_not_packed(content: RecordDict) -> None:
    with pytest.raises(WireError):
        pack(content)
