"""A site's link against messages that are put together with malice.

Whatever a server delivers, the site gets a message that is whole and bounded, or a delivery
without one, to which it answers by a code; and it goes on.
"""

import tracemalloc
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.common.flower.malicious_case import (
    Malicious,
    Parcel,
    http,
    make_content,
    make_parcel,
    piece,
    proto,
)

from tacit_common.errors import LinkError
from tacit_common.flower import fleet
from tacit_common.flower.fleet import Delivery, FleetLink
from tacit_common.flower.packing import pack
from tacit_common.wire import content_sha256

MEBIBYTE = 1024 * 1024
LARGEST = 16 * MEBIBYTE


@pytest.fixture
def deliver(
    server: Malicious, node_key: ec.EllipticCurvePrivateKey
) -> Callable[..., Delivery | None]:
    """What a site gets of a parcel; then it still works."""

    def delivered(parcel: Parcel, largest: int = LARGEST) -> Delivery | None:
        server.deliver(parcel)
        with FleetLink(
            server.address, server.ca_certificate, node_key, largest_message=largest
        ) as link:
            found = link.receive()
            server.deliver(make_parcel())
            after = link.receive()
            assert after is not None
            assert after.message is not None
            return found

    return delivered


def is_refused(delivery: Delivery | None) -> bool:
    return delivery is not None and delivery.message is None


def test_a_message_that_is_in_order_arrives(deliver: Callable[..., Delivery | None]) -> None:
    delivery = deliver(make_parcel())
    assert delivery is not None
    assert delivery.message is not None
    assert content_sha256(delivery.message.content) == content_sha256(make_content())
    assert delivery.size > 4096


def test_a_piece_that_is_not_what_its_name_says_is_refused(
    deliver: Callable[..., Delivery | None],
) -> None:
    for place in range(len(make_parcel().contents)):
        parcel = make_parcel()
        name = list(parcel.contents)[place]
        changed = bytearray(parcel.contents[name])
        changed[-1] ^= 1
        parcel.contents[name] = bytes(changed)
        assert is_refused(deliver(parcel))


def test_a_piece_that_will_never_come_is_refused(deliver: Callable[..., Delivery | None]) -> None:
    for place in range(len(make_parcel().contents)):
        parcel = make_parcel()
        del parcel.contents[list(parcel.contents)[place]]
        assert is_refused(deliver(parcel))


