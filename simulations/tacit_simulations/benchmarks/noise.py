"""How many noise values and sampling coins a core draws a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_simulations.benchmarks.measure import Samples, Track, in_fresh_process
from tacit_simulations.benchmarks.record import Figure, summarise

GAUSSIAN_TARGET_S = 1 / 20  # for a million: 20 million a second
_MILLION = 1_000_000


@dataclass(frozen=True)
class Plan:
    """What to measure."""

    draws: int  # at a time
    repetitions: int


FULL = Plan(draws=10 * _MILLION, repetitions=9)
QUICK = Plan(draws=_MILLION, repetitions=5)


def measure(plan: Plan, track: Track) -> list[Figure]:
    """Gaussian draws, sampling coins, and the whole release of a noisy sum."""
    with track.measuring("draws"):
        samples = in_fresh_process(
            "noise:draw_times", draws=plan.draws, repetitions=plan.repetitions
        )
    condition = f"{plan.draws:,} at a time, one thread"
    figures = []
    for name, target in (
        ("Gaussian draws", 1e3 * GAUSSIAN_TARGET_S),
        ("sampling coins", None),
        ("lattice release", None),
    ):
        a_million = [1e3 * seconds * _MILLION / plan.draws for seconds in samples[name]]
        figures += summarise(f"a million {name}", a_million, "ms", condition, target=target)
    return figures


def draw_times(draws: int, repetitions: int) -> Samples:
    """Seconds of each kind of draw."""
    torch.set_num_threads(1)
    source = SecureRandom()
    mechanism = LatticeGaussian(
        l2_clip_norm=1.0, dimension=draws, noise_multiplier=1.0, source=source
    )
    total = torch.zeros(draws, dtype=torch.float64)
    kinds: dict[str, Callable[[], object]] = {
        "Gaussian draws": lambda: source.gaussian(draws),
        "sampling coins": lambda: source.bernoulli(draws, 0.1),
        "lattice release": lambda: mechanism.apply(total),
    }
    samples: Samples = {name: [] for name in kinds}
    for _ in range(repetitions):
        for name, draw in kinds.items():
            started = time.perf_counter()
            draw()
            samples[name].append(time.perf_counter() - started)
    return samples
