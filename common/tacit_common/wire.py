"""Messages as Flower records, and back: the one conversion, which believes nothing.

Beside each message travels a signed ledger head: from a site its own, to a site the
newest one of its own that the server has seen (see `witness`). Between machines, an
envelope with the sender's signature over all of it (see `envelope`).
"""

import hashlib
import math
from functools import lru_cache
from typing import TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from tacit_common.envelope import AnswerEnvelope, RequestEnvelope
from tacit_common.errors import WireError
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    MessageBody,
    ProbePlan,
    ProbeReply,
    ProbeRequest,
    Refusal,
    Reply,
    Request,
    RoundPlan,
    RunId,
    SiteAccountReply,
    SiteDescription,
    TrainReply,
    TrainRequest,
)
from tacit_common.strategy import ParameterVector
from tacit_common.study import Study

_CONFIG, _ARRAYS, _LEDGER, _ENVELOPE = "tacit", "arrays", "ledger", "envelope"


class _TrainReplyBody(MessageBody):
    train_loss: float | None


class _DescribeBody(MessageBody):
    study: Study
    run: RunId | None


class _EmptyBody(MessageBody):
    pass


BodyT = TypeVar("BodyT", bound=MessageBody)
ModelT = TypeVar("ModelT", bound=BaseModel)
EnvelopeT = TypeVar("EnvelopeT", RequestEnvelope, AnswerEnvelope)


def encode(message: Request | Reply) -> RecordDict:
    """A message as Flower records."""
    match message:
        case DescribeRequest(study=study, run=run):
            return _records("describe", _DescribeBody(study=study, run=run))
        case TrainRequest():
            return _records("train", message.plan, parameters=message.parameters)
        case ProbeRequest():
            return _records(
                "probe",
                message.plan,
                parameters=message.parameters,
                basis_mean=message.basis_mean,
                basis_components=message.basis_components,
            )
        case AccountRequest():
            return _records("account", message)
        case SiteDescription():
            return _records("description", message)
        case TrainReply():
            body = _TrainReplyBody(train_loss=message.train_loss)
            return _records("update", body, update=message.update)
        case ProbeReply():
            return _records("statistics", _EmptyBody(), statistics=message.statistics)
        case SiteAccountReply():
            return _records("accounted", message)
        case Refusal():
            return _records("refusal", message)


def with_head(records: RecordDict, head: SignedHead | None) -> RecordDict:
    """The same message with a ledger's signed head beside it; the arrays are shared."""
    return records if head is None else _with_beside(records, _LEDGER, "head", head)


def decode_head(records: RecordDict) -> SignedHead | None:
    """The signed head beside a message, whose signature is not checked here; None without one.

    Raises:
        WireError: there is one that cannot be understood.
    """
    return _beside(records, _LEDGER, "head", SignedHead)


def with_envelope(records: RecordDict, envelope: RequestEnvelope | AnswerEnvelope) -> RecordDict:
    """The same message in its sender's envelope; the arrays are shared."""
    return _with_beside(records, _ENVELOPE, "envelope", envelope)


def decode_envelope(records: RecordDict, kind: type[EnvelopeT]) -> EnvelopeT:
    """The envelope around a message, whose signature is not checked here.

    Raises:
        WireError: there is none, or it cannot be understood.
    """
    envelope = _beside(records, _ENVELOPE, "envelope", kind)
    if envelope is None:
        raise _malformed("it is in no envelope, so nobody signed it")
    return envelope


def content_sha256(records: RecordDict) -> str:
    """SHA-256 of everything in a message but its envelope, hexadecimal.

    Each part is written with its name and its length, so that no two messages share one
    digest by moving bytes from one part to the next. A record without content counts too.

    Raises:
        WireError: it holds what no message of this protocol holds.
    """
    digest = hashlib.sha256()

    def add(*parts: str | bytes | memoryview) -> None:
        for part in parts:
            content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            digest.update(len(content).to_bytes(8, "big"))
            digest.update(content)

    for name in sorted(records):
        record = records[name]
        if name == _ENVELOPE:
            continue
        if isinstance(record, ConfigRecord):
            add("texts", name)
            for key in sorted(record):
                value = record[key]
                if not isinstance(value, str):
                    raise _malformed(f"record '{name[:32]}' holds something that is not text")
                add("text", name, key, value)
        elif isinstance(record, ArrayRecord):
            add("arrays", name)
            for key in sorted(record):
                array = record[key]
                shape = _shape_of(key, array)
                add("array", name, key, array.dtype, array.stype, repr(shape))
                add(memoryview(array.data))
        else:
            raise _malformed(f"record '{name[:32]}' is of a kind that is not expected here")
    return digest.hexdigest()


def content_size(records: RecordDict) -> int:
    """Bytes of content in a message: its texts and its arrays."""
    texts = sum(
        len(str(value).encode())
        for record in records.config_records.values()
        for value in record.values()
    )
    arrays = sum(
        len(array.data) for record in records.array_records.values() for array in record.values()
    )
    return texts + arrays


def decode_request(records: RecordDict) -> Request:
    """The request in Flower records.

    Raises:
        WireError: it is not a request of this protocol version.
    """
    kind, body, arrays = _open(records)
    match kind:
        case "describe":
            described = _parse_shared(_DescribeBody, body)
            return DescribeRequest(described.study, described.run)
        case "train":
            return TrainRequest(
                _parse_shared(RoundPlan, body), _take(arrays, "parameters", np.float32, ndim=1)
            )
        case "probe":
            return ProbeRequest(
                _parse_shared(ProbePlan, body),
                _take(arrays, "parameters", np.float32, ndim=1),
                _take(arrays, "basis_mean", np.float64, ndim=1),
                _take(arrays, "basis_components", np.float64, ndim=2),
            )
        case "account":
            return _parse_shared(AccountRequest, body)
    raise _unknown(kind)


