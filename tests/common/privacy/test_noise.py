"""Noise: where randomness comes from, and the mechanism that spends it."""

import hashlib
import math
import os
import random
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tacit_common.errors import NonFiniteUpdateError, PrivacyConfigError
from tacit_common.privacy import (
    GaussianRelease,
    InsecureSeededRandom,
    LatticeGaussian,
    PoissonGaussianSteps,
    PrivacyMechanism,
    RandomSource,
    SecureRandom,
)

FALSE_ALARM = 1e-7  # secure draws cannot be seeded, so each test may fail this often by chance


def seeded(seed: int = 0) -> InsecureSeededRandom:
    return InsecureSeededRandom(seed, insecure_rng=True)


def correlation(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Sample correlation in standard errors: about N(0, 1) for independent draws."""
    return float(np.corrcoef(left, right)[0, 1]) * math.sqrt(len(left))


# --- distributions ----------------------------------------------------------------------


def departures_from_normal(draws: NDArray[np.float64]) -> list[str]:
    """What is not as it is for standard normal draws: the whole distribution, and four moments."""
    n = len(draws)
    moments = {
        "mean": draws.mean() * math.sqrt(n),
        "variance": (draws.var() - 1) * math.sqrt(n / 2),
        "skewness": (draws**3).mean() * math.sqrt(n / 15),
        "kurtosis": ((draws**4).mean() - 3) * math.sqrt(n / 96),
    }
    found = [name for name, errors in moments.items() if abs(errors) >= 6]
    if stats.kstest(draws, "norm").pvalue <= FALSE_ALARM:
        found.append("distribution")
    return found


def test_gaussian_draws_are_normal() -> None:
    assert departures_from_normal(SecureRandom().gaussian(200_001)) == []


@pytest.mark.parametrize(
    ("planted", "caught_by"),
    [
        (lambda z: 0.98 * z, "variance"),
        (lambda z: 1.02 * z, "variance"),
        (lambda z: z + 0.02, "mean"),
        (lambda z: np.where(z > 0, 1.02 * z, z), "skewness"),
        (lambda z: np.where(np.abs(z) > 2, 0.98 * z, z), "kurtosis"),
        (lambda z: np.round(z * 50) / 50, "distribution"),
    ],
    ids=["2 % less", "2 % more", "shifted", "one side", "tails", "coarse"],
)
def test_a_planted_bias_of_two_per_cent_is_caught(
    planted: Callable[[NDArray[np.float64]], NDArray[np.float64]], caught_by: str
) -> None:
    """A million draws of the same source, bent by 2 %: the tests above would notice."""
    draws = SecureRandom().gaussian(1_000_000)
    assert departures_from_normal(draws) == []
    assert caught_by in departures_from_normal(planted(draws))


def test_a_sampling_rate_that_is_two_per_cent_too_high_is_caught() -> None:
    n, rate = 1_000_000, 0.25

    def errors(p: float) -> float:
        joined = SecureRandom().bernoulli(n, p).sum()
        return float(joined - n * rate) / math.sqrt(n * rate * (1 - rate))

    assert abs(errors(rate)) < 6
    assert errors(1.02 * rate) > 6


def test_gaussian_draws_are_independent_of_one_another() -> None:
    draws = SecureRandom().gaussian(1 << 17)
    for lag in (1, 1 << 14, 1 << 15):  # neighbours, the other half of a pair, the next chunk
        assert abs(correlation(draws[:-lag], draws[lag:])) < 6
        assert abs(correlation(draws[:-lag] ** 2, draws[lag:] ** 2)) < 6


def test_uniform_draws_are_uniform_and_inside_the_open_interval() -> None:
    draws = SecureRandom().uniform(200_000)
    assert stats.kstest(draws, "uniform").pvalue > FALSE_ALARM
    assert draws.min() > 0
    assert draws.max() < 1


def test_mistake_8_poisson_sample_sizes_have_the_binomial_mean_and_variance() -> None:
    n, q, trials = 2000, 0.03, 3000
    source = SecureRandom()
    sizes = np.array([source.bernoulli(n, q).sum() for _ in range(trials)])
    variance = n * q * (1 - q)
    assert abs(sizes.mean() - n * q) < 6 * math.sqrt(variance / trials)
    assert abs(sizes.var(ddof=1) / variance - 1) < 6 * math.sqrt(2 / trials)


def test_mistake_8_every_record_is_sampled_at_the_same_rate() -> None:
    n, q, trials = 500, 0.2, 2000
    source = SecureRandom()
    times = sum(source.bernoulli(n, q).astype(np.int64) for _ in range(trials))
    assert np.all(np.abs(times - trials * q) < 8 * math.sqrt(trials * q * (1 - q)))


def test_a_sampling_rate_of_one_takes_all_and_a_rate_of_zero_none() -> None:
    source = SecureRandom()
    assert source.bernoulli(100_000, 1.0).all()
    assert not source.bernoulli(100_000, 0.0).any()
    assert not source.bernoulli(100_000, 2.0**-80).any()


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_rate_that_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(PrivacyConfigError, match="probability"):
        SecureRandom().bernoulli(3, bad)


@pytest.mark.parametrize("n", [0, 1, 2, 7, (1 << 15) - 1, (1 << 15) + 1])
def test_any_number_of_draws_can_be_asked_for(n: int) -> None:
    source = SecureRandom()
    assert source.gaussian(n).shape == source.uniform(n).shape == (n,)
    assert source.bernoulli(n, 0.5).shape == (n,)
    assert np.isfinite(source.gaussian(n)).all()


@pytest.mark.parametrize("word", [0, 2**64 - 1])
def test_extreme_keystream_words_give_finite_draws(word: int) -> None:
    class Stuck(SecureRandom):
        def _words(self, n: int) -> NDArray[np.uint64]:
            return np.full(n, word, dtype=np.uint64)

    assert 0 < Stuck().uniform(1)[0] < 1
    draws = Stuck().gaussian(2)
    assert np.isfinite(draws).all()
    assert np.abs(draws).max() <= 9.5


# --- secrecy ----------------------------------------------------------------------------


def test_mistake_14_the_same_seed_gives_different_noise() -> None:
    def draw() -> NDArray[np.float64]:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        return SecureRandom().gaussian(1000)

    assert abs(correlation(draw(), draw())) < 6


def test_secure_noise_does_not_move_the_generators_of_training() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    SecureRandom().gaussian(1000)
    assert torch.equal(torch.rand(4), expected)


def draw_in_forked_children(source: RandomSource, children: int) -> list[NDArray[np.float64]]:
    results = []
    for _ in range(children):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, source.gaussian(4000).tobytes())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            results.append(np.frombuffer(pipe.read(), dtype=np.float64))
        assert os.waitpid(child, 0)[1] == 0
    return results


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_mistake_13_a_forked_child_does_not_repeat_its_parents_or_siblings_noise() -> None:
    source = SecureRandom()
    draws = [*draw_in_forked_children(source, 2), source.gaussian(4000)]
    for i in range(3):
        for j in range(i):
            assert abs(correlation(draws[i], draws[j])) < 6
    # The planted fault: a source that is not keyed anew repeats itself exactly.
    first, second = draw_in_forked_children(seeded(), 2)
    assert np.array_equal(first, second)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_while_another_thread_draws_is_not_locked_out() -> None:
    source = SecureRandom()
    source._lock.acquire()  # as another thread of the parent might hold it
    (draws,) = draw_in_forked_children(source, 1)
    source._lock.release()
    assert draws.shape == (4000,)


def test_mistake_13_tensors_of_one_source_do_not_share_noise() -> None:
    source = SecureRandom()
    assert abs(correlation(source.gaussian(50_000), source.gaussian(50_000))) < 6


def test_threads_that_share_a_source_never_share_keystream() -> None:
    source = SecureRandom()
    draws: list[NDArray[np.float64]] = []

    def work() -> None:
        draws.extend(source.uniform(50) for _ in range(400))

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # makes a race likely
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    everything = np.concatenate(draws)
    assert len(np.unique(everything)) == len(everything) == 4 * 400 * 50


def test_past_draws_cannot_be_made_again_from_the_present_state() -> None:
    source = SecureRandom()
    before = source._key
    past = source.uniform(100)
    assert source._key != before
    later = SecureRandom()
    later._key = source._key  # what an intruder reads afterwards
    assert not np.isin(later.uniform(100_000), past).any()


def test_a_seeded_source_repeats_itself_and_has_to_be_called_insecure() -> None:
    assert np.array_equal(seeded(1).gaussian(70_000), seeded(1).gaussian(70_000))
    assert not np.array_equal(seeded(1).gaussian(10), seeded(2).gaussian(10))
    assert not isinstance(seeded(), SecureRandom)
    with pytest.raises(PrivacyConfigError, match="seeded"):
        InsecureSeededRandom(1, insecure_rng=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        InsecureSeededRandom(1)  # type: ignore[call-arg]


def test_the_keystream_is_the_one_of_aes_256_ctr() -> None:
    # Tacit's own vector: AES-256-CTR by an independent call, key = SHA-256("insecure:5").
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    key = hashlib.sha256(b"insecure:5").digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(32 + 16))
    words = np.frombuffer(stream[32:], dtype="<u8")
    expected = [((int(word) >> 12) * 2 + 1) / 2**53 for word in words]
    assert seeded(5).uniform(2).tolist() == expected


# --- the mechanism ----------------------------------------------------------------------


def mechanism(
    dimension: int,
    *,
    clip: float = 1.0,
    noise_multiplier: float = 1.0,
    source: RandomSource | None = None,
) -> LatticeGaussian:
    return LatticeGaussian(
        l2_clip_norm=clip,
        dimension=dimension,
        noise_multiplier=noise_multiplier,
        source=source or SecureRandom(),
    )


def test_the_lattice_and_the_sensitivity_are_those_of_the_specification() -> None:
    lattice = mechanism(10_000, clip=2.0, noise_multiplier=1.5)
    assert lattice.lattice_step == 2.0 / (64 * 100)
    exact = 2.0 * (1 + 1 / 64)
    assert exact < lattice.l2_sensitivity < exact * (1 + 1e-6)
    assert lattice.noise_stddev == 1.5 * lattice.l2_sensitivity


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.floats(1e-3, 1e3),
    st.floats(0.1, 10.0),
)
def test_every_released_coordinate_is_a_point_of_the_lattice(
    values: list[float], clip: float, noise_multiplier: float
) -> None:
    lattice = mechanism(len(values), clip=clip, noise_multiplier=noise_multiplier)
    released = lattice.apply(torch.tensor(values, dtype=torch.float64))
    points = (released / lattice.lattice_step).round()
    assert torch.equal(points * lattice.lattice_step, released)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.floats(1e-3, 1e3), st.randoms(use_true_random=False), st.booleans())
def test_one_unit_moves_the_rounded_sum_by_at_most_the_sensitivity(
    dimension: int, clip: float, rng: random.Random, ties: bool
) -> None:
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    step = mechanism(dimension, clip=clip).lattice_step
    total = torch.randn(dimension, dtype=torch.float64, generator=generator) * 10 * clip
    if ties:  # where rounding is at its worst
        total = ((total / step).floor() + 0.5 - 1e-9) * step
    unit = torch.randn(dimension, dtype=torch.float64, generator=generator)
    unit = unit / unit.norm() * clip
    # One seed gives one noise, so the difference is that of the rounded sums alone.
    with_unit, without = (
        mechanism(dimension, clip=clip, source=seeded()).apply(s) for s in (total + unit, total)
    )
    assert float((with_unit - without).norm()) <= mechanism(dimension, clip=clip).l2_sensitivity


def test_rounding_at_ties_adds_what_the_sensitivity_allows_for() -> None:
    below = torch.full((400,), 0.5 - 1e-6, dtype=torch.float64)
    above = torch.full((400,), 0.5 + 1e-6, dtype=torch.float64)
    step = mechanism(400).lattice_step
    released = [mechanism(400, source=seeded()).apply(s * step) for s in (below, above)]
    assert float((released[1] - released[0]).norm()) == pytest.approx(step * 20)  # γ√d


def test_the_noise_does_not_see_the_fraction_that_was_rounded_away() -> None:
    step = mechanism(1000).lattice_step
    total = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    noise = [
        mechanism(1000, source=seeded()).apply(s) / step - (s / step).round()
        for s in (total, torch.zeros_like(total))
    ]
    assert torch.equal(noise[0].round(), noise[1].round())


def test_the_noise_has_the_stated_deviation_and_is_normal() -> None:
    lattice = mechanism(200_000, clip=3.0, noise_multiplier=0.8)
    noise = lattice.apply(torch.zeros(200_000, dtype=torch.float64)).numpy() / lattice.noise_stddev
    assert abs(noise.std() - 1) < 6 / math.sqrt(2 * noise.size)
    assert stats.kstest(noise, "norm").pvalue > FALSE_ALARM


def test_noise_is_added_to_an_empty_batch_too() -> None:
    assert bool((mechanism(50).apply(torch.zeros(50, dtype=torch.float64)) != 0).any())


def test_the_argument_is_left_as_it_was() -> None:
    total = torch.linspace(-1, 1, 9, dtype=torch.float64)
    mechanism(9).apply(total)
    assert torch.equal(total, torch.linspace(-1, 1, 9, dtype=torch.float64))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_mistake_5_a_sum_that_is_not_finite_is_never_released(bad: float) -> None:
    with pytest.raises(NonFiniteUpdateError):
        mechanism(3).apply(torch.tensor([0.0, bad, 1.0], dtype=torch.float64))


def test_a_sum_beyond_the_exact_integers_is_refused() -> None:
    with pytest.raises(PrivacyConfigError, match="lattice"):
        mechanism(2).apply(torch.tensor([0.0, 1e16], dtype=torch.float64))


@pytest.mark.parametrize(
    "total",
    [
        torch.zeros(3, dtype=torch.float32),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(3, 1, dtype=torch.float64),
    ],
)
def test_a_sum_of_another_type_or_shape_is_refused(total: torch.Tensor) -> None:
    with pytest.raises(PrivacyConfigError, match="float64"):
        mechanism(3).apply(total)


@pytest.mark.parametrize(
    "make",
    [
        lambda: mechanism(0),
        lambda: mechanism(3, clip=0.0),
        lambda: mechanism(3, clip=math.inf),
        lambda: mechanism(3, noise_multiplier=0.0),
        lambda: mechanism(3, noise_multiplier=math.nan),
        lambda: mechanism(3, noise_multiplier=1e15),
        lambda: mechanism(3, clip=1e-300),
    ],
)
def test_parameters_that_give_no_sound_mechanism_are_refused(
    make: Callable[[], LatticeGaussian],
) -> None:
    with pytest.raises(PrivacyConfigError):
        make()


def test_events_state_the_multiplier_that_the_noise_really_has() -> None:
    lattice = mechanism(10, noise_multiplier=1.25)
    assert isinstance(lattice, PrivacyMechanism)
    assert lattice.event(sampling_rate=0.1, steps=4) == PoissonGaussianSteps(
        sampling_rate=0.1, noise_multiplier=1.25, steps=4
    )
    assert lattice.release_event() == GaussianRelease(noise_multiplier=1.25)
