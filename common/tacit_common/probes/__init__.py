"""Probes: how useful an encoder's features are, at a price that accounting knows."""

from tacit_common.probes.basis import public_basis
from tacit_common.probes.confusion import (
    CONFUSION_L2_SENSITIVITY,
    accuracy_interval,
    confusion_statistics,
    wilson_interval,
)
from tacit_common.probes.contract import Classifier, FloatArray, Interval, Probe, PublicBasis
from tacit_common.probes.factory import build_probe
from tacit_common.probes.ridge import BlockShares, RidgeClassifier, RidgeProbe

__all__ = [
    "CONFUSION_L2_SENSITIVITY",
    "BlockShares",
    "Classifier",
    "FloatArray",
    "Interval",
    "Probe",
    "PublicBasis",
    "RidgeClassifier",
    "RidgeProbe",
    "accuracy_interval",
    "build_probe",
    "confusion_statistics",
    "public_basis",
    "wilson_interval",
]