def test_a_piece_that_is_always_on_its_way_is_given_up(
    server: Malicious,
    node_key: ec.EllipticCurvePrivateKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_AWAIT_PIECE_S", 0.2)
    server.deliver(make_parcel())
    server.say("/pull-object", proto(PullObjectResponse(object_found=True)))
    with FleetLink(
        server.address, server.ca_certificate, node_key, largest_message=LARGEST
    ) as link:
        assert is_refused(link.receive())


def test_a_message_without_a_list_of_pieces_is_refused(
    server: Malicious, node_key: ec.EllipticCurvePrivateKey
) -> None:
    listed = PullMessagesResponse(messages_list=[message_to_proto(make_parcel().envelope)])
    server.say("/pull-messages", proto(listed))
    with FleetLink(
        server.address, server.ca_certificate, node_key, largest_message=LARGEST
    ) as link:
        assert is_refused(link.receive())


def test_names_that_are_no_hashes_are_refused(deliver: Callable[..., Delivery | None]) -> None:
    for name in ("", "0" * 63, "G" * 64, "../../etc/passwd", "0" * 64 + "\n", "Ａ" * 64):
        parcel = make_parcel()
        parcel.tree.children.add(object_id=name)
        assert is_refused(deliver(parcel))


def test_too_many_pieces_are_not_fetched(
    server: Malicious, deliver: Callable[..., Delivery | None]
) -> None:
    parcel = make_parcel()
    parcel.tree.children.extend(ObjectTree(object_id=f"{n:064x}") for n in range(100))
    assert is_refused(deliver(parcel))
    pulled = [path for path, _ in server.seen if path.endswith("/pull-object")]
    assert len(pulled) == len(make_parcel().contents)  # of the message after it


def nested(depth: int) -> bytes:
    """A list of pieces, each below the one before it; protobuf itself makes 100 at most."""
    fields = ObjectTree.DESCRIPTOR.fields_by_name
    named = ObjectTree(object_id="0" * 64).SerializeToString()
    tree = named
    for _ in range(depth):
        tree = named + _field(fields["children"].number, tree)
    return _field(
        PullMessagesResponse.DESCRIPTOR.fields_by_name["message_object_trees"].number, tree
    )


def _field(number: int, content: bytes) -> bytes:
    length, rest = b"", len(content)
    while rest > 127:
        length, rest = length + bytes([rest & 127 | 128]), rest >> 7
    return bytes([number << 3 | 2]) + length + bytes([rest]) + content


def test_a_list_of_pieces_that_is_nested_deeply_is_refused(
    server: Malicious, node_key: ec.EllipticCurvePrivateKey
) -> None:
    listed = PullMessagesResponse(messages_list=[message_to_proto(make_parcel().envelope)])
    server.deliver(make_parcel())
    with FleetLink(
        server.address, server.ca_certificate, node_key, largest_message=LARGEST
    ) as link:
        server.say("/pull-messages", http(listed.SerializeToString() + nested(90)))
        assert is_refused(link.receive())
        for depth in (101, 200, 1000):
            server.say("/pull-messages", http(listed.SerializeToString() + nested(depth)))
            with pytest.raises(LinkError, match="cannot be understood"):
                link.receive()


def rooted(parcel: Parcel, root: str) -> Parcel:
    """The parcel with another piece as the message itself."""
    tree = ObjectTree(object_id=root)
    tree.children.extend(ObjectTree(object_id=name) for name in parcel.contents if name != root)
    return Parcel(parcel.envelope, tree, parcel.contents)


def test_pieces_that_do_not_belong_together_are_refused(
    deliver: Callable[..., Delivery | None],
) -> None:
    good = make_parcel()
    (message,) = [n for n, content in good.contents.items() if content.startswith(b"Message")]
    (records,) = [n for n, content in good.contents.items() if content.startswith(b"RecordDict")]
    (body,) = [content.partition(b"\0")[2] for n, content in good.contents.items() if n == message]
    wrong = {
        "a record as the message": lambda p: records,
        "a message in a message": lambda p: p.put(piece("Message", [message], body)),
        "a message of nothing": lambda p: p.put(piece("Message", [], b"")),
        "a message of itself": lambda p: p.put(piece("Message", ["0" * 64], body)),
        "a message of two": lambda p: p.put(piece("Message", [records, records], body)),
        "no kind at all": lambda p: p.put(b"nothing"),
        "another kind": lambda p: p.put(piece("Context", [records], body)),
        "no length": lambda p: p.put(b"Message  \0"),
        "a length of a million digits": lambda p: p.put(b"Message  " + b"9" * 1_000_000 + b"\0"),
        "no text": lambda p: p.put(b"\xff\xff \xff 1\0"),
        "junk": lambda p: p.put(piece("Message", [records], b"\xff" * 64)),
    }
    for put in wrong.values():
        parcel = make_parcel()
        parcel.contents |= good.contents
        assert is_refused(deliver(rooted(parcel, put(parcel))))


def test_records_that_are_not_packed_are_refused(deliver: Callable[..., Delivery | None]) -> None:
    """Among them Flower's own arrays, which may name one chunk of 5 MB a million times."""
    array = Array(dtype="<f4", shape=(1,), stype="tacit.raw", data=bytes(4))
    for content in (
        RecordDict(),
        RecordDict({"arrays": ArrayRecord({"parameters": array})}),
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"head": ConfigRecord({"head": "{}"})}),
        RecordDict({"head": ConfigRecord({"head": "[" * 100_000})}),
        RecordDict({"head": ConfigRecord({"head": b"{}"})}),
        RecordDict({"head": ConfigRecord({"head": 1})}),
        RecordDict({"head": ConfigRecord({"other": "{}"})}),
    ):
        assert is_refused(deliver(make_parcel(content)))


def test_a_piece_that_is_named_a_million_times_is_counted_each_time(
    deliver: Callable[..., Delivery | None],
) -> None:
    array = Array(dtype="|u1", shape=(1,), stype="tacit.raw", data=bytes(65536))
    packed = pack(RecordDict({"arrays": ArrayRecord({"parameters": array})}))
    head = packed.config_records["head"]["head"]
    assert isinstance(head, str)
    packed["head"] = ConfigRecord({"head": head.replace('"pieces":1', '"pieces":2000')})
    for number in range(1, 2000):
        packed[str(number)] = packed["0"]
    parcel = make_parcel(packed)
    tracemalloc.start()
    delivery = deliver(parcel)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert is_refused(delivery)
    assert peak < 64 * MEBIBYTE  # of 131 MB that it would be


def test_a_message_beyond_the_bound_is_not_fetched_to_its_end(
    deliver: Callable[..., Delivery | None],
) -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range(3 * MEBIBYTE))
    array = Array(dtype="<u4", shape=(1,), stype="tacit.raw", data=data)
    parcel = make_parcel(pack(RecordDict({"arrays": ArrayRecord({"parameters": array})})))
    assert is_refused(deliver(parcel, largest=2 * MEBIBYTE))
    delivery = deliver(parcel, largest=16 * MEBIBYTE)
    assert delivery is not None
    assert delivery.message is not None


@given(
    place=st.integers(0, 3),
    changes=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_pieces_hold_the_site_goes_on(
    deliver: Callable[..., Delivery | None], place: int, changes: list[tuple[int, int]]
) -> None:
    parcel = make_parcel()
    old = list(parcel.contents)[place]
    content = bytearray(parcel.contents[old])
    for position, value in changes:
        content[position % len(content)] = value
    new = parcel.put(bytes(content))
    # The pieces above it name it, so that all hashes are right.
    for kind in (b"RecordDict", b"Message"):
        for name, above in list(parcel.contents.items()):
            named = above.replace(old.encode(), new.encode())
            if above.startswith(kind) and named != above:
                old, new = name, parcel.put(named)
    assert deliver(rooted(parcel, new)) is not None
