"""The probe plug-in point: statistics at the site, solution at the server, and the price.

A probe asks how useful the encoder's features are. The site turns its labelled features
into one vector whose every record contributes at most `l2_sensitivity`; noise is added
to that vector (or none, under mode `none`); the server solves from the sum over sites.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A share in [0, 1] with a 95 % confidence interval, and what the interval covers."""

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class PublicBasis:
    """Public constants by which features are reduced: computed on procedural images alone.

    reduced = (features - mean) @ components, with mean [D] and components [D, K].
    """

    mean: FloatArray
    components: FloatArray


@runtime_checkable
class Classifier(Protocol):
    """What the server solved for."""

    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        """Classes [N] of features [N, D]."""
        ...


@runtime_checkable
class Probe(Protocol):
    """Statistics at the site, solution at the server."""

    @property
    def l2_sensitivity(self) -> float:
        """Bound on the L2 norm of one record's contribution to the statistics."""
        ...

    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        """Sum over records, [S], from features [N, D] and labels [N]; N = 0 gives zeros."""
        ...

    def solve(self, statistics: FloatArray, basis: PublicBasis) -> Classifier:
        """The classifier from the (noisy) sum of all sites' statistics [S]."""
        ...
