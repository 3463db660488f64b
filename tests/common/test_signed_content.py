"""What a signature covers: every part of a message, and nothing that can be moved about in it."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.envelope import AnswerEnvelope, RequestEnvelope, RequestSeal, seal_answer
from tacit_common.errors import WireError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import ProbeRequest, TrainReply, TrainRequest
from tacit_common.study import Study
from tacit_common.wire import (
    content_sha256,
    content_size,
    decode_envelope,
    decode_head,
    decode_reply,
    decode_request,
    encode,
    with_envelope,
    with_head,
)

NAMES = st.sampled_from(["a", "b", "ab", "tacit", "arrays", "ledger", "kind", "body", ""])
TEXTS = st.text(max_size=6)
PLAIN = st.text(st.characters(max_codepoint=127), max_size=4)
ARRAYS = st.builds(
    Array,
    dtype=PLAIN,
    shape=st.lists(st.integers(-2, 9), max_size=3).map(tuple),
    stype=PLAIN,
    data=st.binary(max_size=8),
)
# As data, since Flower's records compare by identity in part: name to texts, or to arrays.
Parts = dict[str, dict[str, str] | dict[str, tuple[str, tuple[int, ...], str, bytes]]]
PARTS = st.dictionaries(
    NAMES,
    st.dictionaries(NAMES, TEXTS, max_size=3)
    | st.dictionaries(
        NAMES, ARRAYS.map(lambda a: (a.dtype, tuple(a.shape), a.stype, a.data)), max_size=3
    ),
    max_size=3,
)


def records_of(parts: Parts) -> RecordDict:
    records = RecordDict()
    for name, entries in parts.items():
        texts = {key: value for key, value in entries.items() if isinstance(value, str)}
        arrays = {key: Array(*value) for key, value in entries.items() if isinstance(value, tuple)}
        records[name] = ArrayRecord(arrays) if arrays else ConfigRecord(dict(texts))
    return records


def over_the_wire(records: RecordDict) -> RecordDict:
    proto = recorddict_to_proto(records)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


@given(one=PARTS, other=PARTS)
def test_two_messages_have_one_digest_only_if_they_are_the_same(one: Parts, other: Parts) -> None:
    digests = {content_sha256(records_of(parts)) for parts in (one, other)}
    assert (len(digests) == 1) == (one == other)


@given(parts=PARTS, shuffled=st.randoms(use_true_random=False))
def test_the_order_in_which_flower_hands_over_parts_does_not_matter(
    parts: Parts, shuffled: "object"
) -> None:
    names = list(parts)
    shuffled.shuffle(names)  # type: ignore[attr-defined]
    turned: Parts = {name: dict(reversed(parts[name].items())) for name in names}  # type: ignore[misc]
    assert content_sha256(records_of(turned)) == content_sha256(records_of(parts))


MOVED: list[tuple[Parts, Parts]] = [
    ({"r": {"ab": "c"}}, {"r": {"a": "bc"}}),
    ({"ra": {"b": "c"}}, {"r": {"ab": "c"}}),
    ({"r": {"a": "x", "b": "y"}}, {"r": {"a": "xby"}}),
    ({"r": {"a": "1"}, "s": {}}, {"r": {"a": "1"}}),
    ({"r": {"a": ("<f4", (1,), "raw", b"1234")}}, {"r": {"a": ("<f4", (1,), "raw1", b"234")}}),
    ({"r": {"a": ("<f4", (1, 2), "raw", b"12")}}, {"r": {"a": ("<f4", (2, 1), "raw", b"12")}}),
    (
        {"r": {"a": ("", (), "", b"xy"), "b": ("", (), "", b"")}},
        {"r": {"a": ("", (), "", b"x"), "b": ("", (), "", b"y")}},
    ),
    ({"r": {"a": "text"}}, {"r": {"a": ("", (), "", b"text")}}),
]


@pytest.mark.parametrize(("one", "other"), MOVED)
def test_bytes_that_were_moved_from_one_part_to_the_next_change_the_digest(
    one: Parts, other: Parts
) -> None:
    assert content_sha256(records_of(one)) != content_sha256(records_of(other))


# --- a whole request -----------------------------------------------------------------------


@pytest.fixture
def request_records(
    make_study: Callable[..., Study],
    with_probe: str,
    probe_request: Callable[..., ProbeRequest],
    heads_of: Callable[..., list[SignedHead]],
) -> RecordDict:
    """A probe's request, which has every kind of part, with a ledger's head beside it."""
    return with_head(encode(probe_request(make_study(with_probe))), heads_of("site-0", 2)[1])


def test_a_message_has_one_digest_before_and_after_it_has_travelled(
    request_records: RecordDict,
) -> None:
    assert content_sha256(over_the_wire(request_records)) == content_sha256(request_records)


def test_one_bit_of_any_array_changes_the_digest(request_records: RecordDict) -> None:
    before = content_sha256(request_records)
    arrays = request_records.array_records["arrays"]
    assert set(arrays) == {"parameters", "basis_mean", "basis_components"}
    for name, array in list(arrays.items()):
        for place in (0, len(array.data) // 2, len(array.data) - 1):
            changed = bytearray(array.data)
            changed[place] ^= 1
            arrays[name] = Array(array.dtype, tuple(array.shape), array.stype, bytes(changed))
            assert content_sha256(request_records) != before
        arrays[name] = array
    assert content_sha256(request_records) == before


def test_one_character_of_any_text_changes_the_digest(request_records: RecordDict) -> None:
    """The study, the plan and the ledger's head are texts."""
    before = content_sha256(request_records)
    for record in request_records.config_records.values():
        for key, value in list(record.items()):
            text = str(value)
            for place in range(0, len(text), 7):
                other = "x" if text[place] != "x" else "y"
                record[key] = text[:place] + other + text[place + 1 :]
                assert content_sha256(request_records) != before
            record[key] = value
    assert content_sha256(request_records) == before


