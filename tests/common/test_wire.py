"""Messages: everything that is sent arrives, and everything else is a WireError."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pydantic import ValidationError

from tacit_common.errors import RefusalCode, WireError
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    ProbeReply,
    ProbeRequest,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    TrainReply,
    TrainRequest,
    message_type,
    parameters_sha256,
)
from tacit_common.study import Study
from tacit_common.wire import decode_reply, decode_request, encode

Vector64 = np.ndarray[tuple[int], np.dtype[np.float64]]


def over_the_wire(records: RecordDict) -> RecordDict:
    """What Flower makes of records on the way: protobuf bytes and back."""
    proto = recorddict_to_proto(records)
    return recorddict_from_proto(type(proto).FromString(proto.SerializeToString()))


def bits(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> tuple[str, object, bytes]:
    return array.dtype.str, array.shape, array.tobytes()


# --- round trips -------------------------------------------------------------------------


@given(update=npst.arrays(np.uint32, st.integers(0, 50)), loss=st.none() | st.floats(-1e9, 1e9))
def test_an_update_arrives_bit_for_bit(
    update: np.ndarray[tuple[int], np.dtype[np.uint32]], loss: float | None
) -> None:
    sent = TrainReply(update.view(np.float32), loss)
    got = decode_reply(over_the_wire(encode(sent)))
    assert isinstance(got, TrainReply)
    assert bits(got.update) == bits(sent.update)
    assert got.train_loss == loss


@given(statistics=npst.arrays(np.float64, st.integers(0, 50)))
def test_statistics_arrive_bit_for_bit(statistics: Vector64) -> None:
    got = decode_reply(over_the_wire(encode(ProbeReply(statistics))))
    assert isinstance(got, ProbeReply)
    assert bits(got.statistics) == bits(statistics)


@given(site=st.text(max_size=64), records=st.integers(1, 10**15), version=st.text(max_size=32))
def test_a_description_arrives(site: str, records: int, version: str) -> None:
    sent = SiteDescription(site=site, declared_units=records, tacit_version=version)
    assert decode_reply(over_the_wire(encode(sent))) == sent


@pytest.mark.parametrize("code", RefusalCode)
def test_a_refusal_arrives_and_holds_its_code_alone(code: RefusalCode) -> None:
    records = encode(Refusal(code=code))
    assert decode_reply(over_the_wire(records)) == Refusal(code=code)
    assert json.loads(str(records.config_records["tacit"]["body"])) == {
        "protocol": 1,
        "code": code.value,
    }


def test_requests_arrive_with_their_plan_and_its_key(
    make_study: Callable[..., Study],
    with_probe: str,
    train_request: Callable[..., TrainRequest],
    probe_request: Callable[..., ProbeRequest],
) -> None:
    study = make_study(with_probe)
    train, probe = train_request(study), probe_request(study)
    got = decode_request(over_the_wire(encode(train)))
    assert isinstance(got, TrainRequest)
    assert got.plan == train.plan
    assert got.plan.key() == train.plan.key()
    assert got.plan.study.digest() == study.digest()
    assert bits(got.parameters) == bits(train.parameters)
    assert parameters_sha256(got.parameters) == train.plan.parameters_sha256

    also = decode_request(over_the_wire(encode(probe)))
    assert isinstance(also, ProbeRequest)
    assert also.plan == probe.plan
    assert bits(also.basis_components) == bits(np.ascontiguousarray(probe.basis_components))
    assert bits(also.basis_mean) == bits(probe.basis_mean)
    describe = DescribeRequest(study)
    assert decode_request(over_the_wire(encode(describe))) == describe


@pytest.mark.parametrize("run", ["", "[/x]", "a b", "\x1b[2J", "run\n", ".hidden", "é", "r" * 65])
def test_a_run_whose_name_could_harm_a_terminal_or_a_table_is_not_asked_for(
    run: str, make_study: Callable[..., Study], train_request: Callable[..., TrainRequest]
) -> None:
    study = make_study()
    with pytest.raises(ValidationError, match="run"):
        train_request(study, run=run)
    with pytest.raises(ValidationError, match="run"):
        AccountRequest(run=run, study=study)


def test_a_weight_that_no_float_holds_is_no_description() -> None:
    with pytest.raises(ValidationError, match="declared_units"):
        SiteDescription(site="a", declared_units=10**400, tacit_version="1")


def test_a_train_key_is_never_a_probe_key(
    make_study: Callable[..., Study],
    with_probe: str,
    train_request: Callable[..., TrainRequest],
    probe_request: Callable[..., ProbeRequest],
) -> None:
    study = make_study(with_probe)
    keys = {
        train_request(study).plan.key(),
        train_request(study, round=2).plan.key(),
        train_request(study, run="b").plan.key(),
        train_request(make_study(with_probe, "seed=4")).plan.key(),
        probe_request(study).plan.key(),
        probe_request(study, when="after").plan.key(),
        probe_request(study, noise_multiplier=5.5).plan.key(),
    }
    assert len(keys) == 7
    assert all(len(key) == 64 and set(key) <= set("0123456789abcdef") for key in keys)


def test_what_was_decoded_cannot_be_written_to(train_request: Callable[..., TrainRequest]) -> None:
    got = decode_reply(encode(TrainReply(np.zeros(3, dtype=np.float32))))
    assert isinstance(got, TrainReply)
    with pytest.raises(ValueError, match="read-only"):
        got.update[0] = 1.0


def test_a_message_holds_a_copy_of_what_was_encoded() -> None:
    update = np.zeros(3, dtype=np.float32)
    records = encode(TrainReply(update))
    update[0] = 9.0
    got = decode_reply(records)
    assert isinstance(got, TrainReply)
    assert got.update.tolist() == [0.0, 0.0, 0.0]


def test_arrays_that_are_no_rows_of_memory_arrive_as_they_look() -> None:
    table = np.arange(12, dtype=np.float64)
    got = decode_reply(encode(ProbeReply(table[::3])))
    assert isinstance(got, ProbeReply)
    assert got.statistics.tolist() == [0.0, 3.0, 6.0, 9.0]


def test_message_types_are_the_routes_of_the_client_app(
    make_study: Callable[..., Study],
    with_probe: str,
    train_request: Callable[..., TrainRequest],
    probe_request: Callable[..., ProbeRequest],
) -> None:
    study = make_study(with_probe)
    requests: list[Request] = [DescribeRequest(study), train_request(study), probe_request(study)]
    assert [message_type(request) for request in requests] == [
        "query.describe",
        "train",
        "query.probe",
    ]


# --- a request is no reply, and a wrong message is a WireError -----------------------------

REPLIES: dict[str, Reply] = {
    "description": SiteDescription(site="s", declared_units=3, tacit_version="0"),
    "update": TrainReply(np.ones(3, dtype=np.float32)),
    "statistics": ProbeReply(np.ones(3)),
    "refusal": Refusal(code=RefusalCode.DATA),
}


@pytest.mark.parametrize("kind", REPLIES)
def test_a_reply_is_not_taken_for_a_request(kind: str) -> None:
    with pytest.raises(WireError, match="cannot be understood"):
        decode_request(encode(REPLIES[kind]))


def test_a_request_is_not_taken_for_a_reply(
    make_study: Callable[..., Study],
    with_probe: str,
    train_request: Callable[..., TrainRequest],
    probe_request: Callable[..., ProbeRequest],
) -> None:
    study = make_study(with_probe)
    for request in (DescribeRequest(study), train_request(study), probe_request(study)):
        with pytest.raises(WireError, match="cannot be understood"):
            decode_reply(encode(request))


def update_in(array: Array, body: str = '{"train_loss":null}') -> RecordDict:
    return RecordDict(
        {
            "tacit": ConfigRecord({"kind": "update", "body": body}),
            "arrays": ArrayRecord({"update": array}),
        }
    )


@pytest.mark.parametrize(
    "array",
    [
        Array("<f8", (3,), "tacit.raw", bytes(24)),
        Array("<i4", (3,), "tacit.raw", bytes(12)),
        Array(">f4", (3,), "tacit.raw", bytes(12)),
        Array("|O", (3,), "tacit.raw", bytes(24)),
        Array("", (3,), "tacit.raw", bytes(12)),
        Array("float32", (3,), "tacit.raw", bytes(12)),
        Array("<f4", (3, 1), "tacit.raw", bytes(12)),
        Array("<f4", (), "tacit.raw", bytes(4)),
        Array("<f4", (4,), "tacit.raw", bytes(12)),
        Array("<f4", (2,), "tacit.raw", bytes(12)),
        Array("<f4", (-3,), "tacit.raw", bytes(12)),
        Array("<f4", (-1,), "tacit.raw", b""),
        Array("<f4", (2**62,), "tacit.raw", bytes(12)),
        Array("<f4", (2**63,), "tacit.raw", b""),
        Array("<f4", (3,), "tacit.raw", b""),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}-{len(array.data)}",
)
def test_an_array_that_is_not_what_it_says_is_refused(array: Array) -> None:
    with pytest.raises(WireError, match="array 'update'"):
        decode_reply(update_in(array))


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("{}", "train_loss"),
        ('{"train_loss":"much"}', "train_loss"),
        ('{"train_loss":NaN}', "wrong fields"),
        ('{"train_loss":1e999}', "train_loss"),
        ('{"train_loss":null,"note":"patient"}', "note"),
        ('{"train_loss":null,"protocol":2}', "protocol"),
        ("null", "wrong fields"),
        ("[" * 10_000, "wrong fields"),
    ],
)
def test_a_body_with_other_fields_is_refused_by_their_names(body: str, named: str) -> None:
    sound = Array("<f4", (3,), "tacit.raw", bytes(12))
    with pytest.raises(WireError, match=named):
        decode_reply(update_in(sound, body))


def test_an_error_does_not_repeat_the_values_of_a_message() -> None:
    records = RecordDict(
        {"tacit": ConfigRecord({"kind": "refusal", "body": '{"code":"patient-4711"}'})}
    )
    with pytest.raises(WireError) as raised:
        decode_reply(records)
    assert "4711" not in str(raised.value)


# --- fuzzing -----------------------------------------------------------------------------

SIZES = st.sampled_from([-(2**63), -1, 0, 1, 2, 3, 4, 2**31, 2**32, 2**61, 2**62, 2**63 - 1])
DTYPES = st.sampled_from(["<f4", "<f8", ">f4", "<i8", "|O", "|V4", "<U2", "f", ""]) | st.text(
    max_size=6
)
ARRAYS = st.builds(
    Array,
    dtype=DTYPES,
    shape=st.lists(SIZES | st.integers(0, 5), max_size=3).map(tuple),
    stype=st.sampled_from(["tacit.raw", "numpy.ndarray", ""]),
    data=st.binary(max_size=40),
)
NAMES = st.sampled_from(["update", "statistics", "parameters", "basis_mean", "basis_components"])
KINDS = st.sampled_from(
    ["describe", "train", "probe", "description", "update", "statistics", "refusal", "", "exec"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["protocol", "code", "train_loss", "site", "plan", "study", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
BODIES = JSON.map(json.dumps) | st.text(max_size=30)
VALUES = BODIES | KINDS | st.integers(-(2**31), 2**31) | st.binary(max_size=8) | st.booleans()
CONFIGS = (
    st.fixed_dictionaries({"kind": KINDS | VALUES, "body": BODIES | VALUES})
    | st.dictionaries(st.sampled_from(["kind", "body", "x"]), VALUES)
).map(lambda fields: ConfigRecord(dict(fields)))
RECORDS = st.dictionaries(
    st.sampled_from(["tacit", "arrays", "other"]),
    CONFIGS
    | st.dictionaries(NAMES, ARRAYS).map(ArrayRecord)
    | st.just(MetricRecord({"loss": 1.0})),
).map(RecordDict)


@settings(max_examples=300)
@given(records=RECORDS)
def test_whatever_arrives_is_a_message_or_a_wire_error(records: RecordDict) -> None:
    for decode in (decode_request, decode_reply):
        try:
            decode(records)
        except WireError:
            continue


@settings(max_examples=200)
@given(array=ARRAYS)
def test_whatever_array_a_site_sends_is_an_update_or_a_wire_error(array: Array) -> None:
    try:
        reply = decode_reply(update_in(array))
    except WireError:
        return
    assert isinstance(reply, TrainReply)
    assert reply.update.dtype == np.float32
    assert reply.update.ndim == 1


@pytest.mark.parametrize("shape", [(2**32, 2**32), (0, 2**63 - 1)])
def test_whatever_basis_a_server_sends_is_a_basis_or_a_wire_error(
    make_study: Callable[..., Study],
    with_probe: str,
    probe_request: Callable[..., ProbeRequest],
    shape: tuple[int, int],
) -> None:
    records = encode(probe_request(make_study(with_probe)))
    basis = Array("<f8", shape, "tacit.raw", b"")
    records.array_records["arrays"]["basis_components"] = basis
    with pytest.raises(WireError):
        decode_request(records)


def mutated(body: str, path: list[str], value: object) -> str:
    """The JSON text with one field, at any depth, set to another value."""
    document = json.loads(body)
    node = document
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    return json.dumps(document)


@pytest.fixture
def plan_body(
    make_study: Callable[..., Study], train_request: Callable[..., TrainRequest]
) -> RecordDict:
    return encode(train_request(make_study()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["run"], "x" * 65),
        (["round"], 0),
        (["round"], 1.5),
        (["noise_multiplier"], 0.0),
        (["noise_multiplier"], -1.0),
        (["noise_multiplier"], "much"),
        (["parameters_sha256"], "0" * 63),
        (["target"], "os:system"),
        (["study", "plugins"], {"mine": "os:system"}),
        (["study", "simulation"], None),
        (["study", "seed"], -1),
        (["study", "encoder", "kind"], "resnet"),
        (["study", "encoder", "heads"], 3),
        (["study", "privacy", "l2_clip_norm"], 0),
        (["study", "privacy", "mode"], "site"),
        (["study", "federation", "local_steps"], 0),
        (["study", "federation", "strategy"], {"kind": "plugin", "name": "os:system"}),
    ],
    ids=lambda part: ".".join(part) if isinstance(part, list) else None,
)
def test_a_plan_with_one_wrong_field_is_refused(
    plan_body: RecordDict, path: list[str], value: object
) -> None:
    config = plan_body.config_records["tacit"]
    decode_request(plan_body)  # it is sound before
    config["body"] = mutated(str(config["body"]), path, value)
    with pytest.raises(WireError):
        decode_request(plan_body)


@settings(max_examples=100)
@given(
    cut=st.integers(0, 1500),
    noise=st.binary(max_size=6),
)
def test_bytes_that_were_damaged_on_the_way_are_another_message_or_a_wire_error(
    cut: int, noise: bytes
) -> None:
    proto = recorddict_to_proto(encode(REPLIES["description"]))
    sent = proto.SerializeToString()
    damaged = sent[: cut % len(sent)] + noise + sent[cut % len(sent) :]
    try:
        records = recorddict_from_proto(type(proto).FromString(damaged))
    except Exception:  # Flower's own, before any of ours
        return
    try:
        decode_reply(records)
    except WireError:
        return