def decode_reply(records: RecordDict) -> Reply:
    """The reply in Flower records.

    Raises:
        WireError: it is not a reply of this protocol version.
    """
    kind, body, arrays = _open(records)
    match kind:
        case "description":
            return _parse(SiteDescription, body)
        case "update":
            loss = _parse(_TrainReplyBody, body).train_loss
            return TrainReply(_take_update(arrays), loss)
        case "statistics":
            _parse(_EmptyBody, body)
            return ProbeReply(_take(arrays, "statistics", np.float64, ndim=1))
        case "accounted":
            return _parse(SiteAccountReply, body)
        case "refusal":
            return _parse(Refusal, body)
    raise _unknown(kind)


def _records(kind: str, body: MessageBody, **arrays: NDArray[np.generic]) -> RecordDict:
    records = RecordDict({_CONFIG: ConfigRecord({"kind": kind, "body": body.model_dump_json()})})
    if arrays:
        packed = {name: _pack(array) for name, array in arrays.items()}
        records[_ARRAYS] = ArrayRecord(packed)
    return records


def _pack(array: NDArray[np.generic]) -> Array:
    """Raw little-endian bytes: one copy, where Flower's NumPy container takes two."""
    contiguous = np.ascontiguousarray(array)
    return Array(
        dtype=contiguous.dtype.str,
        shape=contiguous.shape,
        stype="tacit.raw",
        data=contiguous.tobytes(),
    )


def _with_beside(records: RecordDict, record: str, key: str, content: BaseModel) -> RecordDict:
    return RecordDict({**records, record: ConfigRecord({key: content.model_dump_json()})})


def _beside(records: RecordDict, record: str, key: str, kind: type[ModelT]) -> ModelT | None:
    config = records.config_records.get(record)
    if config is None:
        return None
    content = config.get(key)
    if set(config) != {key} or not isinstance(content, str):
        raise _malformed(f"its '{record}' record does not hold a '{key}' alone")
    try:
        return kind.model_validate_json(content)
    except ValidationError:
        raise _malformed(f"its '{record}' record has wrong fields") from None


def _open(records: RecordDict) -> tuple[str, str, dict[str, Array]]:
    config = records.config_records.get(_CONFIG)
    if config is None or set(config) != {"kind", "body"}:
        raise _malformed("it has no 'tacit' record with a kind and a body")
    kind, body = config["kind"], config["body"]
    if not isinstance(kind, str) or not isinstance(body, str):
        raise _malformed("its kind or body is not text")
    arrays = records.array_records.get(_ARRAYS)
    return kind, body, dict(arrays) if arrays is not None else {}


def _parse(body_type: type[BodyT], body: str) -> BodyT:
    try:
        return body_type.model_validate_json(body)
    except ValidationError as error:
        fields = sorted({".".join(map(str, item["loc"])) for item in error.errors()})
        raise _malformed(f"wrong fields: {', '.join(fields)}") from None


def _parse_shared(body_type: type[BodyT], body: str) -> BodyT:
    """The body of a request, whose text is the same for every site of a cohort."""
    return cast(BodyT, _parsed(body_type, body))


@lru_cache(maxsize=2)
def _parsed(body_type: type[MessageBody], body: str) -> MessageBody:
    return _parse(body_type, body)


def _take_update(arrays: dict[str, Array]) -> ParameterVector:
    if "update" in arrays and arrays["update"].dtype == np.dtype(np.float16).str:
        return _take(arrays, "update", np.float16, ndim=1).astype(np.float32)
    return _take(arrays, "update", np.float32, ndim=1)


ScalarT = TypeVar("ScalarT", np.float16, np.float32, np.float64)


def _take(
    arrays: dict[str, Array], name: str, dtype: type[ScalarT], *, ndim: int
) -> NDArray[ScalarT]:
    array = arrays.get(name)
    if array is None:
        raise _malformed(f"array '{name}' is missing")
    shape = _shape_of(name, array)
    if array.dtype != np.dtype(dtype).str:
        raise _malformed(f"array '{name}' has dtype {array.dtype[:16]}")
    if len(shape) != ndim or any(size < 0 for size in shape):
        raise _malformed(f"array '{name}' has {len(shape)} dimensions, not {ndim}")
    if len(array.data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise _malformed(f"array '{name}' does not hold as many bytes as its shape says")
    try:
        return np.frombuffer(array.data, dtype=dtype).reshape(shape)
    except ValueError:  # an empty array of an impossible shape
        raise _malformed(f"array '{name}' has a shape that cannot be") from None


def _shape_of(name: str, array: Array) -> tuple[int, ...]:
    """An array's shape. Flower reads what an array says of itself from JSON, unchecked.

    Raises:
        WireError: it says something that no array of this protocol says.
    """
    texts = (name, array.dtype, array.stype)
    if not all(isinstance(text, str) and text.isascii() for text in texts):
        raise _malformed("an array's name or type is not plain text")
    shape = tuple(array.shape)
    if not all(type(size) is int for size in shape) or not isinstance(array.data, bytes):
        raise _malformed("an array's shape is not made of whole numbers")
    return shape


def _unknown(kind: str) -> WireError:
    return _malformed(f"kind '{kind[:32]}' is not one that is expected here")


def _malformed(why: str) -> WireError:
    return WireError(
        "a message cannot be understood",
        why=why,
        fix="run the same Tacit version on the server and on every site",
    )
