"""Accuracy of a classifier from a noisy confusion matrix, with an interval that includes it."""

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import DataError
from tacit_common.probes.contract import FloatArray, Interval

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

CONFUSION_L2_SENSITIVITY = 1.0
"""A record adds 1 to one cell, or nothing."""


def confusion_statistics(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int
) -> FloatArray:
    """Counts of (label, prediction), flattened: [classes²], from labels [N] and predictions [N].

    A record adds 1 to one cell; one with a class outside [0, classes) adds nothing.

    Raises:
        DataError: the arrays differ in length.
    """
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise DataError(
            "labels and predictions cannot be paired",
            why=f"they have shapes {labels.shape} and {predicted.shape}",
            fix="give one prediction for each of the N labels",
        )
    inside = (labels >= 0) & (labels < classes) & (predicted >= 0) & (predicted < classes)
    cells = labels[inside] * classes + predicted[inside]
    return np.bincount(cells, minlength=classes**2).astype(np.float64)


def accuracy_interval(confusion: FloatArray, classes: int, *, noise_stddev: float) -> Interval:
    """Accuracy and its 95 % interval from confusion counts [classes²] with Gaussian noise.

    The interval holds every accuracy p that the counts do not contradict. With T the
    noisy trace, N the noisy total, C classes and s the noise on a cell, T - pN has mean 0
    and variance Np(1-p) for the choice of records plus s²(C(1-p)² + C(C-1)p²) for the
    noise (C cells enter with 1-p, the others with -p), so p is kept when

        (T - pN)² ≤ z² (Np(1-p) + s²(C(1-p)² + C(C-1)p²)).

    Without noise this is Wilson's score interval (Wilson 1927); with noise and without
    the first term, Fieller's for a ratio (Fieller 1954).

    Raises:
        DataError: the counts do not fit the number of classes.
    """
    if confusion.shape != (classes**2,):
        raise DataError(
            "confusion counts do not fit",
            why=f"they have shape {confusion.shape}, ({classes**2},) is expected",
            fix="give the flattened matrix of the study's number of classes",
        )
    trace = float(confusion[:: classes + 1].sum())
    total = float(confusion.sum())
    noise = noise_stddev**2 * classes
    z2 = Z_95**2
    # a p² + b p + c ≤ 0 is the condition above; a ≤ 0 means that the total may be zero.
    a = total**2 + z2 * total - z2 * noise * classes
    b = -2 * trace * total - z2 * total + 2 * z2 * noise
    c = trace**2 - z2 * noise
    value = min(max(trace / total, 0.0), 1.0) if total > 0 else 0.5
    method = (
        "95 % Wilson score interval over the records"
        if noise_stddev == 0
        else "95 % score interval over the records and the privacy noise"
    )
    discriminant = b * b - 4 * a * c
    if total <= 0 or a <= 0 or discriminant < 0:
        return Interval(value, 0.0, 1.0, f"{method}; the noise hides the accuracy")
    root = float(np.sqrt(discriminant))
    low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
    return Interval(value, min(max(low, 0.0), value), max(min(high, 1.0), value), method)


def wilson_interval(correct: int, total: int) -> Interval:
    """The share `correct / total` with Wilson's 95 % score interval (Wilson 1927).

    Raises:
        DataError: the counts are not 0 ≤ correct ≤ total with a positive total.
    """
    if not 0 <= correct <= total or total == 0:
        raise DataError(
            "no share can be made of these counts",
            why=f"{correct} of {total} is not a share",
            fix="count correct records among one or more records",
        )
    return accuracy_interval(
        np.array([correct, total - correct, 0, 0], dtype=np.float64), 2, noise_stddev=0.0
    )
