"""The coordinator's end of signed messages: which site a node is, and what it may say."""

from collections.abc import Callable, Sequence

from flwr.app import RecordDict

from tacit_common.enrolment import SiteCard
from tacit_common.envelope import AnswerEnvelope, RequestEnvelope, RequestSeal, require_answer
from tacit_common.errors import IdentityError, RefusalCode
from tacit_common.flower.control import NodeState
from tacit_common.identity import Identity
from tacit_common.messages import Refusal
from tacit_common.wire import (
    content_sha256,
    decode_envelope,
    decode_head,
    decode_reply,
    encode,
    with_envelope,
)
from tacit_server.deployment.roster import Roster

_NOT_TRUSTED = [
    Refusal(code=code) for code in (RefusalCode.SIGNATURE, RefusalCode.REPLAY, RefusalCode.MESSAGE)
]
_BARE = set(encode(_NOT_TRUSTED[0]))  # the records of a message that holds nothing else


class SignedChannel:
    """Signs every request to an enrolled site, and believes only that site's own answer.

    `nodes` asks the SuperLink which nodes it knows; which site a node is follows from the
    public key that it was registered with.
    """

    def __init__(
        self, identity: Identity, roster: Roster, nodes: Callable[[], Sequence[NodeState]]
    ) -> None:
        self._seal = RequestSeal(identity)
        self._roster = roster
        self._nodes = nodes
        self._key_of: dict[int, bytes] = {}
        self._asked: dict[int, list[RequestEnvelope]] = {}  # in the last question

    def site_of(self, node: int) -> str | None:
        """The enrolled site behind a node; None for a stranger."""
        card = self._card(node)
        return None if card is None else card.site

    def connected(self) -> dict[int, str]:
        """When each node last connected, as the SuperLink writes it.

        Raises:
            LinkError: the SuperLink does not answer.
        """
        return {node.node_id: node.connected_at for node in self._nodes() if node.connected_at}

    def seal(self, node: int, request: RecordDict, *, again: bool) -> RecordDict:
        """The request in a new envelope for the site behind a node.

        `again`: it is the question that the node was last sent. It may answer either message.

        Raises:
            IdentityError: the node is no enrolled site's, perhaps no more.
        """
        card = self._card(node)
        if card is None:
            raise _stranger()
        envelope = self._seal.seal(content_sha256(request), recipient=card.public_key)
        self._asked[node] = [*(self._asked.get(node, []) if again else []), envelope]
        return with_envelope(request, envelope)

    def unseal(self, node: int, answer: RecordDict) -> RecordDict:
        """The answer, if the site that was asked signed it in answer to its last question.

        A site that does not trust a request signs nothing in answer to it: that it says so is
        believed unsigned. Whoever forges it could as well keep the site's answer back.

        Raises:
            IdentityError: it did not.
            WireError: it cannot be understood.
        """
        card = self._card(node)
        if node not in self._asked or card is None:
            raise _stranger()
        if set(answer) == _BARE and decode_reply(answer) in _NOT_TRUSTED:
            return answer
        envelope = decode_envelope(answer, AnswerEnvelope)
        *earlier, last = self._asked[node]
        asked = next((one for one in earlier if one.digest == envelope.request), last)
        require_answer(envelope, content_sha256(answer), request=asked)
        head = decode_head(answer)
        if head is not None and head.public_key != card.public_key:
            raise IdentityError(
                "a ledger cannot be trusted",
                why=f"it is signed with another key than that on the card of '{card.site}'",
                fix="ask the site which ledger it uses; remove it and enroll its new card if its "
                "key is new",
            )
        return answer

    def _card(self, node: int) -> SiteCard | None:
        if node not in self._key_of:
            self._key_of = {known.node_id: known.public_key for known in self._nodes()}
        key = self._key_of.get(node)
        return None if key is None else self._roster.by_node_key(key)


def _stranger() -> IdentityError:
    return IdentityError(
        "a node cannot be trusted",
        why="it is not registered with the key of an enrolled site",
        fix="enroll the site's card, or look who reached the SuperLink",
    )
