"""Planted faults of the mechanism: noise that is scaled to less than what one unit changes."""

from tacit_common.privacy.noise import LatticeGaussian


class RoundingIsFree(LatticeGaussian):
    """The sensitivity is taken to be C, as if the lattice did not round."""

    @property
    def l2_sensitivity(self) -> float:
        return self.l2_clip_norm
