"""A linear classifier in closed form from one private release (docs/privacy.md 6).

A site sends sums over its records; ridge regression needs nothing else (Vu, Slavkovic
2009, "sufficient statistics perturbation"; Wang, arXiv 1803.02596). The server adds the
sites' sums up and solves.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tacit_common.errors import DataError, NonFiniteUpdateError, WireError
from tacit_common.probes.contract import FloatArray, PublicBasis

INTERCEPT = 0.1
"""The constant feature b that every record carries beside its reduced features."""

RADIUS = np.sqrt(1 - INTERCEPT**2) * (1 - 1e-12)
"""Largest norm of the reduced features; the last factor keeps rounding inside the bound."""

NOISE_MARGIN = 1.5
"""λ over the spectral norm of the Gram matrix's noise."""

SMALLEST_RIDGE = 1e-3
"""λ over the mean eigenvalue of the Gram matrix, when there is no noise."""


@dataclass(frozen=True)
class BlockShares:
    """How the squared sensitivity, 3, is shared among the three blocks of the statistics.

    (1, 1, 1) is the plain vector [φφᵀ, φyᵀ, y]. Any shares that add to 3 keep its bound
    √3. Noise is the same on every number sent, and a classifier under noise depends
    most on the sums per class, so those get the most.
    """

    gram: float = 0.5
    cross: float = 2.4
    counts: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.gram, self.cross, self.counts)
        if min(shares) <= 0 or sum(shares) > 3 * (1 + 1e-12):
            raise DataError(
                "the shares of the probe's blocks are not valid",
                why=f"{shares} are not positive numbers that add to at most 3",
                fix="leave them out, or give three positive shares that add to 3",
            )


@dataclass(frozen=True)
class RidgeClassifier:
    """Scores φ @ weights, with φ [D] the bounded features; `ridge` is the λ that was used."""

    basis: PublicBasis
    weights: FloatArray
    ridge: float

    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        """Classes [N] of features [N, D]."""
        scores = bounded_features(features, self.basis) @ self.weights  # [N, classes]
        predicted: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
        return predicted


