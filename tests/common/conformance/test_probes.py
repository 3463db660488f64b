"""Sound probes conform, and every clause for them catches a fault planted for it."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tacit_common.probes.contract import FloatArray, PublicBasis
from tacit_common.probes.ridge import RidgeProbe
from tacit_common.testing import ConformanceError, check_probe


class _Means:
    """A sound probe: sums of clipped features per class; faults override a part."""

    l2_sensitivity = 1.0

    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        reduced = (features - basis.mean) @ basis.components
        sums = np.zeros((3, basis.components.shape[1]))
        np.add.at(sums, labels, self.bound(reduced))
        return sums.ravel()

    def bound(self, features: FloatArray) -> FloatArray:
        norms: FloatArray = np.linalg.norm(features, axis=1, keepdims=True)
        bounded: FloatArray = features / np.maximum(norms, 1)
        return bounded

    def solve(self, statistics: FloatArray, basis: PublicBasis) -> "_Means":
        self.sums = statistics.reshape(3, -1)
        return self

    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        scores = features @ self.sums.T
        classes: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
        return classes


def projection() -> PublicBasis:
    rng = np.random.default_rng(0)
    return PublicBasis(rng.normal(size=6), np.linalg.qr(rng.normal(size=(6, 4)))[0])


def test_sound_probes_conform() -> None:
    check_probe(_Means(), 6, 3)
    check_probe(RidgeProbe(classes=3), 6, 3)
    check_probe(RidgeProbe(classes=3), 6, 3, basis=projection())
    check_probe(RidgeProbe(classes=60), 6, 60)


class _InfiniteBound(_Means):
    l2_sensitivity = math.inf


class _NotClipped(_Means):
    def bound(self, features: FloatArray) -> FloatArray:
        return features


class _Normalised(_Means):
    def bound(self, features: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            bounded: FloatArray = features / np.linalg.norm(features, axis=1, keepdims=True)
        return bounded


class _Prior(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        return super().statistics(features, labels, basis) + 0.01


class _Mean(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        return super().statistics(features, labels, basis) / max(len(features), 1)


class _ClassesSeen(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        sums = super().statistics(features, labels, basis).reshape(3, -1)
        return sums[np.unique(labels)].ravel() if len(labels) else sums.ravel()


class _CentresInPlace(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        before = super().statistics(features, labels, basis)
        features *= 0.5
        return before


class _OneTooMany(_Means):
    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        return super().predict(features) + 1


class _Scores(_Means):
    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        return super().predict(features).astype(np.float64)


@pytest.mark.parametrize(
    ("probe", "clause"),
    [
        (object(), "a probe has l2_sensitivity, statistics, solve"),
        (_InfiniteBound(), "l2_sensitivity is finite, positive"),
        (_NotClipped(), "one record adds at most l2_sensitivity"),
        (_Normalised(), "one record adds at most l2_sensitivity"),
        (_Prior(), "no records give a vector of zeros"),
        (_Mean(), "statistics are the sum over records"),
        (_ClassesSeen(), "statistics have one shape [S]"),
        (_CentresInPlace(), "statistics leave their arguments as they were"),
        (_OneTooMany(), "predictions are classes [N], from noisy statistics too"),
        (_Scores(), "predictions are classes [N], from noisy statistics too"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_probe_is_found(probe: _Means, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_probe(probe, 6, 3)
    assert caught.value.clause == clause
