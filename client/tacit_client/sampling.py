"""Poisson sampling: every unit joins a step by its own coin flip."""

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_common.privacy.noise import RandomSource

Indices = NDArray[np.intp]


def secret_poisson_sample(population: int, rate: float, random: RandomSource) -> Indices:
    """Indices of the units that join a step; the coins come from a secure source.

    The amplification by sampling that accounting uses holds only while the sample is
    secret, so it must not follow from a seed that the server knows.
    """
    return np.flatnonzero(random.bernoulli(population, rate))


def seeded_poisson_sample(population: int, rate: float, generator: torch.Generator) -> Indices:
    """The same distribution, repeatable: for mode `none`, where no amplification is claimed."""
    coins = torch.rand(population, generator=generator, dtype=torch.float64)
    return np.flatnonzero(coins.numpy() < rate)
