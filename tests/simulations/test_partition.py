"""Every record goes to exactly one site, with its whole subject, the same way for one seed."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from tacit_common.errors import StudyError
from tacit_common.study import DirichletPartition, IidPartition
from tacit_simulations.partition import partition

LABELS = np.random.default_rng(0).integers(0, 10, 1000)
# The first records of each of three sites, as version 0.1 dealt LABELS with seed 0.
EVEN_BEFORE = [[2, 5, 8], [0, 10, 14], [1, 3, 4]]
SKEWED_BEFORE = [[0, 5, 8], [2, 9, 10], [1, 3, 4]]
IID = IidPartition(kind="iid")


def dirichlet(alpha: float) -> DirichletPartition:
    return DirichletPartition(kind="dirichlet", alpha=alpha)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def dealt(
    plan: DirichletPartition | IidPartition, *arguments: Any, **more: Any
) -> list[np.ndarray]:
    """A partition; an example that Dirichlet cannot deal is not one (see the last test)."""
    try:
        return partition(arguments[0], plan, *arguments[1:], **more)
    except StudyError as error:
        if isinstance(plan, DirichletPartition) and "leave one of" in error.what:
            reject()
        raise


@given(
    plan=st.one_of(st.just(IID), st.sampled_from([0.1, 0.5, 5.0]).map(dirichlet)),
    sites=st.integers(1, 8),
    records=st.integers(50, 300),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_index_belongs_to_exactly_one_site_and_no_site_is_empty(
    plan: DirichletPartition | IidPartition, sites: int, records: int, seed: int
) -> None:
    shares = dealt(plan, LABELS[:records], sites, seed)
    assert len(shares) == sites
    assert all(len(share) > 0 and share.dtype == np.int64 for share in shares)
    assert sorted(np.concatenate(shares).tolist()) == list(range(records))


@pytest.mark.parametrize("plan", [IID, dirichlet(0.3)], ids=["iid", "dirichlet"])
def test_a_seed_gives_one_partition_and_another_seed_another(
    plan: DirichletPartition | IidPartition,
) -> None:
    first, again, other = (partition(LABELS, plan, 5, seed) for seed in (3, 3, 4))
    assert [share.tolist() for share in first] == [share.tolist() for share in again]
    assert [share.tolist() for share in first] != [share.tolist() for share in other]


def skew(shares: list[np.ndarray]) -> float:
    """Mean share of the largest class of a site."""
    return float(np.mean([np.bincount(LABELS[s]).max() / len(s) for s in shares]))


def test_a_smaller_alpha_skews_the_classes_of_sites_more() -> None:
    skews = [skew(partition(LABELS, plan, 5, 0)) for plan in (IID, dirichlet(1), dirichlet(0.1))]
    assert skews[0] < 0.2 < skews[1] < skews[2]
    assert skews[2] > 0.4


def test_iid_sites_have_equal_sizes_whatever_the_order_of_the_data() -> None:
    shares = partition(np.sort(LABELS), IID, 3, 0)
    assert sorted(map(len, shares)) == [333, 333, 334]
    assert all(len(np.unique(np.sort(LABELS)[share])) == 10 for share in shares)


# --- whole subjects --------------------------------------------------------------------


@st.composite
def subjects_of_records(draw: st.DrawFn) -> list[int | str]:
    """Ids of 50 to 300 records of at least 10 subjects, some with many records, mixed up."""
    records = draw(st.integers(50, 300))
    count = draw(st.integers(10, 50))
    seed = draw(st.integers(0, 2**16))
    drawn = np.random.default_rng(seed).geometric(0.15, records) % count
    drawn[:count] = np.arange(count)
    ids: list[int | str] = [f"s{n}" if n % 2 else int(n) for n in drawn]
    random.Random(seed).shuffle(ids)  # noqa: S311
    return ids


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.one_of(st.just(IID), st.sampled_from([0.5, 5.0]).map(dirichlet)),
    sites=st.integers(1, 4),
    subjects=subjects_of_records(),
    seed=st.integers(0, 2**31 - 1),
)
def test_no_subject_is_cut_and_every_record_belongs_to_exactly_one_site(
    plan: DirichletPartition | IidPartition, sites: int, subjects: list[int | str], seed: int
) -> None:
    shares = dealt(plan, LABELS[: len(subjects)], sites, seed, subjects=subjects)
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(subjects)))
    held = [{subjects[index] for index in share} for share in shares]
    assert len(held) == sites
    assert all(held)
    assert sum(map(len, held)) == len(set(subjects))
    again = partition(LABELS[: len(subjects)], plan, sites, seed, subjects=subjects)
    assert [share.tolist() for share in again] == [share.tolist() for share in shares]
    assert all(share.dtype == np.int64 and (np.diff(share) > 0).all() for share in shares)


@settings(max_examples=100, deadline=None)
@given(subjects=subjects_of_records(), sites=st.integers(1, 10), seed=st.integers(0, 2**31 - 1))
def test_sites_differ_by_one_subject_and_by_the_records_within_one_turn_at_most(
    subjects: list[int | str], sites: int, seed: int
) -> None:
    shares = partition(LABELS[: len(subjects)], IID, sites, seed, subjects=subjects)
    held = [len({subjects[index] for index in share}) for share in shares]
    assert max(held) - min(held) <= 1
    sizes = sorted(Counter(subjects).values(), reverse=True)
    turns = [(sizes + [0] * sites)[i : i + sites] for i in range(0, len(sizes), sites)]
    assert max(map(len, shares)) - min(map(len, shares)) <= max(t[0] - t[-1] for t in turns)


def test_subjects_of_one_size_are_dealt_to_sites_of_equal_size() -> None:
    shares = partition(LABELS, IID, 5, 0, subjects=[index // 10 for index in range(1000)])
    assert list(map(len, shares)) == [200] * 5


def test_another_seed_deals_subjects_otherwise() -> None:
    subjects = [index % 100 for index in range(1000)]
    first, other = (partition(LABELS, IID, 5, seed, subjects=subjects) for seed in (1, 2))
    assert [share.tolist() for share in first] != [share.tolist() for share in other]


def test_every_subject_is_as_likely_at_one_site_as_at_another() -> None:
    # The largest of 7 subjects, over 400 seeds: 4 standard errors of a share of 1/3.
    subjects = [0] * 5 + [1, 1, 1, 2, 2, 3, 3, 4, 5, 6]
    first = [0, 0, 0]
    for seed in range(400):
        shares = partition(LABELS[:15], IID, 3, seed, subjects=subjects)
        first[next(site for site in range(3) if 0 in shares[site])] += 1
    assert all(abs(count - 400 / 3) < 4 * np.sqrt(400 * 2 / 9) for count in first)


def test_without_subjects_records_are_dealt_as_they_were_before_there_were_any() -> None:
    assert [share[:3].tolist() for share in partition(LABELS, IID, 3, 0)] == EVEN_BEFORE
    assert [s[:3].tolist() for s in partition(LABELS, dirichlet(0.5), 3, 0)] == SKEWED_BEFORE


def test_a_subject_counts_as_of_the_class_that_most_of_its_records_have() -> None:
    random_classes = np.random.default_rng(1).integers(0, 4, (100, 5))
    random_classes[:, :2] = np.arange(100)[:, None] % 4  # two of five, so that ties are common
    counts = [Counter(row.tolist()) for row in random_classes]
    commonest = [min(c, key=lambda label: (-c[label], label)) for c in counts]
    dealt = partition(
        random_classes.ravel(), dirichlet(0.1), 3, 0, subjects=np.repeat(np.arange(100), 5).tolist()
    )
    as_records = partition(np.array(commonest), dirichlet(0.1), 3, 0)
    assert [np.unique(share // 5).tolist() for share in dealt] == [s.tolist() for s in as_records]


def test_nothing_global_is_drawn_from() -> None:
    before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state())
    partition(LABELS, dirichlet(0.1), 5, 0)
    assert np.random.get_state()[1].tolist() == before[0]
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_more_sites_than_records_are_refused() -> None:
    with pytest.raises(StudyError, match=r"simulation\.sites"):
        partition(LABELS[:4], IID, 5, 0)


def test_more_sites_than_subjects_are_refused() -> None:
    with pytest.raises(StudyError, match="5 sites cannot share 4 subjects"):
        partition(LABELS[:40], IID, 5, 0, subjects=[index % 4 for index in range(40)])


def test_a_partition_that_leaves_sites_empty_is_refused_after_trying() -> None:
    with pytest.raises(StudyError, match="alpha"):
        partition(LABELS[:60], dirichlet(0.001), 50, 0)
