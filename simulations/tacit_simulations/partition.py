"""Dealing the records of one data set out to simulated sites."""

import warnings

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import StudyError
from tacit_common.study import DirichletPartition, IidPartition

SMALLEST_SITE = 1
"""Records that every site has at least."""


def partition(
    labels: NDArray[np.int64], plan: DirichletPartition | IidPartition, sites: int, seed: int
) -> list[NDArray[np.int64]]:
    """The records of every site: sorted indices into `labels` [N].

    Guarantees: every index of `labels` belongs to exactly one site; no site is empty; the
    result is a function of the arguments.

    Raises:
        StudyError: there are fewer records than sites, or α is so small that some site
            stays empty in eleven draws.
    """
    if sites > len(labels):
        raise StudyError(
            f"{sites} sites cannot share {len(labels)} records",
            why="every site needs at least one",
            fix="lower simulation.sites, or take a larger data set",
        )
    # Together they take a second to import, which a resumed run need not wait.
    from datasets import Dataset  # noqa: PLC0415
    from flwr_datasets.partitioner import (  # noqa: PLC0415
        DirichletPartitioner,
        IidPartitioner,
    )

    # The partitioner for equal shares cuts in order, so the order is drawn here.
    order = np.random.default_rng(seed).permutation(len(labels))
    records = Dataset.from_dict({"index": order, "label": labels[order]})
    partitioner = (
        IidPartitioner(num_partitions=sites)
        if isinstance(plan, IidPartition)
        else DirichletPartitioner(
            num_partitions=sites,
            partition_by="label",
            alpha=plan.alpha,
            min_partition_size=SMALLEST_SITE,
            shuffle=False,
            seed=seed,
        )
    )
    partitioner.dataset = records
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
    return [np.sort(np.asarray(share, dtype=np.int64)) for share in shares]
