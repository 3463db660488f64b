"""Strategies: arithmetic against the papers' and Flower's, and state that goes in and comes out."""

import sys
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvgM
from hypothesis import given
from hypothesis import strategies as st

from tacit_common.errors import PluginError
from tacit_common.plugins import PluginTable
from tacit_common.strategy import ParameterVector, Strategy, StrategyState
from tacit_common.study import (
    FedAdamPlan,
    FedAvgMPlan,
    FedAvgPlan,
    FedProxPlan,
    PluginPlan,
    StrategyPlan,
)
from tacit_common.testing import ConformanceError, check_strategy
from tacit_server.strategies import build_strategy

SIZE, ROUNDS = 40, 6
PLANS: dict[str, StrategyPlan] = {
    "fedavg": FedAvgPlan(kind="fedavg"),
    "fedavg, half a step": FedAvgPlan(kind="fedavg", server_lr=0.5),
    "fedavgm": FedAvgMPlan(kind="fedavgm"),
    "fedavgm, other constants": FedAvgMPlan(kind="fedavgm", server_lr=0.3, momentum=0.5),
    "fedavgm, no momentum": FedAvgMPlan(kind="fedavgm", server_lr=0.7, momentum=0.0),
    "fedadam": FedAdamPlan(kind="fedadam"),
    "fedadam, other constants": FedAdamPlan(
        kind="fedadam", server_lr=0.1, beta_1=0.5, beta_2=0.9, tau=1e-2
    ),
    "fedadam, no first moment": FedAdamPlan(kind="fedadam", beta_1=0.0),
    "fedprox": FedProxPlan(kind="fedprox", proximal_mu=0.1),
}

Vector64 = np.ndarray[tuple[int], np.dtype[np.float64]]


def built(name: str) -> Strategy:
    return build_strategy(PLANS[name], PluginTable())


def means(seed: int = 0) -> list[ParameterVector]:
    rng = np.random.default_rng(seed)
    return [rng.normal(scale=0.1, size=SIZE).astype(np.float32) for _ in range(ROUNDS)]


def start(seed: int = 1) -> ParameterVector:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


# --- the papers, in float64 ----------------------------------------------------------------


def fedavg(plan: FedAvgPlan, w: Vector64, updates: Iterable[Vector64]) -> Iterator[Vector64]:
    """McMahan et al. 2017: w ← w + η Δ."""
    for update in updates:
        w = w + plan.server_lr * update
        yield w


def fedavgm(plan: FedAvgMPlan, w: Vector64, updates: Iterable[Vector64]) -> Iterator[Vector64]:
    """Hsu et al. 2019: v ← β v + Δ, w ← w + η v."""
    velocity = np.zeros_like(w)
    for update in updates:
        velocity = plan.momentum * velocity + update
        w = w + plan.server_lr * velocity
        yield w


def fedadam(plan: FedAdamPlan, w: Vector64, updates: Iterable[Vector64]) -> Iterator[Vector64]:
    """Reddi et al. 2021, algorithm 2, with the step size of Kingma and Ba 2014, section 2.

    Flower counts from 2: its step size in round t is that of Kingma and Ba's step t + 1.
    """
    first, second = np.zeros_like(w), np.zeros_like(w)
    for t, update in enumerate(updates, start=1):
        first = plan.beta_1 * first + (1 - plan.beta_1) * update
        second = plan.beta_2 * second + (1 - plan.beta_2) * update**2
        step = np.sqrt(1 - plan.beta_2 ** (t + 1)) / (1 - plan.beta_1 ** (t + 1))
        w = w + plan.server_lr * step * first / (np.sqrt(second) + plan.tau)
        yield w


def reference(plan: StrategyPlan, w: Vector64, updates: list[Vector64]) -> list[Vector64]:
    match plan:
        case FedAvgPlan():
            return list(fedavg(plan, w, updates))
        case FedAvgMPlan():
            return list(fedavgm(plan, w, updates))
        case FedAdamPlan():
            return list(fedadam(plan, w, updates))
        case FedProxPlan():  # what is proximal happens at the sites
            return list(fedavg(FedAvgPlan(kind="fedavg"), w, updates))
    raise NotImplementedError


@pytest.mark.parametrize("name", PLANS)
def test_a_strategy_takes_the_steps_of_its_paper(name: str) -> None:
    strategy, state = built(name), built(name).init(start())
    wide = [mean.astype(np.float64) for mean in means()]
    expected = reference(PLANS[name], start().astype(np.float64), wide)
    for number, (mean, parameters) in enumerate(zip(means(), expected, strict=True), start=1):
        state = strategy.apply(state, mean)
        assert state.round == number
        assert state.parameters.dtype == np.float32
        assert np.abs(state.parameters - parameters).max() < 2e-6
    moved = np.abs(state.parameters - start()).max()
    assert moved > 1e-3  # far above the tolerance


@pytest.mark.parametrize("name", PLANS)
def test_a_strategy_passes_the_conformance_suite(name: str) -> None:
    check_strategy(built(name), SIZE)


@pytest.mark.parametrize("name", PLANS)
def test_a_state_taken_up_by_a_new_process_goes_on_bit_for_bit(name: str) -> None:
    whole = built(name).init(start())
    for mean in means():
        whole = built(name).apply(whole, mean)
    state = built(name).init(start())
    for mean in means():
        copied = StrategyState(
            state.parameters.copy(), state.round, {k: v.copy() for k, v in state.moments.items()}
        )
        state = built(name).apply(copied, mean)
    assert np.array_equal(state.parameters, whole.parameters)
    assert state.moments.keys() == whole.moments.keys()
    for key, moment in state.moments.items():
        assert np.array_equal(moment, whole.moments[key])


