"""The adapter against Flower's real SuperLink: what Tacit relies on it to do."""

import time

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from tests.common.flower.superlink_case import MEBIBYTE, RealSuperLink, wait_for

from tacit_common.certificates import make_ca
from tacit_common.errors import IdentityError, LinkError
from tacit_common.flower import fleet, tasks
from tacit_common.flower.apps import begin_task
from tacit_common.flower.control import Control
from tacit_common.flower.fleet import Delivery, FleetLink
from tacit_common.flower.tasks import RunTask, TaskQueue

pytestmark = [
    pytest.mark.system,
    # Flower's builder of bundles calls its library by an old name.
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]


def content(size: int = 4096, text: str = "a question") -> RecordDict:
    """A text, and an array whose pieces all differ, and differ from those of another text.

    What the SuperLink has already, it does not ask for again.
    """
    first = sum(text.encode())
    data = np.arange(first, first + size // 4, dtype="<u4").tobytes()
    array = Array(dtype="<u4", shape=(size // 4,), stype="tacit.raw", data=data)
    return RecordDict(
        {"tacit": ConfigRecord({"body": text}), "arrays": ArrayRecord({"parameters": array})}
    )


def ask(task: RunTask, node: int, question: RecordDict, ttl: float = 600.0) -> str:
    """Send a message to a node; its name."""
    # Here the run and its nodes are one process, which says each time whom it speaks for.
    begin_task(run_id=task.grid.run.run_id, node_id=SUPERLINK_NODE_ID)
    message = Message(question, dst_node_id=node, message_type="train", ttl=ttl)
    (name,) = task.grid.push_messages([message])
    return name


def received(link: FleetLink) -> tuple[Delivery, Message]:
    delivery = wait_for(link.receive)
    assert delivery.message is not None
    return delivery, delivery.message


def same(one: RecordDict, other: RecordDict) -> bool:
    return (
        one.config_records["tacit"] == other.config_records["tacit"]
        and one.array_records["arrays"]["parameters"].data
        == other.array_records["arrays"]["parameters"].data
    )


def test_a_registered_node_is_listed_and_known_by_its_key(superlink: RealSuperLink) -> None:
    key = superlink.admit("listed")
    with superlink.control() as control:
        (node,) = [
            node
            for node in control.nodes()
            if node.public_key == public_key_to_bytes(key.public_key())
        ]
        assert not node.online
        with superlink.link(key) as link:
            assert link.node_id == node.node_id
            assert {known.node_id: known.online for known in control.nodes()}[node.node_id]
        control.unregister_node(node.node_id)
        assert node.node_id not in {known.node_id for known in control.nodes()}
        # A site that was removed may come back only because it is never shut out here.
        with pytest.raises(IdentityError):
            control.register_node(node.public_key, "again")


def test_a_key_is_registered_once(superlink: RealSuperLink) -> None:
    key = superlink.admit("once")
    with superlink.control() as control, pytest.raises(IdentityError):
        control.register_node(public_key_to_bytes(key.public_key()), "again")


def test_a_question_and_its_answer_arrive_as_they_were_sent(superlink: RealSuperLink) -> None:
    key = superlink.admit("asked")
    with superlink.link(key) as link, superlink.task("a-run") as task:
        assert task.name == "a-run"
        assert link.node_id in task.grid.get_node_ids()
        assert link.receive() is None
        name = ask(task, link.node_id, content())
        assert list(task.grid.pull_messages([name])) == []
        delivery, question = received(link)
        assert same(question.content, content())
        assert delivery.size > 4096
        sent = link.send(Message(content(text="an answer"), reply_to=delivery.envelope))
        assert sent > 4096
        (answer,) = wait_for(lambda: list(task.grid.pull_messages([name])))
        assert answer.metadata.reply_to_message_id == name
        assert same(answer.content, content(text="an answer"))
    with superlink.control() as control:
        assert control.runs()[task.grid.run.run_id].status == "finished:completed"


@pytest.mark.slow
def test_a_message_of_12_mb_travels_in_pieces_both_ways(superlink: RealSuperLink) -> None:
    key, large = superlink.admit("large"), content(12 * MEBIBYTE)
    with superlink.link(key) as link, superlink.task("large") as task:
        name = ask(task, link.node_id, large)
        delivery, question = received(link)
        assert same(question.content, large)
        answer = content(12 * MEBIBYTE, "an answer")
        assert link.send(Message(answer, reply_to=delivery.envelope)) > 0
        (answered,) = wait_for(lambda: list(task.grid.pull_messages([name])))
        assert same(answered.content, answer)


def test_a_message_beyond_the_sites_bound_is_not_fetched(superlink: RealSuperLink) -> None:
    key = superlink.admit("bounded")
    with (
        superlink.link(key, largest_message=MEBIBYTE) as link,
        superlink.task("bounded") as task,
    ):
        ask(task, link.node_id, content(2 * MEBIBYTE))
        delivery = wait_for(link.receive)
        assert delivery.message is None
        ask(task, link.node_id, content())
        assert received(link)


def test_answers_that_are_on_their_way_keep_nobody_waiting(superlink: RealSuperLink) -> None:
    """A site that vanishes in the middle of its answer costs the others nothing."""
    first, second = superlink.admit("vanishes"), superlink.admit("answers")
    with (
        superlink.link(first) as vanishing,
        superlink.link(second) as answering,
        superlink.task("two") as task,
    ):
        names = [ask(task, link.node_id, content()) for link in (vanishing, answering)]
        half, _ = received(vanishing)
        whole, _ = received(answering)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fleet, "push_objects", lambda *_, **__: None)
            vanishing.send(Message(content(text="half"), reply_to=half.envelope))
        assert list(task.grid.pull_messages(names)) == []
        answering.send(Message(content(text="whole"), reply_to=whole.envelope))
        (answer,) = wait_for(lambda: list(task.grid.pull_messages(names)))
        assert answer.metadata.reply_to_message_id == names[1]


def test_heartbeats_are_answered(superlink: RealSuperLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_BEAT_S", 0.05)
    with superlink.link(superlink.admit("beats")) as link:
        before = link.last_heard
        wait_for(lambda: link.last_heard > before)


def test_a_node_that_was_shut_out_learns_it_from_its_heartbeat(
    superlink: RealSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_BEAT_S", 0.05)

    def is_lost() -> LinkError | None:
        try:
            link.receive()
        except LinkError as error:
            return error
        return None

    with superlink.link(superlink.admit("shut-out")) as link:
        with superlink.control() as control:
            control.unregister_node(link.node_id)
        assert wait_for(is_lost)


def test_a_killed_node_is_back_at_once_if_it_knows_its_number(superlink: RealSuperLink) -> None:
    key = superlink.admit("killed")
    killed = superlink.link(key).__enter__()
    killed._closing.set()  # no heartbeat and no good-bye
    killed._client.close()
    with pytest.raises(LinkError, match="last connection") as refused:
        superlink.link(key).__enter__()
    assert refused.value.status == 412
    with superlink.link(key, last_node_id=killed.node_id) as back:
        assert back.node_id == killed.node_id
        assert back.receive() is None


def test_a_node_that_connects_anew_is_known_by_the_time(
    superlink: RealSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_BEAT_S", 0.05)
    key = superlink.admit("returns")

    def connected_at() -> str | None:
        (known,) = (
            node.connected_at
            for node in control.nodes()
            if node.public_key == public_key_to_bytes(key.public_key())
        )
        return known

    with superlink.control() as control:
        assert connected_at() is None
        with superlink.link(key) as link:
            first = connected_at()
            heard = link.last_heard
            link.receive()
            wait_for(lambda: link.last_heard > heard)
            assert first is not None
            assert connected_at() == first
        assert connected_at() == first
        with superlink.link(key):
            second = connected_at()
            assert second != first
            killed = superlink.link(key, last_node_id=link.node_id)
            with killed:  # while the last connection still counts as alive
                assert connected_at() not in (first, second)


def test_a_message_is_handed_out_once_and_may_be_sent_again(superlink: RealSuperLink) -> None:
    """What is lost on its way is not sent again by itself. An answer to either counts."""
    key = superlink.admit("loses")
    with superlink.task("lossy") as task:
        with superlink.link(key) as link:
            first = ask(task, link.node_id, content())
            lost, _ = received(link)
            assert link.receive() is None
        with superlink.link(key) as link:
            assert link.receive() is None
            second = ask(task, link.node_id, content())
            assert second != first
            begin_task(run_id=task.grid.run.run_id, node_id=link.node_id)
            again, question = received(link)
            assert same(question.content, content())
            link.send(Message(content(text="late"), reply_to=lost.envelope))
            link.send(Message(content(text="in time"), reply_to=again.envelope))
            for name, text in ((first, "late"), (second, "in time")):
                (answer,) = wait_for(lambda name=name: list(task.grid.pull_messages([name])))
                assert same(answer.content, content(text=text))


@pytest.mark.parametrize(("status", "is_lost"), [(None, True), (503, True), (403, False)])
def test_a_connection_by_which_an_answer_was_lost_is_made_anew(
    superlink: RealSuperLink,
    monkeypatch: pytest.MonkeyPatch,
    status: int | None,
    is_lost: bool,
) -> None:
    """By that it is known that the answer is to be asked for again. 403: the run is over."""

    def broken(*_: object) -> None:
        raise LinkError("the gateway", why="it breaks off", fix="wait", status=status)

    with superlink.link(superlink.admit(f"answers {status}")) as link:
        with superlink.task("broken") as task:
            ask(task, link.node_id, content())
            delivery, _ = received(link)
            monkeypatch.setattr(link, "_push", broken)
            with pytest.raises(LinkError, match="the gateway"):
                link.send(Message(content(), reply_to=delivery.envelope))
        if is_lost:
            with pytest.raises(LinkError, match="the gateway"):
                link.receive()
        else:
            assert link.receive() is None


def test_a_stopped_run_interrupts_its_task(
    superlink: RealSuperLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "_BEAT_S", 0.05)
    task, deadline = superlink.task("stopped"), time.monotonic() + 60
    with pytest.raises(KeyboardInterrupt), task as running:  # noqa: PT012 - it comes when it comes
        with superlink.control() as control:
            control.stop_run(running.grid.run.run_id)
        while time.monotonic() < deadline:
            time.sleep(0.05)
    with superlink.control() as control:
        assert control.runs()[running.grid.run.run_id].status == "finished:stopped"


def test_a_task_that_fails_ends_its_run_as_failed_and_tells_no_text(
    superlink: RealSuperLink,
) -> None:
    with pytest.raises(RuntimeError), superlink.task("fails") as task:
        raise RuntimeError("text that stays here")
    with superlink.control() as control:
        run = control.runs()[task.grid.run.run_id]
    assert run.is_over
    assert run.status == "finished:failed"
    assert "text that stays here" not in run.details


def test_an_answer_to_a_run_that_is_over_is_not_taken(superlink: RealSuperLink) -> None:
    key = superlink.admit("late")
    with superlink.link(key) as link:
        with superlink.task("over") as task:
            ask(task, link.node_id, content())
            delivery, _ = received(link)
        with pytest.raises(LinkError):
            link.send(Message(content(), reply_to=delivery.envelope))
        assert link.receive() is None


def test_a_run_that_nobody_started_cannot_be_stopped(superlink: RealSuperLink) -> None:
    with superlink.control() as control, pytest.raises(LinkError) as unknown:
        control.stop_run(12345)
    assert unknown.value.status is not None


def test_no_task_is_handed_out_for_a_wrong_secret(superlink: RealSuperLink) -> None:
    with superlink.control() as control:
        number = control.start_run("guarded")
    thief, owner = superlink.queue(b"0" * 32), superlink.queue()
    with pytest.raises(LinkError) as refused:
        thief.acquire()
    assert refused.value.status == 401
    assert wait_for(owner.acquire)
    thief.close()
    owner.close()
    with superlink.control() as control:
        control.stop_run(number)


def test_a_node_that_is_not_registered_is_turned_away(superlink: RealSuperLink) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(LinkError) as refused:
        superlink.link(stranger).__enter__()
    assert refused.value.status == 412  # the gateway, in front of it, says 401


def test_a_server_of_another_authority_is_not_believed(superlink: RealSuperLink) -> None:
    other = make_ca("somebody else").certificate
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(LinkError, match="not one of the coordinator"):
        FleetLink(superlink.address, other, key, largest_message=MEBIBYTE).__enter__()
    queue = TaskQueue(superlink.address, other, b"0" * 32)
    with pytest.raises(LinkError, match="not one of the coordinator"):
        queue.acquire()
    queue.close()
    with (
        Control(superlink.address, other) as control,
        pytest.raises(LinkError, match="not one of the coordinator"),
    ):
        control.nodes()
