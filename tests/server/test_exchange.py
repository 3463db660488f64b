"""The exchange over Flower's grid: one answer a node, in order, whatever comes back and when."""

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from tests.server.exchange_case import STUDY, Answering, LateGrid, Roster, described, failing

from tacit_common.errors import IdentityError, RefusalCode, WireError
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import DescribeRequest, Refusal, Reply, TrainReply
from tacit_common.wire import decode_head, decode_request, encode, with_head
from tacit_server.app import GridExchange
from tacit_server.exchange import Answer, Failure

pytestmark = pytest.mark.usefixtures("flower_task")


@pytest.fixture
def saying(heads_of: Callable[..., list[SignedHead]]) -> Callable[..., Answering]:
    """`saying(reply, site=…, head=…)`: a node that gives this reply and shows this head."""

    def make(reply: Reply, *, site: str | None = None, head: SignedHead | None = None) -> Answering:
        name = site or getattr(reply, "site", "site-2")
        shown = head or heads_of(name, 1)[0]
        return lambda message: Message(with_head(encode(reply), shown), reply_to=message)

    return make


def ask(grid: LateGrid, timeout_s: float = 60.0) -> Iterator[Answer]:
    exchange = GridExchange(grid)
    return exchange.ask(exchange.node_ids(), DescribeRequest(STUDY), timeout_s)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes only where the exchange sleeps."""
    slept: list[float] = []
    monkeypatch.setattr("tacit_server.app.time.sleep", slept.append)
    monkeypatch.setattr("tacit_server.app.time.monotonic", lambda: sum(slept))
    return slept


def test_nodes_are_counted_in_ascending_order() -> None:
    grid = LateGrid({7: failing, 3: failing, 5: failing}, [])
    assert GridExchange(grid).node_ids() == [3, 5, 7]


@pytest.mark.parametrize(
    "schedule",
    [
        [[2], [3], [4]],
        [[4], [3], [2]],
        [[3], [], [4, 2]],
        [[4, 3, 2]],
        [[], [], [3, 4], [], [2]],
    ],
    ids=str,
)
def test_answers_come_in_the_order_of_the_nodes_whenever_they_arrive(
    schedule: list[list[int]], saying: Callable[..., Answering]
) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3, 4)}, schedule)
    assert list(ask(grid)) == [Answer(node, described(node)) for node in (2, 3, 4)]


def test_an_answer_is_handed_over_as_soon_as_its_turn_has_come(
    saying: Callable[..., Answering],
) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3)}, [[2], [3]])
    answers = ask(grid)
    assert next(answers).node_id == 2
    assert len(grid.pulls) == 1
    assert next(answers).node_id == 3


def test_every_node_is_asked_the_same_question(saying: Callable[..., Answering]) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3)}, [[2, 3]])
    list(ask(grid, timeout_s=9.0))
    for message in grid.pushed.values():
        assert decode_request(message.content) == DescribeRequest(STUDY)
        assert message.metadata.message_type == "query.describe"
        assert message.metadata.ttl == 9.0


def test_a_node_that_stays_silent_is_given_up_at_the_deadline_and_not_before(
    no_waiting: list[float], saying: Callable[..., Answering]
) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3, 4)}, [[4], [2]])
    answers = list(ask(grid, timeout_s=3.0))
    assert answers == [
        Answer(2, described(2)),
        Answer(3, Failure.NO_ANSWER),
        Answer(4, described(4)),
    ]
    assert 3.0 <= sum(no_waiting) < 3.5


def test_nothing_is_pulled_for_a_node_that_has_answered(saying: Callable[..., Answering]) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3)}, [[3], [], [2]])
    list(ask(grid))
    assert grid.pulls[0] == {"message to 2", "message to 3"}
    assert grid.pulls[-1] == {"message to 2"}


def test_a_node_that_breaks_is_matched_by_its_message_and_not_by_its_sender(
    saying: Callable[..., Answering],
) -> None:
    grid = LateGrid({2: saying(described(2)), 3: failing, 4: saying(described(4))}, [[3, 2, 4]])
    assert list(ask(grid)) == [
        Answer(2, described(2)),
        Answer(3, Failure.NODE_ERROR),
        Answer(4, described(4)),
    ]


MALFORMED = {
    "empty": RecordDict(),
    "another kind": RecordDict({"tacit": ConfigRecord({"kind": "exec", "body": "{}"})}),
    "a request": encode(DescribeRequest(STUDY)),
    "a wrong array": RecordDict(
        {
            "tacit": ConfigRecord({"kind": "update", "body": '{"train_loss":null}'}),
            "arrays": ArrayRecord({"update": Array("<f4", (5,), "tacit.raw", b"four")}),
        }
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_reply_is_a_failure_of_that_node_alone(
    name: str, saying: Callable[..., Answering]
) -> None:
    def malformed(message: Message) -> Message:
        return Message(MALFORMED[name], reply_to=message)

    grid = LateGrid({2: malformed, 3: saying(described(3))}, [[2, 3]])
    assert list(ask(grid)) == [Answer(2, Failure.UNUSABLE_REPLY), Answer(3, described(3))]


def test_a_refusal_is_an_answer(saying: Callable[..., Answering]) -> None:
    refusal = Refusal(code=RefusalCode.BUDGET)
    grid = LateGrid({2: saying(refusal)}, [[2]])
    assert list(ask(grid)) == [Answer(2, refusal)]


def test_a_reply_that_nobody_asked_for_or_that_comes_twice_counts_once(
    saying: Callable[..., Answering],
) -> None:
    def stray(message: Message) -> Message:
        reply = Message(encode(described(99)), reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = "another message"
        return reply

    grid = LateGrid({2: saying(described(2)), 3: stray, 4: saying(described(4))}, [[3, 2, 2], [4]])
    assert list(ask(grid, timeout_s=2.0)) == [
        Answer(2, described(2)),
        Answer(3, Failure.NO_ANSWER),
        Answer(4, described(4)),
    ]


def test_no_nodes_give_no_answers() -> None:
    assert list(ask(LateGrid({}, []))) == []


def test_an_update_of_a_slow_node_is_whole(
    no_waiting: list[float], saying: Callable[..., Answering]
) -> None:
    update = TrainReply(np.arange(1000, dtype=np.float32), 0.5)
    grid = LateGrid({2: saying(update)}, [[]] * 5 + [[2]])
    (answer,) = ask(grid)
    assert isinstance(answer.reply, TrainReply)
    assert np.array_equal(answer.reply.update, update.update)
    assert answer.reply.train_loss == 0.5
    assert len(no_waiting) == 5


def test_the_exchange_polls_often_enough_to_cost_a_round_little(
    no_waiting: list[float], saying: Callable[..., Answering]
) -> None:
    grid = LateGrid({2: saying(described(2))}, [[], [2]])
    list(ask(grid))
    assert 0 < no_waiting[0] <= 0.5
    assert time.sleep == no_waiting.append


# --- ledger heads -------------------------------------------------------------------------


def rounds_of(grid: LateGrid, schedule: list[list[int]], exchange: GridExchange) -> list[Answer]:
    grid._schedule = schedule
    return list(exchange.ask(exchange.node_ids(), DescribeRequest(STUDY), 1.0))


def test_an_answer_without_a_signed_head_does_not_count_but_a_refusal_may_have_none() -> None:
    def bare(reply: Reply) -> Answering:
        return lambda message: Message(encode(reply), reply_to=message)

    refusal = Refusal(code=RefusalCode.LEDGER)
    grid = LateGrid({2: bare(described(2)), 3: bare(refusal)}, [[2, 3]])
    assert list(ask(grid)) == [Answer(2, Failure.UNTRUSTED_LEDGER), Answer(3, refusal)]


def test_a_site_gets_its_own_newest_head_back_and_no_other_s(
    saying: Callable[..., Answering], heads_of: Callable[..., list[SignedHead]]
) -> None:
    heads = {node: heads_of(f"site-{node}", 4)[node] for node in (2, 3)}
    grid = LateGrid({n: saying(described(n), head=heads[n]) for n in (2, 3)}, [])
    exchange = GridExchange(grid)
    rounds_of(grid, [[2, 3]], exchange)
    assert all(decode_head(m.content) is None for m in grid.pushed.values())
    rounds_of(grid, [[3, 2]], exchange)
    assert {n: decode_head(m.content) for n, m in grid.pushed.items()} == heads


@pytest.mark.parametrize("attack", ["rolled back", "forked", "another site's", "forged"])
def test_an_answer_from_a_ledger_that_does_not_follow_is_not_used(
    attack: str, saying: Callable[..., Answering], heads_of: Callable[..., list[SignedHead]]
) -> None:
    good = heads_of("site-2", 3)
    bad = {
        "rolled back": good[1],
        "forked": heads_of("site-2", 3, fork="other")[2],
        "another site's": heads_of("site-9", 3)[2],
        "forged": good[2].model_copy(update={"seq": 7}),
    }[attack]
    shown = iter([good[2], bad, good[2]])

    def answer(message: Message) -> Message | None:
        return saying(described(2), head=next(shown))(message)

    grid = LateGrid({2: answer}, [])
    exchange = GridExchange(grid)
    assert rounds_of(grid, [[2]], exchange) == [Answer(2, described(2))]
    assert rounds_of(grid, [[2]], exchange) == [Answer(2, Failure.UNTRUSTED_LEDGER)]
    assert rounds_of(grid, [[2]], exchange) == [Answer(2, described(2))]  # and nothing sticks


# --- nodes that are strangers ----------------------------------------------------------------


def test_a_node_that_is_in_no_roster_is_not_spoken_to(saying: Callable[..., Answering]) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3)}, [[2]])
    exchange = GridExchange(grid, Roster({2: "site-2"}))
    assert exchange.node_ids() == [2]
    assert list(exchange.ask([2], DescribeRequest(STUDY), 1.0)) == [Answer(2, described(2))]
    assert set(grid.pushed) == {2}


def test_a_site_that_is_shut_out_in_a_run_is_not_asked_and_the_others_are(
    saying: Callable[..., Answering],
) -> None:
    grid = LateGrid({node: saying(described(node)) for node in (2, 3, 4)}, [[2, 4]])
    roster = Roster({node: f"site-{node}" for node in (2, 3, 4)})
    exchange = GridExchange(grid, roster)
    nodes = exchange.node_ids()
    del roster.names[3]
    assert list(exchange.ask(nodes, DescribeRequest(STUDY), 1.0)) == [
        Answer(2, described(2)),
        Answer(3, Failure.NOT_ENROLLED),
        Answer(4, described(4)),
    ]
    assert set(grid.pushed) == {2, 4}


def test_a_site_that_is_shut_out_while_it_works_is_not_waited_for(
    saying: Callable[..., Answering], no_waiting: list[float]
) -> None:
    roster = Roster({2: "site-2", 3: "site-3"})

    class Meanwhile(LateGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            if len(self.pulls) == 2:
                del roster.names[2]
            return super().pull_messages(message_ids)

    grid = Meanwhile({node: saying(described(node)) for node in (2, 3)}, [[], [], [], [3]])
    answers = GridExchange(grid, roster).ask([2, 3], DescribeRequest(STUDY), 3600.0)
    assert list(answers) == [Answer(2, Failure.NOT_ENROLLED), Answer(3, described(3))]
    assert set(grid.pushed) == {2, 3}
    assert sum(no_waiting) < 5.0


def test_nodes_that_flower_does_not_know_any_more_fail_at_once_each_by_itself(
    saying: Callable[..., Answering], no_waiting: list[float]
) -> None:
    """Flower names no message for them, so two of them have one name."""

    class Forgetful(LateGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            names = list(super().push_messages(messages))
            return [name if name.endswith("3") else "" for name in names]

    grid = Forgetful({node: saying(described(node)) for node in (2, 3, 4)}, [[3]])
    assert list(ask(grid)) == [
        Answer(2, Failure.NODE_ERROR),
        Answer(3, described(3)),
        Answer(4, Failure.NODE_ERROR),
    ]
    assert no_waiting == []


def test_a_registered_site_that_shows_another_site_s_ledger_is_not_believed(
    saying: Callable[..., Answering], heads_of: Callable[..., list[SignedHead]]
) -> None:
    other = heads_of("site-9", 1)[0]
    grid = LateGrid({2: saying(described(2), head=other)}, [[2]])
    exchange = GridExchange(grid, Roster({2: "site-2"}))
    (answer,) = exchange.ask([2], DescribeRequest(STUDY), 1.0)
    assert answer.reply is Failure.UNTRUSTED_LEDGER
    assert exchange.heads.heads == {}


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (IdentityError("an answer", why="forged", fix=""), Failure.UNTRUSTED_SENDER),
        (WireError("an answer", why="garbage", fix=""), Failure.UNUSABLE_REPLY),
    ],
)
def test_an_answer_that_cannot_be_trusted_is_a_failure_of_that_node_alone(
    saying: Callable[..., Answering], error: Exception, failure: Failure
) -> None:
    class Doubting(Roster):
        def unseal(self, node: int, answer: RecordDict) -> RecordDict:
            if node == 2:
                raise error
            return answer

    grid = LateGrid({node: saying(described(node)) for node in (2, 3)}, [[2, 3]])
    exchange = GridExchange(grid, Doubting({2: "site-2", 3: "site-3"}))
    answers = list(exchange.ask([2, 3], DescribeRequest(STUDY), 1.0))
    assert answers == [Answer(2, failure), Answer(3, described(3))]
    assert set(exchange.heads.heads) == {"site-3"}
