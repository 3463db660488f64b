"""Dealing the records of one data set out to simulated sites, whole subjects at a time."""

import warnings
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from tacit_client.data.subjects import number_subjects
from tacit_common.errors import StudyError
from tacit_common.study import DirichletPartition, IidPartition

SMALLEST_SITE = 1
"""Units (records, or subjects) that every site has at least."""

Numbers = NDArray[np.int64]


def partition(
    labels: Numbers,
    plan: DirichletPartition | IidPartition,
    sites: int,
    seed: int,
    *,
    subjects: Sequence[Hashable] | None = None,
) -> list[Numbers]:
    """The records of every site: sorted indices into `labels` [N].

    `subjects` [N] says whose record each is; without it each is of its own.

    Guarantees: every index of `labels` belongs to exactly one site; no site is empty; no
    subject has records at two sites; the result is a function of the arguments. Dealt
    evenly, sites differ by at most one in their subjects, and in their records by at most
    what the largest subject has. For Dirichlet shares a subject counts once, as of the
    class that most of its records have.

    Raises:
        StudyError: there are fewer units than sites, or α is so small that some site stays
            empty in eleven draws.
    """
    unit_of = number_subjects(range(len(labels)) if subjects is None else subjects)  # [N]
    sizes = np.bincount(unit_of)  # [units]
    if sites > len(sizes):
        kind = "records" if subjects is None else "subjects"
        raise StudyError(
            f"{sites} sites cannot share {len(sizes)} {kind}",
            why="every site needs at least one",
            fix="lower simulation.sites, or take a larger data set",
        )
    if isinstance(plan, DirichletPartition):
        shares = _skewed(_commonest_class(labels, unit_of), plan.alpha, sites, seed)
    elif subjects is None:
        order = np.random.default_rng(seed).permutation(len(sizes))
        shares = np.array_split(order, sites)
    else:
        shares = _even(sizes, sites, seed)
    site_of = np.empty(len(sizes), dtype=np.int64)
    for site, share in enumerate(shares):
        site_of[share] = site
    site_of_record = site_of[unit_of]  # [N]
    ends = np.cumsum(np.bincount(site_of_record, minlength=sites))[:-1]
    return np.split(np.argsort(site_of_record, kind="stable"), ends)


def _even(sizes: Numbers, sites: int, seed: int) -> list[Numbers]:
    """Units [units] of every site: as many, and as many records, as whole units allow.

    The largest units go first, one to each site in turn, and in every turn the larger ones
    to the sites that have fewer records. In a turn a site gains only on sites that it was not
    ahead of, and by the difference of two units at most; so two sites never differ by more
    records than the largest and the smallest unit of some turn (none, in the last, is 0).
    """
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(sizes))
    queue = shuffled[np.argsort(-sizes[shuffled], kind="stable")]  # ties by chance
    site_of = np.empty(len(sizes), dtype=np.int64)
    held = np.zeros(sites, dtype=np.int64)
    for start in range(0, len(queue), sites):
        turn = queue[start : start + sites]
        tied = random.permutation(sites)
        chosen = tied[np.argsort(held[tied], kind="stable")][: len(turn)]
        site_of[turn] = chosen
        held[chosen] += sizes[turn]
    return [np.flatnonzero(site_of == site) for site in range(sites)]


def _commonest_class(labels: Numbers, unit_of: Numbers) -> Numbers:
    """The class [units] that most records of a unit have; the smaller one of two."""
    pairs, counts = np.unique(np.column_stack([unit_of, labels]), axis=0, return_counts=True)
    first = pairs[np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))]
    classes: Numbers = first[np.unique(first[:, 0], return_index=True)[1], 1]
    return classes


def _skewed(classes: Numbers, alpha: float, sites: int, seed: int) -> list[Numbers]:
    """Units [units] of every site, with shares of each class drawn from Dirichlet(α)."""
    # Together they take a second to import, which a resumed run need not wait.
    from datasets import Dataset  # noqa: PLC0415
    from flwr_datasets.partitioner import DirichletPartitioner  # noqa: PLC0415

    order = np.random.default_rng(seed).permutation(len(classes))
    partitioner = DirichletPartitioner(
        num_partitions=sites,
        partition_by="label",
        alpha=alpha,
        min_partition_size=SMALLEST_SITE,
        shuffle=False,
        seed=seed,
    )
    partitioner.dataset = Dataset.from_dict({"index": order, "label": classes[order]})
    try:
        with warnings.catch_warnings():
            # It warns of every draw that it repeats, and raises when it gives up.
            warnings.simplefilter("ignore")
            shares = [partitioner.load_partition(site)["index"] for site in range(sites)]
    except ValueError:
        raise StudyError(
            f"Dirichlet shares leave one of {sites} sites without records",
            why="eleven draws at this alpha gave no partition in which each site has one",
            fix="raise simulation.partition.alpha, or lower simulation.sites",
        ) from None
    return [np.asarray(share, dtype=np.int64) for share in shares]
