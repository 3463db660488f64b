"""How the server asks sites: the one interface between the rounds and the transport."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from tacit_common.messages import Reply, Request
from tacit_common.witness import HeadBook


class Failure(StrEnum):
    """Why nothing usable came back, where the site did not say so itself."""

    NO_ANSWER = "no_answer"  # nothing before the deadline
    NODE_ERROR = "node_error"  # Flower reports that the node failed
    UNUSABLE_REPLY = "unusable_reply"  # not a message of this version, or of another shape
    NOT_ENROLLED = "not_enrolled"  # no accepted site's node, perhaps no more: it is not asked
    UNTRUSTED_SENDER = "untrusted_sender"  # the site's own key did not sign the answer
    UNTRUSTED_LEDGER = "untrusted_ledger"  # rolled back, forked, or no signed head at all
    NON_FINITE_UPDATE = "non_finite_update"  # NaN or infinity in the update
    OUTSIZED_UPDATE = "outsized_update"  # so large that it can be no step of training


@dataclass(frozen=True)
class Answer:
    """What came back from one node."""

    node_id: int
    reply: Reply | Failure


class Exchange(Protocol):
    """Asks nodes the same question and hands over what they answer.

    An answer counts only with a signed ledger head that follows from the last one seen.
    """

    @property
    def heads(self) -> HeadBook:
        """Where the ledgers of the sites stood when they last answered."""
        ...

    def node_ids(self) -> list[int]:
        """Nodes that are connected now, ascending."""
        ...

    def site_of(self, node: int) -> str | None:
        """The name of the site behind a node, as far as it is known."""
        ...

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        """One answer a node, in the order of `nodes`, as soon as that order allows.

        The order is fixed because a sum of floats depends on it: the same replies give
        the same model, whichever site was faster.
        """
        ...
