"""A Flower grid and a channel of tests: replies come when a test says."""

from collections.abc import Callable, Iterable

from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from tacit_common.errors import IdentityError
from tacit_common.messages import SiteDescription
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY

Answering = Callable[[Message], Message | None]

STUDY = parse_study(EXAMPLE_STUDY).travelling()


class LateGrid(Grid):
    """A grid whose replies arrive in the batches that `schedule` says, one batch a pull.

    `schedule` lists nodes by pull; a node that is never listed never answers.
    """

    def __init__(
        self, answers: dict[int, Answering], schedule: list[list[int]], *, shuffled: bool = False
    ) -> None:
        self._answers = answers
        self._schedule = schedule
        self._shuffled = shuffled
        self.pushed: dict[int, Message] = {}
        self.pulls: list[set[str]] = []

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self._answers)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            identifier = f"message to {message.metadata.dst_node_id}"
            message.metadata.__dict__["_message_id"] = identifier
            self.pushed[message.metadata.dst_node_id] = message
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls.append(set(message_ids))
        nodes = self._schedule.pop(0) if self._schedule else []
        replies = [self._answers[node](self.pushed[node]) for node in nodes]
        return [reply for reply in replies if reply is not None]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise NotImplementedError


def described(node: int) -> SiteDescription:
    return SiteDescription(site=f"site-{node}", declared_units=node, tacit_version="0")


def failing(message: Message) -> Message:
    """What Flower sends for a node that broke: it comes from the server's own node, 1."""
    reply = Message(Error(code=1, reason="the ClientApp raised"), reply_to=message)
    reply.metadata.__dict__["_src_node_id"] = 1
    return reply


class Roster:
    """A channel that knows these nodes, and says and believes everything unsigned."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names

    def site_of(self, node: int) -> str | None:
        return self.names.get(node)

    def connected(self) -> dict[int, str]:
        return dict.fromkeys(self.names, "once")

    def seal(self, node: int, request: RecordDict, *, again: bool) -> RecordDict:
        if node not in self.names:
            raise IdentityError("a node", why="it is a stranger", fix="enroll it")
        return request

    def unseal(self, node: int, answer: RecordDict) -> RecordDict:
        return answer
