"""A message is handed out once: whoever connects anew after it was asked is asked again."""

from collections.abc import Callable, Iterable, Sequence

import pytest
from flwr.app import Message, RecordDict
from tests.server.exchange_case import STUDY, LateGrid, Roster, described, failing

from tacit_common.errors import LinkError
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import DescribeRequest
from tacit_common.wire import encode, with_head
from tacit_server.app import GridExchange
from tacit_server.exchange import Answer, Failure

pytestmark = pytest.mark.usefixtures("flower_task")


class Scene(LateGrid):
    """Nodes 2 and 3, what they were sent, and what happens at which second."""

    def __init__(self, heads_of: Callable[..., list[SignedHead]]) -> None:
        super().__init__({2: failing, 3: failing}, [])
        self._heads = {node: heads_of(f"site-{node}", 1)[0] for node in (2, 3)}
        self._events: list[tuple[float, Callable[[], object]]] = []
        self._replies: list[Message] = []
        self.now = 0.0
        self.sent: dict[int, list[Message]] = {2: [], 3: []}
        self.sites = Sites()
        self.exchange = GridExchange(self, self.sites)

    def at(self, second: float, event: Callable[[], object]) -> None:
        self._events.append((second, event))

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        due = [event for second, event in self._events if second <= self.now]
        self._events = [(second, event) for second, event in self._events if second > self.now]
        for event in due:
            event()

    def answers(self, node: int, asking: int = -1) -> Callable[[], None]:
        return lambda: self._reply(
            Message(
                with_head(encode(described(node)), self._heads[node]),
                reply_to=self.sent[node][asking],
            )
        )

    def fails(self, node: int, asking: int = -1) -> Callable[[], None]:
        return lambda: self._reply(failing(self.sent[node][asking]))

    def says_nothing(self, node: int, asking: int = -1) -> Callable[[], None]:
        return lambda: self._reply(Message(RecordDict(), reply_to=self.sent[node][asking]))

    def ask(self, nodes: Sequence[int] = (2, 3), timeout_s: float = 100.0) -> list[Answer]:
        return list(self.exchange.ask(nodes, DescribeRequest(STUDY), timeout_s))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = []
        for message in messages:
            sent = self.sent[message.metadata.dst_node_id]
            sent.append(message)
            names.append(f"{message.metadata.dst_node_id}, {len(sent)}")
            message.metadata.__dict__["_message_id"] = names[-1]
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        here = [one for one in self._replies if one.metadata.reply_to_message_id in wanted]
        self._replies = [one for one in self._replies if one not in here]
        return here

    def _reply(self, message: Message) -> None:
        self._replies.append(message)


class Sites(Roster):
    """A channel that sees the nodes connect."""

    def __init__(self) -> None:
        super().__init__({2: "site-2", 3: "site-3"})
        self.at = {2: 0, 3: 0}
        self.is_up = True
        self.looks = 0
        self.sealed: list[tuple[int, bool]] = []

    def connect(self, node: int) -> None:
        self.at[node] += 1

    def connected(self) -> dict[int, str]:
        self.looks += 1
        if not self.is_up:
            raise LinkError("the SuperLink", why="it is away", fix="wait")
        return {node: f"time {at}" for node, at in self.at.items()}

    def seal(self, node: int, request: RecordDict, *, again: bool) -> RecordDict:
        self.sealed.append((node, again))
        return super().seal(node, request, again=again)