@dataclass(frozen=True)
class RidgeProbe:
    """One-hot ridge regression on features reduced by a public basis.

    With φ [D] the bounded features of a record (`bounded_features`) and y its one-hot
    label, a record contributes [√g·(upper triangle of φφᵀ, off-diagonal times √2),
    √c·vec(φyᵀ), √n·y] for shares g + c + n = 3. Since ‖φ‖ ≤ 1, its squared norm is
    g‖φ‖⁴ + c‖φ‖² + n ≤ 3.
    """

    classes: int
    shares: BlockShares = BlockShares()

    @property
    def l2_sensitivity(self) -> float:
        """√3, which bounds the norm of a record's contribution."""
        return float(np.sqrt(3.0))

    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        """Sum over records [S] from features [N, D] and labels [N].

        A record whose features are not finite, or whose label is outside [0, classes),
        contributes nothing: raising would tell that the site holds such a record.

        Raises:
            DataError: the arrays do not fit each other or the basis.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise DataError(
                "a probe cannot pair features with labels",
                why=f"features have shape {features.shape}, labels {labels.shape}",
                fix="give features [N, D] and one label for each of the N records",
            )
        phi = bounded_features(features, basis)  # [N, K]
        one_hot = (labels[:, None] == np.arange(self.classes)).astype(np.float64)  # [N, classes]
        # A record without a usable half loses the other half too: all or nothing.
        phi *= one_hot.any(axis=1, keepdims=True)
        one_hot *= phi.any(axis=1, keepdims=True)
        rows, columns, unfold = _triangle(phi.shape[1])
        return np.concatenate(
            [
                np.sqrt(self.shares.gram) * unfold * (phi.T @ phi)[rows, columns],
                np.sqrt(self.shares.cross) * (phi.T @ one_hot).reshape(-1),
                np.sqrt(self.shares.counts) * one_hot.sum(axis=0),
            ]
        )

    def solve(self, statistics: FloatArray, basis: PublicBasis) -> RidgeClassifier:
        """The classifier W = (G + λI)⁻¹ Φᵀ Y from the (noisy) sum of all sites' statistics.

        The noisy Gram matrix is symmetric by construction; its negative eigenvalues,
        which only noise can make, become zero.

        λ = SMALLEST_RIDGE · tr(G)/D + NOISE_MARGIN · s√(2D). Noise of standard deviation
        s on the diagonal and s/√2 beside it has spectral norm close to s√(2D) (Wigner's
        semicircle), which is how far it moves any eigenvalue (Weyl): directions whose
        eigenvalue is smaller are indistinguishable from noise, and are shrunk. s comes
        from the statistics themselves, see `_noise_stddev`.

        Raises:
            WireError: the statistics have another length than the basis asks for.
            NonFiniteUpdateError: they hold NaN or infinity.
        """
        size = basis.components.shape[1] + 1
        gram, cross, counts = self._unpack(statistics, size)
        stddev = self._noise_stddev(gram, cross, counts)
        gram_noise_norm = stddev / np.sqrt(self.shares.gram) * np.sqrt(2 * size)
        eigenvalues, vectors = np.linalg.eigh(gram)
        eigenvalues = eigenvalues.clip(min=0.0)
        # The tiny constant keeps an empty federation solvable: W is zero then.
        ridge = SMALLEST_RIDGE * eigenvalues.mean() + NOISE_MARGIN * gram_noise_norm + 1e-12
        weights = vectors @ ((vectors.T @ cross) / (eigenvalues + ridge)[:, None])
        return RidgeClassifier(basis, weights, float(ridge))

    def _unpack(
        self, statistics: FloatArray, size: int
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Gram matrix [D, D], sums per class [D, classes] and class counts [classes]."""
        rows, columns, unfold = _triangle(size)
        lengths = [len(rows), size * self.classes, self.classes]
        if statistics.shape != (sum(lengths),):
            raise WireError(
                "probe statistics do not fit the study",
                why=f"they have shape {statistics.shape}, ({sum(lengths)},) is expected",
                fix="both sides must run the same Tacit version on the same study",
            )
        if not np.isfinite(statistics).all():
            raise NonFiniteUpdateError(
                "probe statistics hold NaN or infinity",
                why="a site sent them so",
                fix="leave that site out, and check its log",
            )
        triangle, cross, counts = np.split(statistics, np.cumsum(lengths)[:-1])
        gram = np.zeros((size, size))
        gram[rows, columns] = gram[columns, rows] = triangle / unfold / np.sqrt(self.shares.gram)
        return (
            gram,
            cross.reshape(size, self.classes) / np.sqrt(self.shares.cross),
            counts / np.sqrt(self.shares.counts),
        )

    def _noise_stddev(self, gram: FloatArray, cross: FloatArray, counts: FloatArray) -> float:
        """Standard deviation of the noise on one number of the statistics; 0 without noise.

        The statistics say some things twice, because every record has exactly one class
        and the constant feature b: a feature's sum is Gram[k, last]/b and also its sum
        over classes; a class's count is cross[last, c]/b and also counts[c]. What the
        two differ by is noise alone, of known variance in units of s².
        """
        b, shares = INTERCEPT, self.shares
        of_features = gram[:-1, -1] - b * cross[:-1].sum(axis=1)
        variance_of_features = 1 / (2 * shares.gram) + b**2 * self.classes / shares.cross
        of_classes = cross[-1] - b * counts
        variance_of_classes = 1 / shares.cross + b**2 / shares.counts
        squares = [of_features**2 / variance_of_features, of_classes**2 / variance_of_classes]
        return float(np.sqrt(np.concatenate(squares).mean()))


def bounded_features(features: FloatArray, basis: PublicBasis) -> FloatArray:
    """Reduced features of norm at most RADIUS, and the constant b: [N, K + 1] from [N, D].

    Guarantees: every row has L2 norm at most 1, whatever the features; a row whose
    features are not finite is zero.

    Raises:
        DataError: the features do not fit the basis.
    """
    if features.ndim != 2 or features.shape[1] != basis.mean.shape[0]:
        raise DataError(
            "features do not fit the probe's basis",
            why=f"features have shape {features.shape}, the basis takes {basis.mean.shape[0]}",
            fix="make the basis with the encoder that makes the features",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        reduced = (features.astype(np.float64) - basis.mean) @ basis.components  # [N, K]
    usable = np.isfinite(reduced).all(axis=1, keepdims=True)
    reduced = np.where(usable, reduced, 0.0)
    # The largest value first: the square of a huge one would overflow.
    reduced /= np.abs(reduced).max(axis=1, keepdims=True).clip(min=1.0)
    reduced *= RADIUS / np.linalg.norm(reduced, axis=1, keepdims=True).clip(min=1.0)
    return np.concatenate([reduced, INTERCEPT * usable], axis=1)


def _triangle(size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], FloatArray]:
    """Rows and columns of the upper triangle, and the factor that keeps the matrix's norm."""
    rows, columns = np.triu_indices(size)
    return rows, columns, np.where(rows == columns, 1.0, np.sqrt(2.0))
