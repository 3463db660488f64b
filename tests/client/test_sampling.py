"""Poisson sampling: the distribution that accounting assumes, from coins nobody can guess."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tacit_client.sampling import (
    Indices,
    secret_generator,
    secret_poisson_sample,
    seeded_poisson_sample,
)
from tacit_common.privacy.noise import InsecureSeededRandom, RandomSource, SecureRandom
from tacit_common.training import seeded_generator

N, Q, DRAWS = 200, 0.3, 4000
FALSE_ALARM = 1e-9  # secret draws cannot be seeded, so a test may fail this often by chance


def secret() -> Indices:
    return secret_poisson_sample(N, Q, SecureRandom())


def seeded() -> Indices:
    generator = seeded_generator(1, "sampling")
    return seeded_poisson_sample(N, Q, generator)


def many(kind: str) -> list[Indices]:
    random, generator = SecureRandom(), seeded_generator(1, "sampling")
    if kind == "secret":
        return [secret_poisson_sample(N, Q, random) for _ in range(DRAWS)]
    return [seeded_poisson_sample(N, Q, generator) for _ in range(DRAWS)]


@pytest.mark.parametrize("kind", ["secret", "seeded"])
def test_batch_sizes_have_the_mean_and_the_variance_of_poisson_sampling(kind: str) -> None:
    sizes = np.array([len(sample) for sample in many(kind)])
    mean, variance = N * Q, N * Q * (1 - Q)  # shuffling into batches would have variance 0
    assert abs(sizes.mean() - mean) < 6 * math.sqrt(variance / DRAWS)
    assert abs(sizes.var(ddof=1) / variance - 1) < 6 * math.sqrt(2 / DRAWS)


@pytest.mark.parametrize("kind", ["secret", "seeded"])
def test_every_unit_joins_as_often_and_independently_of_the_others(kind: str) -> None:
    joined = np.zeros((DRAWS, N))
    for row, sample in zip(joined, many(kind), strict=True):
        row[sample] = 1
    counts = joined.sum(axis=0)
    chi2 = ((counts - DRAWS * Q) ** 2 / (DRAWS * Q * (1 - Q))).sum()
    assert stats.chi2.sf(chi2, N) > FALSE_ALARM
    correlation = np.corrcoef(joined[:, :-1].reshape(-1), joined[:, 1:].reshape(-1))[0, 1]
    assert abs(correlation) < 6 / math.sqrt(DRAWS * (N - 1))
    from_step_to_step = np.corrcoef(joined[:-1].reshape(-1), joined[1:].reshape(-1))[0, 1]
    assert abs(from_step_to_step) < 6 / math.sqrt((DRAWS - 1) * N)


def test_no_seed_changes_or_repeats_a_secret_sample() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    first = secret()
    torch.manual_seed(0)
    np.random.seed(0)
    assert not np.array_equal(first, secret())  # they agree with probability 1e-47


def test_a_seeded_sample_repeats_and_leaves_torchs_global_state() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = seeded()
    torch.manual_seed(1)
    assert np.array_equal(first, seeded())
    torch.manual_seed(0)
    assert torch.equal(before, torch.random.get_rng_state())


@given(
    population=st.integers(0, 300),
    rate=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**31),
)
def test_a_sample_holds_distinct_indices_in_order(population: int, rate: float, seed: int) -> None:
    random: RandomSource = InsecureSeededRandom(seed, insecure_rng=True)
    for sample in (
        secret_poisson_sample(population, rate, random),
        seeded_poisson_sample(population, rate, seeded_generator(seed)),
    ):
        assert np.array_equal(sample, np.unique(sample))
        assert ((sample >= 0) & (sample < population)).all()


def test_rate_one_takes_everybody_and_an_empty_population_gives_an_empty_sample() -> None:
    generator = seeded_generator(0)
    assert len(secret_poisson_sample(50, 1.0, SecureRandom())) == 50
    assert len(seeded_poisson_sample(50, 1.0, generator)) == 50
    assert len(secret_poisson_sample(0, 0.5, SecureRandom())) == 0
    assert len(seeded_poisson_sample(0, 0.5, generator)) == 0


# --- the generator of views ----------------------------------------------------------------


def test_a_secret_generator_is_torchs_mersenne_twister_with_a_secret_state() -> None:
    """As numpy runs the same algorithm from the same 624 words."""
    words = np.floor(InsecureSeededRandom(3, insecure_rng=True).uniform(624) * 2.0**32)
    twister = np.random.RandomState()
    twister.set_state(("MT19937", words.astype(np.uint32), 624, 0, 0.0))
    outputs = np.frombuffer(twister.bytes(4 * 2000), dtype="<u4")
    generator = secret_generator(InsecureSeededRandom(3, insecure_rng=True))
    drawn = torch.rand(2000, generator=generator).numpy()
    assert np.array_equal(drawn, (outputs % 2**24) / 2**24)  # what a float32 holds of a word


def test_no_seed_repeats_the_views_of_a_step() -> None:
    random = SecureRandom()
    draws = []
    for source in (random, random, SecureRandom()):
        torch.manual_seed(0)
        draws.append(torch.rand(8, generator=secret_generator(source)))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_secret_generator_draws_uniformly() -> None:
    draws = torch.rand(200_000, generator=secret_generator(SecureRandom())).numpy()
    assert stats.kstest(draws, "uniform").pvalue > FALSE_ALARM
