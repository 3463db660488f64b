"""What a step draws at random: who joins it, and the views of those who do."""

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_common.privacy.noise import RandomSource

Indices = NDArray[np.intp]

# torch's Mersenne Twister keeps 624 words of 32 bits, each in 8 bytes, after 24 bytes of
# counters; those of a fresh generator say that the words are about to be used.
_MERSENNE_WORDS = 624
_STATE_WORDS = slice(24, 24 + 8 * _MERSENNE_WORDS)


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


def secret_generator(random: RandomSource) -> torch.Generator:
    """A generator for one step's views that nobody outside the site can repeat.

    The views must be secret too. Drawn from a known seed, in the order of the sample, the
    mask of every record would tell how many records stand before it: one record less, and
    all others train on other, known views, which no clipping bounds.

    The whole state comes from the secure source: `manual_seed` keeps 32 bits.
    """
    words = np.floor(random.uniform(_MERSENNE_WORDS) * 2.0**32).astype("<u8")
    generator = torch.Generator()
    state = generator.get_state()
    state.numpy()[_STATE_WORDS] = np.frombuffer(words.tobytes(), dtype=np.uint8)
    return generator.set_state(state)
