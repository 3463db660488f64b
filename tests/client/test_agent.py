"""The site's one process: it stays with what comes, and its policy is that of this moment."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import pytest
from flwr.app import Message, RecordDict

from tacit_client.deployment import agent as module
from tacit_client.deployment.agent import SiteAgent
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Prepared
from tacit_client.policy import SitePolicy
from tacit_client.policy.file import write_policy
from tacit_common.certificates import make_ca
from tacit_common.enrolment import Invitation
from tacit_common.envelope import RequestSeal
from tacit_common.errors import LinkError, RefusalCode, UsageError
from tacit_common.files import locked_folder
from tacit_common.flower.fleet import Delivery
from tacit_common.identity import Identity
from tacit_common.messages import (
    DescribeRequest,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    message_type,
)
from tacit_common.study import Study
from tacit_common.wire import content_sha256, decode_reply, encode, with_envelope

pytestmark = pytest.mark.usefixtures("flower_task")

MakeStudy = Callable[..., Study]
Step = Callable[[], Delivery | None]

COORDINATOR = Identity.create()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The site's own log holds what happened; here it would only fill the screen."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture
def invitation() -> Invitation:
    """Of a coordinator whose key this test has."""
    return Invitation(
        coordinator="hub",
        address="127.0.0.1:9",
        public_key=COORDINATOR.public_key,
        ca_certificate=make_ca("hub").certificate.decode(),
    )


class Link:
    """A connection on which happens what `script` says, one step a look; then the agent ends."""

    script: list[Step]
    sent: list[Message]
    known_as: list[int | None]
    undeliverable: list[LinkError]

    def __init__(self, *_: object, last_node_id: int | None, **__: object) -> None:
        self.known_as.append(last_node_id)
        self.node_id = 40 + len(self.known_as)
        self.last_heard = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def receive(self) -> Delivery | None:
        if not self.script:
            raise SystemExit(0)
        return self.script.pop(0)()

    def send(self, reply: Message) -> int:
        if self.undeliverable:
            raise self.undeliverable.pop()
        self.sent.append(reply)
        return 1


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> type[Link]:
    """The connection that the agent makes."""
    fresh = {"script": [], "sent": [], "known_as": [], "undeliverable": []}
    made = type("Link", (Link,), fresh)
    monkeypatch.setattr(module, "FleetLink", made)
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    return made


class Running:
    """One life of an agent, whose script is written before."""

    def __init__(self, folder: SiteFolder, link: type[Link]) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._link = link
        self._seal = RequestSeal(COORDINATOR)

    def then(self, *steps: Step) -> None:
        self._link.script.extend(steps)

    def asking(self, request: Request) -> Step:
        """A step in which this request arrives."""

        def arrives() -> Delivery:
            content = encode(request)
            key = self.folder.read_identity().public_key
            envelope = self._seal.seal(content_sha256(content), recipient=key)
            records = with_envelope(content, envelope)
            message = Message(records, dst_node_id=2, message_type=message_type(request))
            return Delivery(message, message, 1)

        return arrives

    def run(self) -> list[Reply]:
        """Everything that it answers until its script ends."""
        with pytest.raises(SystemExit):
            SiteAgent(self.folder, notify=self.said.append).run()
        return [decode_reply(message.content) for message in self._link.sent]


@pytest.fixture
def agent(new_site: Callable[..., Prepared], link: type[Link]) -> Running:
    """The agent of a new site."""
    return Running(new_site().folder, link)


def doing(work: Callable[[], object]) -> Step:
    """A step in which something happens at the site and nothing arrives."""

    def step() -> None:
        work()

    return step


def lost(status: int | None = None) -> LinkError:
    return LinkError("127.0.0.1:9 cannot be reached", why="it is away", fix="wait", status=status)


def breaks() -> Delivery | None:
    raise lost()


def stricter(policy: SitePolicy) -> SitePolicy:
    """One that refuses the tiny study for its clip norm alone."""
    limits = policy.study.model_copy(update={"largest_l2_clip_norm": 0.1})
    return policy.model_copy(update={"study": limits})


def test_a_policy_that_is_changed_while_the_agent_works_counts_for_the_next_request(
    agent: Running, make_study: MakeStudy
) -> None:
    path = agent.folder.policy_toml
    before, request = agent.folder.read_policy(), agent.asking(DescribeRequest(make_study()))
    agent.then(
        request,
        doing(lambda: write_policy(path, stricter(before))),
        request,
        doing(lambda: write_policy(path, before)),
        request,
    )
    first, second, third = agent.run()
    assert isinstance(first, SiteDescription)
    assert second == Refusal(code=RefusalCode.POLICY)
    assert isinstance(third, SiteDescription)
    assert agent.said.count("policy.toml has changed, and is in force") == 2


@pytest.mark.parametrize("damage", ["not TOML", "a wrong field", "empty", "removed"])
def test_under_a_policy_that_cannot_be_read_everything_is_refused_and_not_by_the_old_one(
    agent: Running, make_study: MakeStudy, damage: str
) -> None:
    path = agent.folder.policy_toml
    sound, request = path.read_text(), agent.asking(DescribeRequest(make_study()))
    broken = {
        "not TOML": "unit = ",
        "a wrong field": sound + "\n[hour]\nfrom = 3\n",
        "empty": "",
        "removed": None,
    }[damage]
    breaking = path.unlink if broken is None else lambda: path.write_text(broken)
    agent.then(
        request, doing(breaking), request, request, doing(lambda: path.write_text(sound)), request
    )
    first, second, third, fourth = agent.run()
    assert isinstance(first, SiteDescription)
    assert second == third == Refusal(code=RefusalCode.INTERNAL)
    assert isinstance(fourth, SiteDescription)


def test_a_policy_that_changes_while_the_agent_starts_is_not_missed(
    agent: Running, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SiteFolder.read_policy

    def read_and_then_changed(folder: SiteFolder) -> SitePolicy:
        policy = read(folder)
        monkeypatch.setattr(SiteFolder, "read_policy", read)
        write_policy(folder.policy_toml, stricter(policy))
        return policy

    monkeypatch.setattr(SiteFolder, "read_policy", read_and_then_changed)
    agent.then(agent.asking(DescribeRequest(make_study())))
    assert agent.run() == [Refusal(code=RefusalCode.POLICY)]


def test_garbage_does_not_end_the_agent(agent: Running, make_study: MakeStudy) -> None:
    message = Message(RecordDict(), dst_node_id=2, message_type="train")
    agent.then(
        lambda: Delivery(message, message, 1),
        lambda: Delivery(message, None, 0),
        agent.asking(DescribeRequest(make_study())),
    )
    *refused, described = agent.run()
    assert refused == [Refusal(code=RefusalCode.MESSAGE)] * 2
    assert isinstance(described, SiteDescription)


def test_a_connection_that_is_lost_is_made_again_and_said_once(
    agent: Running, link: type[Link], make_study: MakeStudy
) -> None:
    agent.then(breaks, agent.asking(DescribeRequest(make_study())))
    (described,) = agent.run()
    assert isinstance(described, SiteDescription)
    assert agent.said.count("connected") == 2
    assert sum("it is away" in line for line in agent.said) == 1


def test_the_superlink_is_told_under_which_number_it_knew_this_node(
    agent: Running, link: type[Link]
) -> None:
    agent.then(breaks)
    agent.run()
    agent.run()
    assert link.known_as == [None, 41, 42]


def test_an_answer_that_nobody_takes_any_more_does_not_end_the_connection(
    agent: Running, link: type[Link], make_study: MakeStudy
) -> None:
    """The run was stopped while the site was at work."""
    link.undeliverable.append(lost(status=404))
    request = agent.asking(DescribeRequest(make_study()))
    agent.then(request, request)
    (described,) = agent.run()
    assert isinstance(described, SiteDescription)
    assert agent.said.count("connected") == 1
    assert any("could not be delivered" in line for line in agent.said)


def test_two_agents_do_not_work_in_one_folder(agent: Running) -> None:
    with (
        locked_folder(agent.folder.path, "this site's agent"),
        pytest.raises(UsageError, match="is in use"),
    ):
        SiteAgent(agent.folder, notify=agent.said.append).run()


def test_sigterm_ends_the_agent_and_gives_its_folder_up(agent: Running, link: type[Link]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    agent.then(doing(lambda: os.kill(os.getpid(), signal.SIGTERM)), breaks)
    agent.run()
    assert len(link.script) <= 1
    assert link.known_as == [None]
    assert signal.getsignal(signal.SIGTERM) is before
    with locked_folder(agent.folder.path, "a test"):
        pass
