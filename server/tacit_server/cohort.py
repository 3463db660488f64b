"""Who takes part: the sites that described themselves, and the cohort of a round."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tacit_common.errors import QuorumError
from tacit_common.study import FederationPlan
from tacit_common.training import seeded_generator
from tacit_common.wire import DescribeRequest, Refusal, SiteDescription
from tacit_server.exchange import Answer, Exchange, Failure


@dataclass(frozen=True)
class Participant:
    """A site as the server knows it: public constants only."""

    node_id: int
    site: str
    declared_units: int


def meet_sites(exchange: Exchange, timeout_s: float) -> list[Participant]:
    """Every connected site that describes itself, sorted by name.

    Raises:
        QuorumError: nobody answers, or two sites use one name.
    """
    nodes = exchange.node_ids()
    participants: list[Participant] = []
    reasons: set[str] = set()
    for answer in _described(exchange, nodes, timeout_s):
        match answer.reply:
            case SiteDescription(site=site, declared_units=declared):
                participants.append(Participant(answer.node_id, site, declared))
            case Refusal(code=code):
                reasons.add(code.value)
            case Failure() as failure:
                reasons.add(failure.value)
            case _:
                reasons.add(Failure.UNUSABLE_REPLY.value)
    names = [participant.site for participant in participants]
    if not names:
        said = f" ({', '.join(sorted(reasons))})" if reasons else ""
        raise QuorumError(
            "no site answers",
            why=f"{len(nodes)} nodes are connected and none described itself{said}",
            fix="start the sites and look at their logs",
        )
    if len(set(names)) < len(names):
        raise QuorumError(
            "two sites use one name",
            why="a site's name must be its own: budgets and weights are kept by name",
            fix="rename one of the sites",
        )
    return sorted(participants, key=lambda participant: participant.site)


def _described(exchange: Exchange, nodes: Sequence[int], timeout_s: float) -> Iterator[Answer]:
    """What each node says of itself.

    A node whose ledger cannot be trusted is asked again: by then it is known whose ledger it
    is, so the head that was seen goes with the question, and the site's own log tells its
    operator what has happened.
    """
    doubtful = []
    for answer in exchange.ask(nodes, DescribeRequest(), timeout_s):
        if answer.reply is Failure.UNTRUSTED_LEDGER:
            doubtful.append(answer.node_id)
        else:
            yield answer
    yield from exchange.ask(doubtful, DescribeRequest(), timeout_s)


def choose_cohort(
    participants: list[Participant], federation: FederationPlan, *, seed: int, round_number: int
) -> list[Participant]:
    """The sites that are asked in a round: all, or a seeded sample of `cohort_size`.

    Sites sampled by the server do not amplify privacy: the server knows the sample.
    """
    size = federation.asked_of(len(participants))
    if size == len(participants):
        return participants
    generator = seeded_generator(seed, "cohort", round_number)
    chosen = np.random.default_rng(generator.initial_seed()).choice(
        len(participants), size=size, replace=False
    )
    return [participants[index] for index in sorted(chosen)]


def weight_of(participant: Participant, federation: FederationPlan) -> float:
    """A site's weight in the mean: one, or its declared constant, never its private count."""
    if federation.weighting == "declared_units":
        return float(participant.declared_units)
    return 1.0
