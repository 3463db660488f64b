"""Who takes part: the sites that described themselves, and the cohort of a round."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tacit_common.errors import QuorumError
from tacit_common.messages import DescribeRequest, Refusal, SiteDescription
from tacit_common.study import FederationPlan, Study
from tacit_common.training import seeded_generator
from tacit_server.exchange import Answer, Exchange, Failure


@dataclass(frozen=True)
class Participant:
    """A site as the server knows it: public constants only."""

    node_id: int
    site: str
    declared_units: int


@dataclass(frozen=True)
class Meeting:
    """Who came, and who did not and why."""

    participants: list[Participant]  # sorted by name
    refused: dict[str, str]  # site to code, where it is known whose node it is


@dataclass(frozen=True)
class Patience:
    """How long to wait for sites that are not there yet, or wait for a person's consent."""

    sites: int = 1  # go on as soon as so many have joined
    seconds: float = 0.0


_ASK_AGAIN_S, _SOON_S = 2.0, 15.0


def meet_sites(
    exchange: Exchange,
    study: Study,
    *,
    run: str | None,
    patience: Patience,
    heard: Callable[[Meeting], None],
) -> Meeting:
    """Every connected site that describes itself and would take part.

    `run` is the one that goes on, None before it has begun. `heard` is told whenever the
    picture has changed.

    Raises:
        QuorumError: nobody would take part, or two sites use one name.
    """
    deadline, pause_s = time.monotonic() + patience.seconds, _ASK_AGAIN_S
    request = DescribeRequest(study, run)
    # Whoever waits can ask again, so one site that is away holds nobody up for long.
    timeout_s = study.federation.deadline_s
    if patience.seconds:
        timeout_s = min(timeout_s, _SOON_S)
    joined: dict[int, Participant] = {}
    last: Meeting | None = None
    while True:
        asked = [node for node in exchange.node_ids() if node not in joined]
        refused: dict[str, str] = {}
        reasons: set[str] = set()
        for answer in _described(exchange, asked, request, timeout_s):
            known_as = exchange.site_of(answer.node_id)
            reply = answer.reply
            if isinstance(reply, SiteDescription) and known_as in (None, reply.site):
                joined[answer.node_id] = Participant(
                    answer.node_id, reply.site, reply.declared_units
                )
                continue
            reason = _reason(answer)
            reasons.add(reason)
            refused[known_as or f"node {answer.node_id}"] = reason
        meeting = Meeting(sorted(joined.values(), key=lambda one: one.site), refused)
        if meeting != last:
            heard(meeting)
            last = meeting
        if len(joined) >= patience.sites or time.monotonic() >= deadline:
            break
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, _SOON_S)  # a person may take hours to agree
    names = [participant.site for participant in meeting.participants]
    if not names:
        said = f" ({', '.join(sorted(reasons))})" if reasons else ""
        raise QuorumError(
            "no site answers",
            why=f"{len(asked)} nodes are connected and none would take part{said}",
            fix="start the sites and look at their logs",
        )
    if len(set(names)) < len(names):
        raise QuorumError(
            "two sites use one name",
            why="a site's name must be its own: budgets and weights are kept by name",
            fix="rename one of the sites",
        )
    return meeting


def _reason(answer: Answer) -> str:
    match answer.reply:
        case Refusal(code=code):
            return code.value
        case Failure() as failure:
            return failure.value
        case _:
            return Failure.UNUSABLE_REPLY.value


def _described(
    exchange: Exchange, nodes: Sequence[int], request: DescribeRequest, timeout_s: float
) -> Iterator[Answer]:
    """What each node says of itself.

    A node whose ledger cannot be trusted is asked again: by then it is known whose ledger it
    is, so the head that was seen goes with the question, and the site's own log tells its
    operator what has happened.
    """
    doubtful = []
    for answer in exchange.ask(nodes, request, timeout_s):
        if answer.reply is Failure.UNTRUSTED_LEDGER:
            doubtful.append(answer.node_id)
        else:
            yield answer
    yield from exchange.ask(doubtful, request, timeout_s)


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
