"""Sound mechanisms conform, and every clause for them catches a fault planted for it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.testing import ConformanceError, check_mechanism


class _Gaussian:
    """A sound mechanism; faults are planted by overriding a part."""

    l2_sensitivity = 2.0
    noise_multiplier = 1.5

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def noise(self, clipped_sum: Tensor) -> Tensor:
        draws = self.rng.normal(size=tuple(clipped_sum.shape))
        return torch.from_numpy(draws) * self.noise_multiplier * self.l2_sensitivity

    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum + self.noise(clipped_sum)

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return PoissonGaussianSteps(
            sampling_rate=sampling_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )


class _NonPrivate(_Gaussian):
    l2_sensitivity = math.inf

    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum.clone()

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return NonPrivateRelease()


class _OneRelease(_Gaussian):
    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return GaussianRelease(noise_multiplier=self.noise_multiplier)


@pytest.mark.parametrize(
    "mechanism",
    [
        _Gaussian(),
        _NonPrivate(),
        _OneRelease(),
        LatticeGaussian(
            l2_clip_norm=0.7, dimension=50, noise_multiplier=0.8, source=SecureRandom()
        ),
    ],
    ids=["own", "non-private", "one-release", "lattice"],
)
def test_sound_mechanisms_conform(mechanism: _Gaussian) -> None:
    check_mechanism(mechanism, 50)


class _UnknownEvent(_Gaussian):
    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return {"kind": "new_kind"}  # type: ignore[return-value]


class _NoSensitivity(_Gaussian):
    l2_sensitivity = 0.0


class _InfiniteSensitivity(_Gaussian):
    l2_sensitivity = math.inf

    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.normal(size=tuple(clipped_sum.shape)))


class _InPlace(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum.add_(self.noise(clipped_sum))


class _Float32(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(clipped_sum).float()


class _Shorter(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(clipped_sum)[1:]


class _NaN(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum * math.nan


class _NoNoise(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.zeros_like(clipped_sum)


class _TorchSeeded(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.randn_like(clipped_sum) * 3


class _Biased(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return super().noise(clipped_sum) + 0.3


class _Shrinks(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(0.5 * clipped_sum)


class _Weak(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return 0.9 * super().noise(clipped_sum)


class _OneDraw(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return super().noise(clipped_sum[:1]).expand_as(clipped_sum)


@pytest.mark.parametrize(
    ("mechanism", "clause"),
    [
        (object(), "a mechanism has l2_sensitivity, apply, event"),
        (_UnknownEvent(), "event is one of the events that accounting knows"),
        (_NoSensitivity(), "l2_sensitivity is positive"),
        (_InfiniteSensitivity(), "l2_sensitivity is finite"),
        (_InPlace(), "apply leaves its argument as it was"),
        (_Float32(), "apply keeps shape and dtype float64"),
        (_Shorter(), "apply keeps shape and dtype float64"),
        (_NaN(), "apply gives finite values"),
        (_NoNoise(), "two calls give different noise, whatever torch's seed"),
        (_TorchSeeded(), "two calls give different noise, whatever torch's seed"),
        (_OneDraw(), "coordinates have independent noise"),
        (_Biased(), "apply adds noise of mean zero"),
        (_Shrinks(), "the noise does not depend on the sum"),
        (_Weak(), "the noise is at least noise_multiplier × l2_sensitivity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_mechanism_is_found(mechanism: _Gaussian, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_mechanism(mechanism, 50)
    assert caught.value.clause == clause
