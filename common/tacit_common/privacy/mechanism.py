"""The privacy mechanism plug-in point."""

from typing import Protocol, runtime_checkable

from torch import Tensor

from tacit_common.privacy.events import PrivacyEvent


@runtime_checkable
class PrivacyMechanism(Protocol):
    """Makes the sum of clipped contributions private.

    `apply(clipped_sum)` is what leaves; `l2_sensitivity` bounds, in L2 norm, what one
    unit changes in `clipped_sum` (zero-out adjacency), rounding included.
    """

    @property
    def l2_sensitivity(self) -> float:
        """L2 sensitivity of what the noise is added to."""
        ...

    def apply(self, clipped_sum: Tensor) -> Tensor:
        """The private sum, of the shape of `clipped_sum` (float64, [P])."""
        ...

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        """What accounting needs to know of `steps` applications at this sampling rate."""
        ...