@pytest.mark.parametrize("name", PLANS)
def test_read_only_vectors_as_a_checkpoint_gives_them_are_enough(name: str) -> None:
    state = built(name).init(start())
    for mean in means():
        for vector in (state.parameters, mean, *state.moments.values()):
            vector.setflags(write=False)
        state = built(name).apply(state, mean)
    assert state.round == ROUNDS


@pytest.mark.parametrize("name", PLANS)
def test_a_zero_mean_moves_nothing_at_the_start(name: str) -> None:
    state = built(name).apply(built(name).init(start()), np.zeros(SIZE, dtype=np.float32))
    assert np.array_equal(state.parameters, start())


@given(scale=st.floats(2.0**-60, 2.0**50, width=32), seed=st.integers(0, 5))
def test_fedavg_adds_the_mean_whatever_its_size(scale: float, seed: int) -> None:
    mean = (means(seed)[0] * np.float32(scale)).astype(np.float32)
    state = built("fedavg").apply(built("fedavg").init(start()), mean)
    assert np.array_equal(state.parameters, start() + mean)


# --- Flower ------------------------------------------------------------------------------


class FlowerReply:
    """What a Flower strategy reads of a reply; a real Message needs a running task."""

    def __init__(self, parameters: ParameterVector) -> None:
        self.content = RecordDict(
            {
                "arrays": ArrayRecord({"parameters": Array(parameters)}),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )

    def has_error(self) -> bool:
        return False


def of_flower(plan: StrategyPlan, parameters: ParameterVector) -> list[ParameterVector]:
    """The parameters after each round, by Flower's own strategy."""
    flower: FedAvgM | FedAdam
    match plan:
        case FedAdamPlan():
            flower = FedAdam(
                eta=plan.server_lr, beta_1=plan.beta_1, beta_2=plan.beta_2, tau=plan.tau
            )
        case FedAvgMPlan():
            flower = FedAvgM(server_learning_rate=plan.server_lr, server_momentum=plan.momentum)
        case FedAvgPlan():
            flower = FedAvgM(server_learning_rate=plan.server_lr)
        case _:
            flower = FedAvgM()
    after = []
    for number, mean in enumerate(means(), start=1):
        flower.current_arrays = ArrayRecord({"parameters": Array(parameters)})
        if isinstance(flower, FedAdam):
            flower.current_arrays = {"parameters": parameters}
        reply = FlowerReply(parameters + mean)
        arrays, _ = flower.aggregate_train(number, [cast(Message, reply)])
        assert arrays is not None
        parameters = arrays["parameters"].numpy().astype(np.float32)
        after.append(parameters)
    return after


@pytest.mark.parametrize("name", PLANS)
def test_a_strategy_takes_the_steps_of_flower_bit_for_bit(name: str) -> None:
    state = built(name).init(start())
    for mean, expected in zip(means(), of_flower(PLANS[name], start()), strict=True):
        state = built(name).apply(state, mean)
        assert np.array_equal(state.parameters, expected)


# --- plug-ins ------------------------------------------------------------------------------


class Backwards:
    """A strategy of one's own."""

    def __init__(self, step: float) -> None:
        self._step = np.float32(step)

    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters)

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        return StrategyState(state.parameters - self._step * private_mean, state.round + 1)


class InPlace(Backwards):
    """Breaks the contract: changes what it was given."""

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        state.parameters.__iadd__(private_mean)
        return StrategyState(state.parameters, state.round + 1)


def plugin_plan(name: str = "mine") -> PluginPlan:
    return PluginPlan(kind="plugin", name=name, options={"step": 2.0})


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], PluginTable]:
    """A plug-in table in which `mine` is this class."""

    def make(kind: type) -> PluginTable:
        module = ModuleType("a_module_of_mine")
        module.__dict__["Thing"] = kind
        monkeypatch.setitem(sys.modules, "a_module_of_mine", module)
        return PluginTable({"mine": "a_module_of_mine:Thing"})

    return make


def test_a_strategy_of_ones_own_is_used_and_conforms(
    table: Callable[[type], PluginTable],
) -> None:
    strategy = build_strategy(plugin_plan(), table(Backwards))
    check_strategy(strategy, SIZE)
    state = strategy.apply(strategy.init(start()), means()[0])
    assert np.array_equal(state.parameters, start() - np.float32(2.0) * means()[0])


def test_a_strategy_that_changes_its_arguments_does_not_conform(
    table: Callable[[type], PluginTable],
) -> None:
    with pytest.raises(ConformanceError, match="leaves the state as it was"):
        check_strategy(build_strategy(plugin_plan(), table(InPlace)), SIZE)


def test_what_is_no_strategy_is_refused(table: Callable[[type], PluginTable]) -> None:
    class Nothing:
        def __init__(self, step: float) -> None: ...

    with pytest.raises(PluginError, match="is not a Strategy"):
        build_strategy(plugin_plan(), table(Nothing))
    with pytest.raises(PluginError, match="not configured here"):
        build_strategy(plugin_plan("other"), table(Backwards))
