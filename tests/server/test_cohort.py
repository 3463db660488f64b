"""Who takes part: sites that described themselves, and a seeded cohort of them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from scipy import stats

from tacit_common.errors import QuorumError, RefusalCode
from tacit_common.study import Study
from tacit_common.wire import DescribeRequest, Refusal, Reply, Request, SiteDescription, TrainReply
from tacit_common.witness import HeadBook
from tacit_server.cohort import Participant, choose_cohort, meet_sites, weight_of
from tacit_server.exchange import Answer, Failure

MakeStudy = Callable[..., Study]


def description(site: str, records: int = 7) -> SiteDescription:
    return SiteDescription(site=site, declared_units=records, tacit_version="0")


class Nodes:
    """An exchange whose nodes answer as told."""

    def __init__(self, replies: dict[int, Reply | Failure]) -> None:
        self._replies = replies
        self.heads = HeadBook()

    def node_ids(self) -> list[int]:
        return sorted(self._replies)

    def ask(self, nodes: Sequence[int], request: Request, timeout_s: float) -> Iterator[Answer]:
        assert isinstance(request, DescribeRequest)
        assert timeout_s == 5.0
        return (Answer(node, self._replies[node]) for node in nodes)


def meet(replies: dict[int, Reply | Failure]) -> list[Participant]:
    return meet_sites(Nodes(replies), 5.0)


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
