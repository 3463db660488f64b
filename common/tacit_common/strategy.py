"""The strategy plug-in point: what the server does with the mean update."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

ParameterVector = NDArray[np.float32]
"""All trained parameters of a model, flattened in order of their names: [P]."""


@dataclass(frozen=True)
class StrategyState:
    """Everything that a strategy carries from round to round; written to each checkpoint.

    `round` is the last round applied; `moments` are vectors [P] that the strategy names.
    """

    parameters: ParameterVector
    round: int = 0
    moments: dict[str, ParameterVector] = field(default_factory=dict)


@runtime_checkable
class Strategy(Protocol):
    """State in, state out.

    The mean update [P] was made private before it comes here: weights and noise belong
    to the privacy plan, so whatever a strategy does is post-processing.
    """

    def init(self, parameters: ParameterVector) -> StrategyState:
        """The state before the first round."""
        ...

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        """The state after one more round; must not change `state`."""
        ...
