"""The coordinator's end: what is said is for one enrolled site, and only its own answer counts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from tacit_common.enrolment import SiteCard
from tacit_common.envelope import RequestEnvelope, require_request, seal_answer
from tacit_common.errors import IdentityError, RefusalCode, WireError
from tacit_common.flower.control import NodeState, node_public_key
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Genesis, SignedHead, head_of, next_entry
from tacit_common.messages import Refusal, Reply, TrainReply
from tacit_common.wire import content_sha256, decode_envelope, encode, with_envelope, with_head
from tacit_server.deployment.channel import SignedChannel
from tacit_server.deployment.roster import Roster

COORDINATOR = Identity.create()
REQUEST = RecordDict({"tacit": ConfigRecord({"kind": "train", "body": "{}"})})
UPDATE = TrainReply(np.arange(3, dtype=np.float32))


class Hub:
    """A coordinator with two enrolled sites, as nodes 1 and 2; node 3 is a stranger."""

    def __init__(self, path: Path, make_card: Callable[..., SiteCard]) -> None:
        self.sites = {1: Identity.create(), 2: Identity.create()}
        self.cards = {
            node: make_card(f"clinic-{node}", identity=identity)
            for node, identity in self.sites.items()
        }
        self.keys = {node: node_public_key(card.node_key) for node, card in self.cards.items()}
        self.keys[3] = node_public_key(make_card("stranger").node_key)
        self.roster = Roster(path / "roster.json")
        for card in self.cards.values():
            self.roster.add(card)
        self.looked = 0
        self.connected_at: dict[int, str] = {}
        self.channel = self.anew()

    def nodes(self) -> list[NodeState]:
        self.looked += 1
        return [
            NodeState(node, key, True, None, self.connected_at.get(node))
            for node, key in self.keys.items()
        ]

    def anew(self) -> SignedChannel:
        """The channel after the coordinator was started again."""
        return SignedChannel(COORDINATOR, self.roster, self.nodes)

    def sent(self, node: int = 1, *, again: bool = False) -> RequestEnvelope:
        return decode_envelope(self.channel.seal(node, REQUEST, again=again), RequestEnvelope)


@pytest.fixture
def hub(tmp_path: Path, make_card: Callable[..., SiteCard]) -> Hub:
    """A coordinator."""
    return Hub(tmp_path, make_card)


def head(identity: Identity, site: str) -> SignedHead:
    genesis = Genesis(site=site, public_key=identity.public_key)
    row = next_entry(None, genesis, at="2026-01-01", site=site, identity=identity)
    return head_of(row, genesis)


def answered(
    by: Identity, to: RequestEnvelope, reply: Reply = UPDATE, *, shown: SignedHead | None = None
) -> RecordDict:
    content = with_head(encode(reply), shown)
    return with_envelope(content, seal_answer(by, content_sha256(content), to))


# --- nodes -----------------------------------------------------------------------------------


def test_a_node_is_the_site_with_whose_key_it_is_registered(hub: Hub) -> None:
    assert [hub.channel.site_of(node) for node in (1, 2, 3, 4)] == [
        "clinic-1",
        "clinic-2",
        None,
        None,
    ]


def test_a_stranger_s_node_is_told_nothing(hub: Hub) -> None:
    for node in (3, 4):
        with pytest.raises(IdentityError, match="not registered with the key of an enrolled site"):
            hub.channel.seal(node, REQUEST, again=False)


def test_a_node_has_connected_when_the_superlink_says(hub: Hub) -> None:
    assert hub.channel.connected() == {}
    hub.connected_at = {1: "then", 3: "now"}
    assert hub.channel.connected() == {1: "then", 3: "now"}


def test_known_nodes_are_not_asked_for_again(hub: Hub) -> None:
    for _ in range(3):
        hub.channel.site_of(1)
        hub.sent(2)
    assert hub.looked == 1


def test_a_site_that_is_enrolled_in_a_run_is_known_when_its_node_appears(
    hub: Hub, make_card: Callable[..., SiteCard]
) -> None:
    late = make_card("late")
    hub.channel.site_of(1)
    hub.roster.add(late)
    hub.keys[5] = node_public_key(late.node_key)
    assert hub.channel.site_of(5) == "late"


def test_a_site_that_is_removed_in_a_run_is_told_nothing_more_and_not_heard(hub: Hub) -> None:
    request = hub.sent(1)
    hub.roster.remove("clinic-1")
    with pytest.raises(IdentityError):
        hub.channel.unseal(1, answered(hub.sites[1], request))
    with pytest.raises(IdentityError):
        hub.channel.seal(1, REQUEST, again=False)
    assert hub.channel.site_of(2) == "clinic-2"


# --- what is said ----------------------------------------------------------------------------


def test_a_request_is_sealed_for_the_one_site_behind_the_node(hub: Hub) -> None:
    sent = hub.channel.seal(1, REQUEST, again=False)
    envelope, digest = decode_envelope(sent, RequestEnvelope), content_sha256(sent)
    require_request(
        envelope, digest, coordinator=COORDINATOR.public_key, site=hub.sites[1].public_key
    )
    with pytest.raises(IdentityError, match="another site"):
        require_request(
            envelope, digest, coordinator=COORDINATOR.public_key, site=hub.sites[2].public_key
        )


def test_a_coordinator_that_was_started_again_begins_a_new_session(hub: Hub) -> None:
    before = hub.sent()
    hub.channel = hub.anew()
    assert hub.sent().session != before.session


# --- what is heard ---------------------------------------------------------------------------


def test_the_own_answer_of_the_asked_site_is_believed(hub: Hub) -> None:
    answer = answered(hub.sites[1], hub.sent(1), shown=head(hub.sites[1], "clinic-1"))
    assert hub.channel.unseal(1, answer) is answer


def test_a_refusal_without_a_ledger_is_believed_if_it_is_signed(hub: Hub) -> None:
    refusal = Refusal(code=RefusalCode.LEDGER)
    answer = answered(hub.sites[1], hub.sent(1), refusal)
    assert hub.channel.unseal(1, answer) is answer


def test_an_answer_of_another_enrolled_site_is_not_believed(hub: Hub) -> None:
    with pytest.raises(IdentityError, match="another key than the asked site's"):
        hub.channel.unseal(1, answered(hub.sites[2], hub.sent(1)))


def test_an_answer_to_another_site_s_request_is_not_believed(hub: Hub) -> None:
    hub.sent(1)
    with pytest.raises(IdentityError):
        hub.channel.unseal(1, answered(hub.sites[1], hub.sent(2)))


def test_an_answer_of_the_last_round_is_not_believed_in_this_one(hub: Hub) -> None:
    old = answered(hub.sites[1], hub.sent(1))
    hub.sent(1)
    with pytest.raises(IdentityError, match="answers another request"):
        hub.channel.unseal(1, old)


def test_an_answer_to_any_message_of_one_question_is_believed(hub: Hub) -> None:
    askings = [hub.sent(1), hub.sent(1, again=True), hub.sent(1, again=True)]
    assert [one.sequence for one in askings] == [1, 2, 3]  # a site takes no number twice
    for asking in askings:
        answer = answered(hub.sites[1], asking)
        assert hub.channel.unseal(1, answer) is answer
    hub.sent(1)
    for asking in askings:
        with pytest.raises(IdentityError, match="answers another request"):
            hub.channel.unseal(1, answered(hub.sites[1], asking))


def test_an_answer_of_an_earlier_session_is_not_believed(hub: Hub) -> None:
    old = answered(hub.sites[1], hub.sent(1))
    hub.channel = hub.anew()
    with pytest.raises(IdentityError, match="not registered"):
        hub.channel.unseal(1, old)  # nothing was asked
    hub.sent(1)
    with pytest.raises(IdentityError, match="answers another request"):
        hub.channel.unseal(1, old)


def test_an_answer_that_nobody_signed_is_not_understood(hub: Hub) -> None:
    hub.sent(1)
    for reply in (UPDATE, Refusal(code=RefusalCode.POLICY)):
        with pytest.raises(WireError, match="nobody signed it"):
            hub.channel.unseal(1, encode(reply))


@pytest.mark.parametrize("code", [RefusalCode.SIGNATURE, RefusalCode.REPLAY, RefusalCode.MESSAGE])
def test_a_site_that_does_not_trust_a_request_may_say_so_unsigned(
    hub: Hub, code: RefusalCode
) -> None:
    """It signs nothing for strangers; so the coordinator's operator learns why it is silent."""
    hub.sent(1)
    refusal = encode(Refusal(code=code))
    assert hub.channel.unseal(1, refusal) is refusal
    shown = with_head(refusal, head(hub.sites[1], "clinic-1"))
    with pytest.raises(WireError, match="nobody signed it"):
        hub.channel.unseal(1, shown)
    with pytest.raises(IdentityError):
        hub.channel.unseal(3, refusal)


def test_an_answer_whose_content_was_exchanged_is_not_believed(hub: Hub) -> None:
    answer = answered(hub.sites[1], hub.sent(1))
    exchanged = RecordDict(
        {**encode(Refusal(code=RefusalCode.POLICY)), **{"envelope": answer["envelope"]}}
    )
    with pytest.raises(IdentityError, match="not what was signed"):
        hub.channel.unseal(1, exchanged)


def test_a_ledger_of_another_key_than_that_on_the_card_is_not_believed(hub: Hub) -> None:
    """A site that began a new ledger under a new key would have spent nothing."""
    fresh = head(Identity.create(), "clinic-1")
    with pytest.raises(IdentityError, match="another key than that on the card of 'clinic-1'"):
        hub.channel.unseal(1, answered(hub.sites[1], hub.sent(1), shown=fresh))
