"""What other paths fall into: each is handled, or refused with its reason."""

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from tests.client.book_keeping_case import (
    LossOfFirstView,
    check_layer,
    clipped,
    drawn,
)
from torch import Tensor, nn

from tacit_client.book_keeper import BookKeeper
from tacit_client.book_keeping import BookKeepingGradients
from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.tape import refusal_of
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.study import Study

# --- traps ------------------------------------------------------------------------------


class ShapeOnly(nn.Module):
    """Positions for an input of which it looks at the shape alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 4)
        self.unused = nn.Linear(4, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.table(torch.arange(3).expand(len(x), 3))
        with torch.no_grad():
            target = self.layer(torch.ones(7, 4, dtype=x.dtype))  # other rows than the batch's
        out: Tensor = positions + self.layer(x + target[0]) * self.layer(x).detach()
        return out


def test_shapes_detached_branches_unused_layers_and_calls_without_gradient() -> None:
    check_layer(ShapeOnly(), drawn(5, 3, 4))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Tied(), "are one"),
        (nn.Embedding(3, 3, max_norm=1.0), "changes its table"),
        (nn.BatchNorm1d(3), "mixes the units"),
        (nn.BatchNorm1d(3, affine=False), "mixes the units"),
        (torch.compile(nn.Linear(3, 3), backend="eager"), "is compiled"),
    ],
    ids=["tied", "max norm", "batch norm", "frozen batch norm", "torch.compile"],
)
def test_what_cannot_be_kept_is_refused(module: nn.Module, reason: str) -> None:
    model = PretrainModel(module, nn.Linear(2, 2))
    said = refusal_of(model)
    assert said is not None
    assert reason in said
    with pytest.raises(PrivacyConfigError, match=reason):
        BookKeepingGradients(model, LossOfFirstView())


def test_a_module_that_compiles_its_own_call_is_refused() -> None:
    layer = nn.Linear(3, 3)
    layer.compile(backend="eager")
    assert "is compiled" in str(refusal_of(PretrainModel(layer, nn.Identity())))


def test_a_model_with_hooks_of_opacus_is_refused(make_study: Callable[..., Study]) -> None:
    model, objective = build_model(make_study(), PluginTable())
    assert refusal_of(model) is None
    PerUnitGradients(model, objective)
    assert "hooks already" in str(refusal_of(model))


class Table(nn.Module):
    """Returns its parameter itself, one row a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(drawn(5, 3))

    def forward(self, _: Tensor) -> Tensor:
        return self.rows


def test_a_parameter_that_a_layer_returns_stays_one() -> None:
    table = Table()
    model = nn.Sequential(table, nn.Linear(3, 2).double())
    with contextlib.suppress(PrivacyConfigError):
        keeper = BookKeeper(model)
        keeper.fill_gradients(lambda: model(drawn(5, 3)).sum(dim=1), rows=5, l2_clip_norm=1.0)
    assert table.rows.is_leaf
    assert table.rows.requires_grad


def test_frozen_parameters_stay_out() -> None:
    layer = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    layer[0].requires_grad_(False)
    layer[1].bias.requires_grad_(False)
    layer[2].weight.requires_grad_(False)
    check_layer(layer, drawn(5, 3, 4))
    assert [p.requires_grad for p in layer.parameters()] == [False, False, True, False, False, True]


def fails(loss: Tensor, model: nn.Module) -> Tensor:
    raise MemoryError("the batch did not fit")


def scalar(loss: Tensor, model: nn.Module) -> Tensor:
    return loss.mean()


def own_backward(loss: Tensor, model: nn.Module) -> Tensor:
    loss.sum().backward(retain_graph=True)
    return loss


class Broken(LossOfFirstView):
    fault: Callable[[Tensor, nn.Module], Tensor] | None = None

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        loss = super().loss(model, views)
        return loss if self.fault is None else self.fault(loss, model)


@pytest.mark.parametrize("fault", [fails, scalar, own_backward])
def test_a_pass_that_failed_leaves_no_trace(
    fault: Callable[[Tensor, nn.Module], Tensor],
) -> None:
    model, objective = PretrainModel(nn.Linear(4, 4), nn.Linear(4, 4)), Broken()
    path = BookKeepingGradients(model, objective)
    units = [torch.ones(1, 4), torch.zeros(1, 4)]
    clean = clipped(path, units)
    objective.fault = fault
    with pytest.raises((MemoryError, PrivacyConfigError)):
        clipped(path, units)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    objective.fault = None
    assert torch.equal(clipped(path, units), clean)


