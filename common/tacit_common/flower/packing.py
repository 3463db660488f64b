"""A message's content in as few pieces as possible.

Flower keeps a message as a tree of objects: one for each record, each array, and each 5 MB of
an array. Every object is pushed and pulled by a request of its own, which takes its SuperLink
some 15 ms. So all texts of a message, and the shapes of its arrays, travel as one record,
and each 5 MB of an array as one more. What several messages share is still sent once.
"""

from itertools import count
from typing import Final, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tacit_common.errors import WireError

CHUNK: Final = 5 * 1024 * 1024
"""Bytes of an array in one piece."""

LARGEST_TEXTS: Final = 4 * 1024 * 1024
"""Bytes of all that is not the content of an array."""

_HEAD, _DATA = "head", "data"


class _ArrayHead(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dtype: str
    shape: tuple[int, ...]
    stype: str
    pieces: int = Field(ge=0)


class _Head(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    packed: Literal[1] = 1
    texts: dict[str, dict[str, str]]
    arrays: dict[str, dict[str, _ArrayHead]]


def pack(content: RecordDict) -> RecordDict:
    """The same content in few records; `unpack` gives it back.

    Raises:
        WireError: it holds something besides texts and arrays, or too much text.
    """
    texts: dict[str, dict[str, str]] = {}
    arrays: dict[str, dict[str, _ArrayHead]] = {}
    packed, number = RecordDict(), count()
    for name, record in content.items():
        if isinstance(record, ConfigRecord):
            texts[name] = {key: _text(value) for key, value in record.items()}
        elif isinstance(record, ArrayRecord):
            arrays[name] = {}
            for key, array in record.items():
                view = memoryview(array.data)
                starts = range(0, len(view), CHUNK)
                for start in starts:
                    piece = ConfigRecord({_DATA: bytes(view[start : start + CHUNK])})
                    packed[str(next(number))] = piece
                arrays[name][key] = _ArrayHead(
                    dtype=array.dtype, shape=array.shape, stype=array.stype, pieces=len(starts)
                )
        else:
            raise _malformed("it holds neither texts nor arrays")
    head = _Head(texts=texts, arrays=arrays).model_dump_json()
    if len(head) > LARGEST_TEXTS:
        raise _malformed("it has too much text")
    packed[_HEAD] = ConfigRecord({_HEAD: head})
    return packed


def unpack(packed: RecordDict, *, largest: int) -> RecordDict:
    """The content that was packed, if its arrays have at most `largest` bytes.

    Guarantees: it takes no more memory than the pieces that are there and `largest` bytes; a
    piece that is named more than once counts each time.

    Raises:
        WireError: it is no packed content, or too large.
    """
    head = _parsed(packed)
    content = RecordDict({name: ConfigRecord(dict(record)) for name, record in head.texts.items()})
    number, total = count(), 0
    for name, arrays in head.arrays.items():
        record: dict[str, Array] = {}
        for key, shape in arrays.items():
            pieces = []
            for _ in range(shape.pieces):
                pieces.append(_piece(packed, str(next(number))))
                total += len(pieces[-1])
                if total > largest:
                    raise _malformed("its arrays are too large")
            record[key] = Array(
                dtype=shape.dtype, shape=shape.shape, stype=shape.stype, data=b"".join(pieces)
            )
        content[name] = ArrayRecord(record)
    return content


def _parsed(packed: RecordDict) -> _Head:
    record = packed.get(_HEAD)
    text = record.get(_HEAD) if isinstance(record, ConfigRecord) else None
    if not isinstance(text, str) or len(text) > LARGEST_TEXTS:
        raise _malformed("it has no head, or too much text")
    try:
        return _Head.model_validate_json(text)
    except ValidationError:
        raise _malformed("its head has wrong fields") from None


def _piece(packed: RecordDict, name: str) -> bytes:
    record = packed.get(name)
    data = record.get(_DATA) if isinstance(record, ConfigRecord) else None
    if not isinstance(data, bytes):
        raise _malformed("a piece of an array is missing")
    return data


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _malformed("it holds a value that is no text")
    return value


def _malformed(why: str) -> WireError:
    return WireError(
        "a message cannot be understood",
        why=why,
        fix="run the same Tacit version on the server and on every site",
    )
