"""The public constants that features are reduced by before a probe sees them."""

import numpy as np

from tacit_common.errors import DataError
from tacit_common.probes.contract import FloatArray, PublicBasis

WHITENING = 0.75
"""Power by which the spread of a component is divided out: 0 is PCA, 1 full whitening."""

MEDIAN_NORM = 2.0
"""Norm of a median public record once reduced.

The norm is clipped to 1 later: at 2 nearly every record ends on the unit sphere, where
noise counts least, and a private record of half the usual size still does.
"""

SMALLEST_SPREAD = 1e-6
"""Components flatter than this share of the widest carry rounding only and become zero."""


def public_basis(features: FloatArray, dim: int) -> PublicBasis:
    """Principal components of public features [M, D], scaled for a private probe.

    Component k is v_k / s_k^WHITENING up to a common factor, with v_k the k-th principal
    direction and s_k the standard deviation along it, so that the budget of a clipped
    norm is not spent on the first few directions. The result has K = min(dim, D, M - 1)
    components; their signs are fixed, so that one input gives one basis.

    Raises:
        DataError: fewer than two records, values that are not finite, or no variance.
    """
    if features.ndim != 2 or len(features) < 2 or dim < 1:
        raise _unfit(
            f"public features have shape {features.shape} and {dim} components are asked for",
            fix="give an array [records, features] of two or more records, and dim of 1 or more",
        )
    if not np.isfinite(features).all():
        raise _unfit("some values are not finite", fix="check the encoder's parameters")
    mean = features.mean(axis=0)
    _, singular, directions = np.linalg.svd(features - mean, full_matrices=False)
    count = min(dim, features.shape[1], len(features) - 1)
    spread = singular[:count] / np.sqrt(len(features))  # [K]
    if not spread[0] > 0:
        raise _unfit("all records have equal features", fix="check the encoder's parameters")
    strongest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), strongest])
    carries = spread > SMALLEST_SPREAD * spread[0]
    factor = np.where(carries, np.where(carries, spread, 1.0) ** -WHITENING, 0.0)
    components = (directions * signs[:, None])[:count].T * factor  # [D, K]
    median = np.median(np.linalg.norm((features - mean) @ components, axis=1))
    if not median > 0:
        raise _unfit("most records have equal features", fix="check the encoder's parameters")
    return PublicBasis(mean=mean, components=components * (MEDIAN_NORM / median))


def _unfit(why: str, *, fix: str) -> DataError:
    return DataError("no probe basis can be made of the public features", why=why, fix=fix)
