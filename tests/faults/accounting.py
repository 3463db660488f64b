"""Planted faults of accounting: figures that are smaller than what was spent."""

import dp_accounting
from dp_accounting import rdp


def renyi_that_ignores_the_adjacency(noise_multiplier: float, delta: float) -> float:
    """ε of one plain Gaussian release under replace-one, by dp-accounting's own RDP.

    `RdpAccountant(REPLACE_ONE)` leaves the adjacency aside for a plain Gaussian.
    """
    accountant = rdp.RdpAccountant(
        neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    accountant.compose(dp_accounting.GaussianDpEvent(noise_multiplier))
    return float(accountant.get_epsilon(delta))
