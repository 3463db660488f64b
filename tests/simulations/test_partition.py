"""Every record goes to exactly one site, the same way for one seed."""

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tacit_common.errors import StudyError
from tacit_common.study import DirichletPartition, IidPartition
from tacit_simulations.partition import partition

LABELS = np.random.default_rng(0).integers(0, 10, 1000)
IID = IidPartition(kind="iid")


def dirichlet(alpha: float) -> DirichletPartition:
    return DirichletPartition(kind="dirichlet", alpha=alpha)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    plan=st.one_of(st.just(IID), st.sampled_from([0.1, 0.5, 5.0]).map(dirichlet)),
    sites=st.integers(1, 8),
    records=st.integers(50, 300),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_index_belongs_to_exactly_one_site_and_no_site_is_empty(
    plan: DirichletPartition | IidPartition, sites: int, records: int, seed: int
) -> None:
    shares = partition(LABELS[:records], plan, sites, seed)
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


def test_nothing_global_is_drawn_from() -> None:
    before = (np.random.get_state()[1].tolist(), random.getstate(), torch.get_rng_state())
    partition(LABELS, dirichlet(0.1), 5, 0)
    assert np.random.get_state()[1].tolist() == before[0]
    assert random.getstate() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_more_sites_than_records_are_refused() -> None:
    with pytest.raises(StudyError, match=r"simulation\.sites"):
        partition(LABELS[:4], IID, 5, 0)


def test_a_partition_that_leaves_sites_empty_is_refused_after_trying() -> None:
    with pytest.raises(StudyError, match="alpha"):
        partition(LABELS[:60], dirichlet(0.001), 50, 0)