class BehindTheLayersBack(nn.Module):
    """Uses a layer's parameters without calling it: its hooks see half of what it does."""

    def __init__(self, *, calls_it: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls_it = calls_it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.linear(x, self.layer.weight)
        return out + self.layer(x) if self.calls_it else out


class Doubles(LossOfFirstView):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return super().loss(model, (torch.cat([views[0], views[0]]),)).view(2, -1).mean(dim=0)


class ChangesInPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        out: Tensor = self.first(x)
        x.mul_(2)
        return out + self.second(x)


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        out: Tensor = checkpoint(lambda x: self.layer(x).tanh(), self.layer(x), use_reentrant=False)
        return out


@pytest.mark.parametrize(
    ("encoder", "objective", "said"),
    [
        (nn.Linear(4, 4), Doubles(), "rows that are not the units"),
        (ChangesInPlace(), LossOfFirstView(), "changed in place"),
        (Checkpointed(), LossOfFirstView(), "in the backward pass"),
        (BehindTheLayersBack(calls_it=True), LossOfFirstView(), "behind its layer's back"),
        (BehindTheLayersBack(calls_it=False), LossOfFirstView(), "behind its layer's back"),
    ],
    ids=["other rows", "changed in place", "checkpoint", "used twice", "used elsewhere"],
)
def test_what_would_be_taken_for_something_else_is_refused(
    encoder: nn.Module, objective: Objective, said: str
) -> None:
    path = BookKeepingGradients(PretrainModel(encoder, nn.Identity()), objective)
    with pytest.raises(PrivacyConfigError, match=said):
        clipped(path, [torch.ones(1, 4), torch.zeros(1, 4)])


class InPlaceAfter(nn.Module):
    """Changes the result of its first layer, before which nothing takes a gradient, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 2, stride=2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x += 1
        out: Tensor = self.second(nn.functional.relu(x, inplace=True).flatten(2))
        return out


def test_results_that_are_changed_in_place() -> None:
    check_layer(InPlaceAfter(), drawn(5, 1, 4, 4))


def test_gradients_that_were_there_are_there_afterwards() -> None:
    model = PretrainModel(nn.Linear(4, 4), nn.Identity())
    path = BookKeepingGradients(model, LossOfFirstView())
    model.encoder.weight.grad = before = torch.ones(4, 4)
    clipped(path, [torch.ones(1, 4)])
    assert model.encoder.weight.grad is before
    assert torch.equal(before, torch.ones(4, 4))


@pytest.mark.parametrize("norm", [1e-2, 1e2], ids=["clipped", "not clipped"])
def test_units_of_a_bfloat16_model_are_never_longer_than_the_clip_norm(norm: float) -> None:
    layers = [nn.Linear(16, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 8), nn.Linear(8, 8)]
    model = PretrainModel(nn.Sequential(*layers), nn.Identity()).to(torch.bfloat16)
    path = BookKeepingGradients(model, LossOfFirstView())
    batch = (10 * drawn(20, 3, 16)).to(torch.bfloat16)
    lengths = [float(clipped(path, [record], norm=norm).norm()) for record in batch.split(1)]
    assert max(lengths) <= norm * (1 + 1e-12)
    if norm < 1:
        assert min(lengths) >= norm * (1 - 1e-9)


def test_an_empty_first_sample_changes_nothing_of_the_next() -> None:
    layer = nn.Linear(4, 4)
    paths = [
        BookKeepingGradients(PretrainModel(encoder, nn.Identity()), LossOfFirstView())
        for encoder in (layer, copy.deepcopy(layer))
    ]
    assert not clipped(paths[0], []).any()
    units = list(torch.ones(3, 4).split(1))
    assert torch.equal(*(clipped(path, units) for path in paths))


def test_more_units_than_rounding_is_proven_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tacit_client.book_keeping.MOST_UNITS", 3)
    path = BookKeepingGradients(PretrainModel(nn.Linear(2, 2), nn.Identity()), LossOfFirstView())
    clipped(path, [torch.ones(1, 2)] * 3, physical_batch=2)
    with pytest.raises(PrivacyConfigError, match="more units than its sum is proven for"):
        clipped(path, [torch.ones(1, 2)] * 4, physical_batch=2)


def test_passes_with_more_rows_than_rounding_is_proven_for_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tacit_client.layer_pairs.MOST_ROUNDINGS", 600)
    path = BookKeepingGradients(PretrainModel(nn.Linear(64, 64), nn.Identity()), LossOfFirstView())
    units = list(torch.ones(5, 20, 64).split(1))
    clipped(path, units, physical_batch=1000)
    with pytest.raises(PrivacyConfigError, match="lower physical_batch"):
        clipped(path, list(torch.ones(5000, 20, 64).split(1)), physical_batch=5000)