@pytest.mark.parametrize("change", ["a record more", "an empty record more", "a head less"])
def test_a_record_more_or_less_changes_the_digest(request_records: RecordDict, change: str) -> None:
    before = content_sha256(request_records)
    if change == "a head less":
        del request_records["ledger"]
    elif change == "a record more":
        request_records["more"] = ConfigRecord({"x": "y"})
    else:
        request_records["more"] = ConfigRecord()
    assert content_sha256(request_records) != before


def test_the_envelope_is_not_part_of_what_it_is_around(request_records: RecordDict) -> None:
    digest = content_sha256(request_records)
    envelope = RequestSeal(Identity.create()).seal(digest, recipient="a" * 64)
    sent = over_the_wire(with_envelope(request_records, envelope))
    assert content_sha256(sent) == digest
    assert decode_envelope(sent, RequestEnvelope) == envelope
    assert isinstance(decode_request(sent), ProbeRequest)
    assert decode_head(sent) == decode_head(request_records)
    assert "envelope" not in request_records  # the message that went to others is as it was


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"n": 1}),
        ConfigRecord({"n": b"x"}),
        ConfigRecord({"n": True}),
        ConfigRecord({"n": ["x"]}),
        MetricRecord({"n": 1.0}),
    ],
    ids=["a number", "bytes", "a truth value", "a list", "metrics"],
)
def test_what_no_message_of_this_protocol_holds_has_no_digest(record: ConfigRecord) -> None:
    with pytest.raises(WireError, match="cannot be understood"):
        content_sha256(RecordDict({"r": record}))


ODD: dict[str, dict[str, object]] = {
    "a type that is a number": {"dtype": 4},
    "no type": {"dtype": None},
    "a type of half a character": {"dtype": "\ud800"},
    "a container that is a list": {"stype": ["tacit.raw"]},
    "a shape of text": {"shape": ("1",)},
    "a shape of fractions": {"shape": (1.0,)},
    "a shape of truth": {"shape": (True,)},
    "a shape of shapes": {"shape": ((1,),)},
    "a shape of nothing": {"shape": (None,)},
    "data that is text": {"data": "abcd"},
}


@pytest.mark.parametrize("name", ODD)
def test_an_array_that_says_nonsense_of_itself_is_a_malformed_message(name: str) -> None:
    records = encode(TrainReply(np.zeros(1, dtype=np.float32)))
    # Flower reads these fields from JSON of the other side, and checks none of them.
    records.array_records["arrays"]["update"].__dict__.update(ODD[name])
    for read in (content_sha256, decode_reply):
        with pytest.raises(WireError):
            read(records)


def test_a_name_of_half_a_character_is_no_accident(request_records: RecordDict) -> None:
    """JSON can name it, UTF-8 cannot write it: it must not end the coordinator."""
    before = content_sha256(request_records)
    request_records["\ud800"] = ConfigRecord()
    assert content_sha256(request_records) != before


# --- envelopes that are none -----------------------------------------------------------------


def enveloped(content: object, *, key: str = "envelope", more: bool = False) -> RecordDict:
    record = ConfigRecord({key: content, **({"x": "y"} if more else {})})  # type: ignore[dict-item]
    return RecordDict({"envelope": record})


ENVELOPE = RequestSeal(Identity.create()).seal("a" * 64, recipient="b" * 64)


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"envelope": ArrayRecord()}),
        enveloped("{}"),
        enveloped("["),
        enveloped(7),
        enveloped(ENVELOPE.model_dump_json(), key="letter"),
        enveloped(ENVELOPE.model_dump_json(), more=True),
        enveloped(ENVELOPE.model_dump_json().replace('"sequence":1', '"sequence":1,"x":2')),
        enveloped(seal_answer(Identity.create(), "a" * 64, ENVELOPE).model_dump_json()),
    ],
    ids=lambda records: str(dict(records.config_records))[:40],
)
def test_what_is_in_no_envelope_is_a_malformed_message(records: RecordDict) -> None:
    with pytest.raises(WireError):
        decode_envelope(records, RequestEnvelope)


def test_a_request_s_envelope_is_not_read_as_an_answer_s() -> None:
    with pytest.raises(WireError):
        decode_envelope(enveloped(ENVELOPE.model_dump_json()), AnswerEnvelope)


# --- sizes and types ---------------------------------------------------------------------


def test_the_size_of_a_message_is_that_of_its_texts_and_arrays() -> None:
    records = RecordDict(
        {
            "a": ConfigRecord({"x": "é", "y": "12"}),
            "b": ArrayRecord({"v": Array("", (), "", b"12345")}),
        }
    )
    assert content_size(records) == 2 + 2 + 5
    assert content_size(RecordDict()) == 0


def test_an_update_that_travels_as_float16_arrives_as_float32() -> None:
    sent = np.array([0.5, -2.0, 65504.0], dtype=np.float16)
    records = encode(TrainReply(sent))  # type: ignore[arg-type]
    assert content_size(records) < content_size(encode(TrainReply(sent.astype(np.float32))))
    got = decode_reply(over_the_wire(records))
    assert isinstance(got, TrainReply)
    assert got.update.dtype == np.float32
    assert got.update.tolist() == [0.5, -2.0, 65504.0]


def test_parameters_travel_as_float32_alone(
    make_study: Callable[..., Study], train_request: Callable[..., TrainRequest]
) -> None:
    """Rounded parameters would be others than those that the plan names."""
    request = train_request(make_study())
    short = TrainRequest(request.plan, request.parameters.astype(np.float16))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="dtype"):
        decode_request(encode(short))
