"""What the server does with the mean update: Flower's own server optimisers.

Flower's strategies aggregate messages; here they are handed one message that holds the
mean which was already made private, so that they only contribute their arithmetic.
State goes in and comes out, where Flower keeps it in the object.
"""

from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM

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

_KEY = "parameters"


@dataclass(frozen=True)
class _Reply:
    """What a Flower strategy reads of a reply; a real Message needs a running task."""

    content: RecordDict

    def has_error(self) -> bool:
        return False


class _FlowerOptimizer(Protocol):
    """The part of a Flower strategy that is used: aggregation of train replies."""

    def aggregate_train(
        self, server_round: int, replies: list[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]: ...


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
        """v ← β v − mean;  w ← w − η v, by Flower's FedAvgM."""
        flower = FedAvgM(server_learning_rate=self.server_lr, server_momentum=self.momentum)
        flower.current_arrays = _record(state.parameters)
        if "velocity" in state.moments:
            flower.momentum_vector = [state.moments["velocity"]]
        parameters = _aggregate(flower, state, private_mean)
        velocity = flower.momentum_vector
        moments = {} if velocity is None else {"velocity": _float32(velocity[0])}
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
        """One step of Flower's FedAdam, with its bias-corrected step size."""
        flower = FedAdam(
            eta=self.plan.server_lr,
            beta_1=self.plan.beta_1,
            beta_2=self.plan.beta_2,
            tau=self.plan.tau,
        )
        flower.current_arrays = {_KEY: state.parameters}
        flower.m_t = {_KEY: state.moments["first"]}
        flower.v_t = {_KEY: state.moments["second"]}
        parameters = _aggregate(flower, state, private_mean)
        moments = {"first": _float32(flower.m_t[_KEY]), "second": _float32(flower.v_t[_KEY])}
        return StrategyState(parameters, state.round + 1, moments)


def _aggregate(
    flower: _FlowerOptimizer, state: StrategyState, private_mean: ParameterVector
) -> ParameterVector:
    """Hand the mean to a Flower strategy as the only reply of a round."""
    content = RecordDict(
        {
            "arrays": _record(state.parameters + private_mean),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    reply = _Reply(content)
    arrays, _ = flower.aggregate_train(state.round + 1, [cast(Message, reply)])
    if arrays is None:
        raise RuntimeError("Flower's strategy returned nothing for a valid reply")
    return _float32(arrays[_KEY].numpy())


def _record(vector: ParameterVector) -> ArrayRecord:
    return ArrayRecord({_KEY: Array(vector)})


def _float32(vector: object) -> ParameterVector:
    return np.asarray(vector, dtype=np.float32)