@pytest.fixture
def scene(heads_of: Callable[..., list[SignedHead]], monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Time passes only where the exchange sleeps."""
    made = Scene(heads_of)
    monkeypatch.setattr("time.sleep", made.sleep)
    monkeypatch.setattr("time.monotonic", lambda: made.now)
    return made


BOTH = [Answer(2, described(2)), Answer(3, described(3))]


def test_a_node_is_asked_again_once_for_each_time_that_it_connects_anew(scene: Scene) -> None:
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(40, lambda: scene.sites.connect(2))
    scene.at(60, scene.answers(2))
    scene.at(60, scene.answers(3))
    assert scene.ask() == BOTH
    assert scene.sites.sealed == [(2, False), (3, False), (2, True), (2, True)]
    first, second, third = (message.metadata.ttl for message in scene.sent[2])
    assert first == 100.0
    assert 85.0 < second < 90.0  # what is left, a few seconds after it has connected
    assert 55.0 < third < 60.0


@pytest.mark.parametrize("asking", [0, 1, 2])
def test_an_answer_to_any_of_the_askings_counts(scene: Scene, asking: int) -> None:
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(20, lambda: scene.sites.connect(2))
    scene.at(30, scene.answers(2, asking))
    scene.at(30, scene.answers(3))
    assert scene.ask() == BOTH
    assert len(scene.sent[2]) == 3


def test_an_answer_is_not_counted_twice(scene: Scene) -> None:
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(20, scene.answers(2, 0))
    scene.at(20, scene.answers(2, 1))  # at once with the first
    scene.at(30, scene.answers(3))
    assert scene.ask() == BOTH
    scene.at(40, scene.answers(2, 1))  # and again when the next question is open
    scene.at(50, scene.fails(2))
    scene.at(50, scene.answers(3))
    assert scene.ask(timeout_s=20.0) == [Answer(2, Failure.NO_ANSWER), BOTH[1]]


def test_a_node_that_has_answered_is_not_asked_again(scene: Scene) -> None:
    scene.at(1, scene.answers(2))
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(50, scene.answers(3))
    assert scene.ask() == BOTH
    assert len(scene.sent[2]) == 1


def test_a_node_that_stays_is_asked_once_and_waited_for_until_the_deadline(scene: Scene) -> None:
    assert scene.ask() == [Answer(2, Failure.NO_ANSWER), Answer(3, Failure.NO_ANSWER)]
    assert 100.0 <= scene.now < 101.0
    assert scene.sites.sealed == [(2, False), (3, False)]
    assert 20 < scene.sites.looks < 40


def test_a_node_that_connects_for_ever_is_waited_for_until_the_deadline(scene: Scene) -> None:
    for second in range(0, 100, 5):
        scene.at(second, lambda: scene.sites.connect(2))
    scene.at(10, scene.answers(3))
    assert scene.ask() == [Answer(2, Failure.NO_ANSWER), BOTH[1]]
    assert 100.0 <= scene.now < 101.0
    assert len(scene.sent[2]) == 4  # each time is a whole message, which the server keeps


def test_nobody_is_asked_again_who_could_only_answer_too_late(scene: Scene) -> None:
    scene.at(96, lambda: scene.sites.connect(2))
    scene.ask()
    assert len(scene.sent[2]) == 1


def test_a_node_that_connected_before_it_was_asked_is_asked_once(scene: Scene) -> None:
    for _ in range(2):
        scene.sites.connect(2)
        scene.at(scene.now + 10, scene.answers(2))
        scene.at(scene.now + 10, scene.answers(3))
        assert scene.ask() == BOTH
    assert len(scene.sent[2]) == 2


def test_a_node_that_connects_just_when_it_is_asked_is_asked_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it had connected before the message was there cannot be known."""
    push = scene.push_messages

    def meanwhile(messages: Iterable[Message]) -> Iterable[str]:
        if not scene.sent[2]:
            scene.sites.connect(2)
        return push(messages)

    monkeypatch.setattr(scene, "push_messages", meanwhile)
    scene.at(10, scene.answers(2, 1))
    scene.at(10, scene.answers(3))
    assert scene.ask() == BOTH
    assert len(scene.sent[2]) == 2


def test_a_superlink_that_is_away_is_looked_at_again(scene: Scene) -> None:
    def back() -> None:
        scene.sites.is_up = True

    scene.ask(timeout_s=1.0)
    scene.sites.is_up = False
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(50, back)
    scene.at(60, scene.answers(2))
    scene.at(60, scene.answers(3))
    assert scene.ask() == BOTH
    assert (len(scene.sent[2]), len(scene.sent[3])) == (3, 2)


@pytest.mark.parametrize("order", [("shut out", "connects"), ("connects", "shut out")])
def test_a_site_that_was_shut_out_is_not_asked_again(scene: Scene, order: Sequence[str]) -> None:
    events = {
        "shut out": lambda: scene.sites.names.pop(2),
        "connects": lambda: scene.sites.connect(2),
    }
    for event in order:
        scene.at(10, events[event])
    scene.at(50, scene.answers(3))
    assert scene.ask() == [Answer(2, Failure.NOT_ENROLLED), BOTH[1]]
    assert len(scene.sent[2]) == 1


def test_what_a_node_answers_counts_though_flower_takes_no_second_message_for_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = scene.push_messages

    def forgetful(messages: Iterable[Message]) -> Iterable[str]:
        named = push(messages)
        return named if len(scene.sent[2]) == 1 else [""]

    monkeypatch.setattr(scene, "push_messages", forgetful)
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(20, scene.answers(2, 0))
    scene.at(20, scene.answers(3))
    assert scene.ask() == BOTH


# --- nodes that Flower reports as away -------------------------------------------------------


def test_a_node_that_is_away_for_a_moment_is_asked_again(scene: Scene) -> None:
    """It is reported as failed while it connects anew."""
    scene.at(10, scene.fails(2))
    scene.at(35, lambda: scene.sites.connect(2))
    scene.at(60, scene.answers(2))
    scene.at(60, scene.answers(3))
    assert scene.ask() == BOTH
    assert len(scene.sent[2]) == 2


def test_a_node_that_does_not_return_is_waited_for_once(scene: Scene) -> None:
    for question in range(3):
        begun = scene.now
        scene.at(begun + 1, scene.fails(2))
        scene.at(begun + 2, scene.answers(3))
        assert scene.ask() == [Answer(2, Failure.NODE_ERROR), BOTH[1]]
        assert scene.now - begun < (35.0 if question == 0 else 5.0)


def test_a_node_that_returned_is_waited_for_once_more(scene: Scene) -> None:
    scene.at(1, scene.fails(2))
    assert scene.ask([2]) == [Answer(2, Failure.NODE_ERROR)]
    scene.sites.connect(2)
    scene.at(scene.now + 1, scene.fails(2))
    scene.at(scene.now + 20, lambda: scene.sites.connect(2))
    scene.at(scene.now + 30, scene.answers(2))
    assert scene.ask([2]) == BOTH[:1]


def test_a_node_that_answers_after_all_is_waited_for_once_more(scene: Scene) -> None:
    scene.at(1, scene.fails(2))
    assert scene.ask([2]) == [Answer(2, Failure.NODE_ERROR)]
    scene.at(scene.now + 10, scene.answers(2))
    assert scene.ask([2]) == BOTH[:1]
    begun = scene.now
    scene.at(begun + 1, scene.fails(2))
    assert scene.ask([2]) == [Answer(2, Failure.NODE_ERROR)]
    assert scene.now - begun > 30.0


@pytest.mark.parametrize("useless", ["failed", "not understood"])
def test_a_useless_reply_counts_for_nothing_when_another_may_come(
    scene: Scene, useless: str
) -> None:
    reply = {"failed": scene.fails, "not understood": scene.says_nothing}[useless]
    scene.at(10, lambda: scene.sites.connect(2))
    scene.at(20, reply(2, 0))
    scene.at(80, scene.answers(2, 1))
    scene.at(80, scene.answers(3))
    assert scene.ask() == BOTH
