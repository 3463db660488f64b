"""The coordinator's grid against replies that sites have put together with malice.

They come through the SuperLink, which stores whatever fits its hash. One bad reply becomes
an error in its place; it neither ends the run nor keeps the others waiting.
"""

from collections.abc import Callable, Iterator

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from tests.common.flower.malicious_case import Malicious, Parcel, make_content, make_parcel, proto

from tacit_common.errors import LinkError
from tacit_common.flower import grid as grid_module
from tacit_common.flower.grid import SuperLinkGrid
from tacit_common.flower.http import make_client
from tacit_common.flower.pieces import LARGEST_PIECE
from tacit_common.flower.transport import Bounds
from tacit_common.wire import content_sha256


@pytest.fixture
def grid(server: Malicious) -> Iterator[SuperLinkGrid]:
    """A grid whose SuperLink hands out whatever the test says."""
    client = make_client(
        RuntimeHttpClient,
        server.address,
        server.ca_certificate,
        component="flwr-serverapp",
        bounds=Bounds(answer=1_000_000, piece=LARGEST_PIECE),
    )
    made = SuperLinkGrid(server.address, client, client, Run.create_empty(5))
    yield made
    made.close()
    client.close()


def deliver(server: Malicious, parcels: dict[str, Parcel]) -> None:
    """Have these replies waiting, each for the message of that name."""
    listed = PullAppMessagesResponse()
    for name, parcel in parcels.items():
        envelope = message_to_proto(parcel.envelope)
        envelope.metadata.reply_to_message_id = name
        listed.messages_list.append(envelope)
        listed.message_object_trees.append(parcel.tree)
    answers = [proto(PullAppMessagesResponse()), proto(listed)]
    server.answers["/pull-messages"] = lambda _, __, send: send(
        answers.pop() if len(answers) > 1 else answers[0]
    )

    def pieces(path: str, body: bytes, send: Callable[[bytes], None]) -> None:
        for parcel in parcels.values():
            found = parcel.answer(body)
            if found.object_found:
                send(proto(found))
                return
        send(proto(PullObjectResponse(object_found=False)))

    server.answers["/pull-object"] = pieces


def changed(parcel: Parcel) -> Parcel:
    """The same with a piece that is not what its name says."""
    parcel.contents[parcel.tree.object_id] += b"x"
    return parcel


def endless(parcel: Parcel) -> Parcel:
    """The same with more pieces than any reply has."""
    parcel.tree.children.extend(ObjectTree(object_id=f"{n:064x}") for n in range(5000))
    return parcel


@pytest.mark.parametrize(
    "bad",
    [
        lambda: changed(make_parcel()),
        lambda: endless(make_parcel()),
        lambda: make_parcel(RecordDict({"head": ConfigRecord({"head": "junk"})})),
        lambda: Parcel(make_parcel().envelope, ObjectTree(object_id="0" * 64), {}),
        lambda: Parcel(make_parcel().envelope, ObjectTree(), {}),
    ],
    ids=["another content", "5000 pieces", "junk", "no piece", "no name"],
)
def test_a_bad_reply_is_an_error_in_its_place(
    server: Malicious, grid: SuperLinkGrid, bad: Callable[[], Parcel]
) -> None:
    deliver(server, {"asked-1": bad(), "asked-2": make_parcel()})
    replies = {
        reply.metadata.reply_to_message_id: reply
        for reply in grid.pull_messages(["asked-1", "asked-2"])
    }
    assert replies["asked-1"].has_error()
    assert content_sha256(replies["asked-2"].content) == content_sha256(make_content())


def test_what_a_reply_replies_to_is_what_the_superlink_says(
    server: Malicious, grid: SuperLinkGrid
) -> None:
    """And not what its sender wrote into it: else a site could answer in another's place."""
    forged = make_parcel()
    assert b"asked" not in b"".join(forged.contents.values())
    deliver(server, {"asked": forged})
    (reply,) = grid.pull_messages(["asked"])
    assert reply.metadata.reply_to_message_id == "asked"


def test_a_reply_that_is_never_whole_keeps_nobody_waiting(
    server: Malicious, grid: SuperLinkGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid_module, "_MOMENT_S", 0.001)
    deliver(server, {"asked": make_parcel()})
    server.say("/pull-object", proto(PullObjectResponse(object_found=True)))
    assert grid.pull_messages(["asked"]) == []
    assert grid.pull_messages(["asked"]) == []
    looked = [path for path, _ in server.seen if path.endswith("/pull-messages")]
    assert len(looked) == 1  # it has arrived already, and only its pieces are missing
    assert grid.pull_messages(["something else"]) == []  # and so it is forgotten
    assert not grid._arriving


def test_a_superlink_that_answers_junk_is_a_link_error(
    server: Malicious, grid: SuperLinkGrid
) -> None:
    for path in ("/pull-messages", "/get-nodes"):
        server.say(path, b"HTTP/1.1 200 X\r\ncontent-length: 4\r\n\r\n\xff\xff\xff\xff")
    with pytest.raises(LinkError):
        grid.pull_messages(["asked"])
    with pytest.raises(LinkError):
        grid.get_node_ids()
