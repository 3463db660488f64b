"""Planted faults of a site's secret draws: noise and samples that are not what is accounted.

Each takes the place of the site's `RandomSource`.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from tacit_common.privacy.noise import InsecureSeededRandom, RandomSource


class FaultyRandom:
    """A sound source in everything that a fault below does not change."""

    def __init__(self, sound: RandomSource) -> None:
        self.sound = sound

    def uniform(self, n: int) -> NDArray[np.float64]:
        return self.sound.uniform(n)

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        return self.sound.bernoulli(n, p)

    def gaussian(self, n: int) -> NDArray[np.float64]:
        return self.sound.gaussian(n)


class NoNoise(FaultyRandom):
    """Somebody turned the noise off to debug, and left it off."""

    def gaussian(self, n: int) -> NDArray[np.float64]:
        return np.zeros(n)


class QuarterNoise(FaultyRandom):
    """The noise was scaled twice: by one over the square root of 16 workers."""

    def gaussian(self, n: int) -> NDArray[np.float64]:
        return super().gaussian(n) / 4


class NoiseFromTheSeededGenerator(FaultyRandom):
    """The generator of training: who knows the study's seed can subtract the noise."""

    def gaussian(self, n: int) -> NDArray[np.float64]:
        return torch.randn(n, dtype=torch.float64).numpy()


class NoiseEverySecondStep(FaultyRandom):
    """Gradients are accumulated over two steps and noised once; two steps are accounted."""

    _calls = 0

    def gaussian(self, n: int) -> NDArray[np.float64]:
        self._calls += 1
        return super().gaussian(n) if self._calls % 2 else np.zeros(n)


class OneKeyForEveryTensor(FaultyRandom):
    """Each tensor's noise starts at the head of the same keystream."""

    def __init__(self, sound: RandomSource, sizes: list[int]) -> None:
        super().__init__(sound)
        self._sizes = sizes

    def gaussian(self, n: int) -> NDArray[np.float64]:
        if n != sum(self._sizes):
            return super().gaussian(n)
        stream = super().gaussian(max(self._sizes))
        return np.concatenate([stream[:size] for size in self._sizes])


class KeyKeptAfterFork(InsecureSeededRandom):
    """A forked worker goes on with its parent's key."""

    def __init__(self) -> None:
        super().__init__(0, insecure_rng=True)


class FixedSizeBatches(FaultyRandom):
    """Shuffled epochs in batches of equal size, accounted for as Poisson samples."""

    def bernoulli(self, n: int, p: float) -> NDArray[np.bool_]:
        chosen = np.argsort(self.sound.uniform(n))[: round(n * p)]
        return np.isin(np.arange(n), chosen)
