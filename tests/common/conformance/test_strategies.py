"""Sound strategies conform, and every clause for them catches a fault planted for it."""

from dataclasses import replace

import numpy as np
import pytest

from tacit_common.plugins import PluginTable
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_common.study import FedAdamPlan, FedAvgMPlan, FedAvgPlan, FedProxPlan, StrategyPlan
from tacit_common.testing import ConformanceError, check_strategy
from tacit_server.strategies import build_strategy


class _Average:
    """Federated averaging; faults are planted by overriding a part."""

    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), moments={"momentum": np.zeros_like(parameters)})

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        moved = state.parameters + private_mean
        return replace(state, parameters=moved, round=state.round + 1)


STRATEGIES: list[StrategyPlan] = [
    FedAvgPlan(kind="fedavg"),
    FedAvgMPlan(kind="fedavgm"),
    FedAdamPlan(kind="fedadam"),
    FedProxPlan(kind="fedprox", proximal_mu=0.1),
]


def test_a_sound_strategy_conforms() -> None:
    check_strategy(_Average(), 10)


@pytest.mark.parametrize("plan", STRATEGIES, ids=lambda plan: plan.kind)
def test_built_in_strategies_conform(plan: StrategyPlan) -> None:
    check_strategy(build_strategy(plan, PluginTable()), 10)


class _InitScales(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters * 2)


class _StartsLater(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), round=1)


class _Tuple(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return (parameters, 0)  # type: ignore[return-value]


class _ShortMoment(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), moments={"m": parameters[:1].copy()})


class _Float64State(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        after = super().apply(state, private_mean)
        return replace(after, parameters=after.parameters.astype(np.float64))


class _StateInPlace(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        state.moments["momentum"] += private_mean
        return super().apply(state, private_mean)


class _MeanInPlace(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        after = super().apply(state, private_mean)
        private_mean *= 1 + 1e-6
        return replace(after, parameters=state.parameters.copy())


class _StartInPlace(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        self.start = parameters
        return super().init(parameters)

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        self.start[:] = 0
        return super().apply(state, private_mean)


class _Remembers(_Average):
    calls = 0

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        self.calls += 1
        after = super().apply(state, private_mean)
        return replace(after, parameters=after.parameters + np.float32(self.calls))


class _SameRound(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        return replace(super().apply(state, private_mean), round=state.round)


class _Normalises(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        with np.errstate(invalid="ignore"):
            return super().apply(state, private_mean / np.linalg.norm(private_mean))


@pytest.mark.parametrize(
    ("strategy", "clause"),
    [
        (object(), "a strategy has init and apply"),
        (_InitScales(), "init keeps the parameters"),
        (_StartsLater(), "init starts at round 0 and apply adds one"),
        (_SameRound(), "init starts at round 0 and apply adds one"),
        (_Tuple(), "init and apply return a StrategyState"),
        (_ShortMoment(), "parameters and moments are float32 vectors [P]"),
        (_Float64State(), "parameters and moments are float32 vectors [P]"),
        (_StateInPlace(), "apply leaves the state as it was"),
        (_MeanInPlace(), "apply leaves the mean update as it was"),
        (_StartInPlace(), "init and apply leave the start as it was"),
        (_Remembers(), "apply is deterministic"),
        (_Normalises(), "parameters and moments are finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_strategy_is_found(strategy: _Average, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_strategy(strategy, 10)
    assert caught.value.clause == clause
