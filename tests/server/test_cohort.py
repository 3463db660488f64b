"""Who takes part: sites that described themselves, and a seeded cohort of them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy import stats

from tacit_common.errors import QuorumError, RefusalCode
from tacit_common.messages import (
    DescribeRequest,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    TrainReply,
)
from tacit_common.study import Study
from tacit_common.study_file import parse_study
from tacit_common.study_reference import EXAMPLE_STUDY
from tacit_common.witness import HeadBook
from tacit_server.cohort import (
    Meeting,
    Participant,
    Patience,
    choose_cohort,
    meet_sites,
    weight_of,
)
from tacit_server.exchange import Answer, Failure

MakeStudy = Callable[..., Study]


def description(site: str, records: int = 7) -> SiteDescription:
    return SiteDescription(site=site, declared_units=records, tacit_version="0")


Replies = dict[int, Reply | Failure]


class Nodes:
    """An exchange whose nodes answer as told: the n-th time that nodes are counted, as in the
    n-th of `rounds`, and ever after as in the last.
    """

    def __init__(self, rounds: Sequence[Replies], names: dict[int, str] | None = None) -> None:
        self._rounds = list(rounds)
        self._replies = self._rounds[0]
        self._names = names or {}
        self.heads = HeadBook()
        self.asked: list[list[int]] = []
        self.requests: list[tuple[Request, float]] = []

    def node_ids(self) -> list[int]:
        self._replies = self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0]
        return sorted(self._replies)

    def site_of(self, node: int) -> str | None:
        return self._names.get(node)

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        if nodes:
            self.asked.append(list(nodes))
            self.requests.append((request, timeout_s))
        return (Answer(node, self._replies[node]) for node in nodes)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes only where somebody waits."""
    slept: list[float] = []
    monkeypatch.setattr("tacit_server.cohort.time.sleep", slept.append)
    monkeypatch.setattr("tacit_server.cohort.time.monotonic", lambda: sum(slept))
    return slept


STUDY = parse_study(EXAMPLE_STUDY, overrides=["federation.deadline_s=5.0"]).travelling()


def meeting(
    nodes: Nodes, *, sites: int = 1, seconds: float = 0.0, heard: list[Meeting] | None = None
) -> Meeting:
    told = heard if heard is not None else []
    return meet_sites(nodes, STUDY, run=None, patience=Patience(sites, seconds), heard=told.append)


def meet(replies: Replies) -> list[Participant]:
    return meeting(Nodes([replies])).participants


def test_sites_are_sorted_by_their_names_whatever_their_nodes_are_called() -> None:
    met = meet({9: description("a", 3), 1: description("c", 1), 5: description("b", 2)})
    assert met == [Participant(9, "a", 3), Participant(5, "b", 2), Participant(1, "c", 1)]


def test_a_node_that_does_not_describe_itself_takes_no_part() -> None:
    met = meet(
        {
            1: description("a"),
            2: Refusal(code=RefusalCode.LEDGER),
            3: Failure.NO_ANSWER,
            4: Failure.NODE_ERROR,
            5: Failure.UNUSABLE_REPLY,
            6: TrainReply(np.zeros(1, dtype=np.float32)),
            7: description("b"),
        }
    )
    assert [participant.site for participant in met] == ["a", "b"]


@pytest.mark.parametrize("replies", [{}, {1: Failure.NO_ANSWER, 2: Failure.NODE_ERROR}])
def test_without_a_site_there_is_no_run(replies: dict[int, Reply | Failure]) -> None:
    with pytest.raises(QuorumError, match="no site answers") as raised:
        meet(replies)
    assert f"{len(replies)} nodes" in raised.value.why


def test_the_reasons_of_those_who_refused_are_named() -> None:
    with pytest.raises(QuorumError) as raised:
        meet({1: Refusal(code=RefusalCode.LEDGER), 2: Failure.NODE_ERROR})
    assert "ledger" in raised.value.why
    assert "node_error" in raised.value.why


def test_two_sites_of_one_name_are_refused() -> None:
    with pytest.raises(QuorumError, match="two sites use one name"):
        meet({1: description("a", 3), 2: description("b"), 3: description("a", 3)})


def test_a_site_is_asked_whether_it_would_take_part_in_this_study() -> None:
    nodes = Nodes([{1: description("a")}])
    meeting(nodes)
    assert nodes.requests == [(DescribeRequest(STUDY), 5.0)]


def test_those_who_do_not_join_are_named_with_their_reasons() -> None:
    replies: Replies = {
        1: description("a"),
        2: Refusal(code=RefusalCode.APPROVAL),
        3: Failure.NO_ANSWER,
        4: TrainReply(np.zeros(1, dtype=np.float32)),
    }
    met = meeting(Nodes([replies], names={2: "b", 3: "c"}))
    assert met.refused == {"b": "approval", "c": "no_answer", "node 4": "unusable_reply"}


