"""What the server does with the mean update: the server optimisers of federated learning.

The arithmetic is that of Flower's strategies, operation by operation, which a test compares
bit for bit. Flower's own take messages, and copy every vector several times on the way.
"""

from dataclasses import dataclass

import numpy as np

from tacit_common.plugins import PluginTable, require
from tacit_common.strategy import ParameterVector, Strategy, StrategyState
from tacit_common.study import (
    FedAdamPlan,
    FedAvgMPlan,
    FedAvgPlan,
    FedProxPlan,
    PluginPlan,
    StrategyPlan,
)


def build_strategy(plan: StrategyPlan, plugins: PluginTable) -> Strategy:
    """The strategy that a plan names.

    Raises:
        PluginError: a plug-in cannot be found or is no strategy.
    """
    match plan:
        case FedAvgPlan():
            return MomentumStrategy(server_lr=plan.server_lr, momentum=0.0)
        case FedAvgMPlan():
            return MomentumStrategy(server_lr=plan.server_lr, momentum=plan.momentum)
        case FedProxPlan():  # the proximal term acts at the sites; the server averages
            return MomentumStrategy(server_lr=1.0, momentum=0.0)
        case FedAdamPlan():
            return AdamStrategy(plan)
        case PluginPlan():
            return require(plugins.create(plan, "strategy"), Strategy, plan.name)


@dataclass(frozen=True)
class MomentumStrategy:
    """FedAvg (McMahan et al. 2017), with server step and momentum (Hsu et al. 2019)."""

    server_lr: float
    momentum: float

    def init(self, parameters: ParameterVector) -> StrategyState:
        """The state before the first round: no momentum yet."""
        return StrategyState(parameters)

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        """v ← β v − mean;  w ← w − η v."""
        moved = state.parameters + private_mean
        if (self.server_lr, self.momentum) == (1.0, 0.0):
            return StrategyState(moved, state.round + 1)
        velocity = np.subtract(state.parameters, moved, out=moved)  # as rounded by the sum
        moments = {}
        if self.momentum > 0:
            if "velocity" in state.moments:
                velocity += self.momentum * state.moments["velocity"]
            moments["velocity"] = velocity
        parameters = np.multiply(velocity, self.server_lr)
        np.subtract(state.parameters, parameters, out=parameters)
        return StrategyState(parameters, state.round + 1, moments)


@dataclass(frozen=True)
class AdamStrategy:
    """Server-side Adam (Reddi et al. 2021, algorithm 2)."""

    plan: FedAdamPlan

    def init(self, parameters: ParameterVector) -> StrategyState:
        """The state before the first round: zero moments."""
        zeros = np.zeros_like(parameters)
        return StrategyState(parameters, moments={"first": zeros, "second": zeros})

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        """One step, its size corrected for bias as in Flower: round t counts as step t + 1."""
        plan, t = self.plan, state.round + 2.0
        change = state.parameters + private_mean
        np.subtract(change, state.parameters, out=change)  # as rounded by the sum
        first = plan.beta_1 * state.moments["first"]
        first += (1 - plan.beta_1) * change
        second = plan.beta_2 * state.moments["second"]
        second += (1 - plan.beta_2) * np.square(change, out=change)
        # A NumPy scalar, so that the step is taken in float64.
        size = plan.server_lr * np.sqrt(1 - np.power(plan.beta_2, t)) / (1 - plan.beta_1**t)
        step = size * first
        step /= np.sqrt(second) + plan.tau
        step += state.parameters
        moments = {"first": first, "second": second}
        return StrategyState(step.astype(np.float32), state.round + 1, moments)