def test_a_site_that_calls_itself_by_another_s_name_takes_no_part() -> None:
    """Else it could bear the blame, the weight or the account of another, or stop the run."""
    replies: Replies = {1: description("a"), 2: description("a")}
    met = meeting(Nodes([replies], names={1: "a", 2: "b"}))
    assert met.participants == [Participant(1, "a", 7)]
    assert met.refused == {"b": "unusable_reply"}


def test_a_run_begins_as_soon_as_enough_sites_have_joined(clock: list[float]) -> None:
    one, two, three = ({n: description(f"s{n}") for n in range(1, k + 1)} for k in (1, 2, 3))
    met = meeting(Nodes([one, one, two, three]), sites=2, seconds=3600.0)
    assert [participant.site for participant in met.participants] == ["s1", "s2"]
    assert len(clock) == 2


def test_after_a_while_a_run_begins_with_fewer_sites(clock: list[float]) -> None:
    met = meeting(Nodes([{1: description("a")}]), sites=3, seconds=60.0)
    assert [participant.site for participant in met.participants] == ["a"]
    assert 60.0 <= sum(clock) < 65.0


def test_nobody_is_waited_for_longer_than_it_takes(clock: list[float]) -> None:
    with pytest.raises(QuorumError, match="no site answers"):
        meeting(Nodes([{}]), sites=3, seconds=60.0)
    assert 60.0 <= sum(clock) < 65.0


def test_a_site_whose_operator_agrees_meanwhile_joins_and_who_has_joined_is_not_asked_again() -> (
    None
):
    waiting: Replies = {1: description("a"), 2: Refusal(code=RefusalCode.APPROVAL)}
    agreed: Replies = {1: description("a"), 2: description("b")}
    nodes = Nodes([waiting, waiting, agreed], names={1: "a", 2: "b"})
    heard: list[Meeting] = []
    met = meeting(nodes, sites=2, seconds=3600.0, heard=heard)
    assert [participant.site for participant in met.participants] == ["a", "b"]
    assert nodes.asked == [[1, 2], [2], [2]]
    assert heard == [  # and only when the picture changes
        Meeting([Participant(1, "a", 7)], {"b": "approval"}),
        Meeting([Participant(1, "a", 7), Participant(2, "b", 7)], {}),
    ]


def test_a_site_whose_ledger_is_doubted_is_asked_once_more() -> None:
    """By then it is known whose ledger it is, so that it is told of the head that was seen."""
    nodes = Nodes([{1: Failure.UNTRUSTED_LEDGER, 2: description("b")}], names={1: "a"})
    met = meeting(nodes)
    assert nodes.asked == [[1, 2], [1]]
    assert met.refused == {"a": "untrusted_ledger"}


# --- cohorts -----------------------------------------------------------------------------

EVERYBODY = [Participant(index, f"site-{index}", 10 * (index + 1)) for index in range(10)]


def cohort(study: Study, round_number: int, seed: int = 3) -> list[Participant]:
    return choose_cohort(EVERYBODY, study.federation, seed=seed, round_number=round_number)


@pytest.mark.parametrize("size", ["", "10", "11"])
def test_everybody_is_asked_where_the_cohort_is_as_large(make_study: MakeStudy, size: str) -> None:
    study = make_study(f"federation.cohort_size={size}")
    assert cohort(study, 1) == EVERYBODY


def test_a_cohort_is_a_function_of_the_seed_and_the_round(make_study: MakeStudy) -> None:
    study = make_study("federation.cohort_size=4")
    first = cohort(study, 1)
    assert first == cohort(study, 1)
    assert len({participant.site for participant in first}) == 4
    assert first == sorted(first, key=lambda participant: participant.site)
    assert any(cohort(study, number) != first for number in range(2, 6))
    assert any(cohort(study, 1, seed) != first for seed in range(4, 8))


def test_every_site_is_asked_as_often_as_any_other(make_study: MakeStudy) -> None:
    study = make_study("federation.cohort_size=3")
    rounds = 1000
    asked = [
        participant.node_id for number in range(rounds) for participant in cohort(study, number)
    ]
    counts = np.bincount(asked, minlength=10)
    assert counts.sum() == 3 * rounds
    assert stats.chisquare(counts).pvalue > 1e-6  # the seed is fixed: it passes or it does not


def test_weights_are_one_or_the_declared_constant(make_study: MakeStudy) -> None:
    equal = make_study().federation
    declared = make_study("federation.weighting=declared_units").federation
    assert [weight_of(p, equal) for p in EVERYBODY] == [1.0] * 10
    assert [weight_of(p, declared) for p in EVERYBODY] == [10.0 * n for n in range(1, 11)]
