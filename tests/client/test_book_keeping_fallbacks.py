"""Modules with parameters of their own and no rule: formed, theirs alone, and still exact."""

import logging
from typing import Any

import pytest
import torch
from opacus.layers import DPMultiheadAttention
from tests.client.book_keeping_case import LossOfFirstView, check_layer, clipped, drawn
from torch import Tensor, nn

from tacit_client.book_keeping import BookKeepingGradients
from tacit_client.tape import refusal_of
from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import PretrainModel


class Tokens(nn.Module):
    """A class token, learned positions, and layers with rules inside."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.positions = nn.Parameter(torch.zeros(1, 4, 6))
        self.unused = nn.Parameter(torch.zeros(3))
        self.embed = nn.Linear(5, 6)
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], dim=1) + self.positions
        out: Tensor = x + self.block(x)
        return out


class SelfAttention(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.after = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        out: Tensor = self.after(mixed)
        return out


class Attention(nn.Module):
    """Scaled dot-product attention, made of layers with rules."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class LowRank(nn.Module):
    """LoRA: a frozen layer, and two small ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(8, 6).requires_grad_(False)
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.frozen(x) + self.up(self.down(x))
        return out


class OtherLinear(nn.Linear):
    """A subclass may do something else than its parent."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.weight.sum()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = OtherLinear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale(self.scale(x))
        return out


class ShapeAlone(nn.Module):
    """Uses nothing of its input but the shape."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.table.expand(len(x), -1, -1)


MODULES: list[tuple[nn.Module, tuple[int, ...], int]] = [
    (Tokens(), (7, 3, 5), 1),
    (SelfAttention(nn.MultiheadAttention(8, 2, batch_first=True)), (6, 4, 8), 1),
    (SelfAttention(nn.MultiheadAttention(8, 2, batch_first=True, add_bias_kv=True)), (6, 4, 8), 1),
    (Attention(), (6, 4, 8), 0),
    (LowRank(), (6, 4, 8), 0),
    (OtherLinear(5, 3), (6, 4, 5), 1),
    (Twice(), (6, 5), 1),
    (ShapeAlone(), (6, 3, 5), 1),
    (nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), (6, 4, 5), 1),
    (nn.Sequential(nn.Linear(5, 4), nn.PReLU(4)), (6, 5), 1),
    (nn.Sequential(nn.Linear(5, 4), nn.RMSNorm(4)), (6, 3, 5), 1),
    (nn.Conv3d(2, 3, 2), (4, 2, 3, 4, 3), 1),
    (nn.InstanceNorm1d(3, affine=True), (4, 3, 6), 1),
    (nn.ConvTranspose2d(2, 3, 2), (4, 2, 3, 3), 1),
]


def name_of(value: object) -> str | None:
    if not isinstance(value, nn.Module):
        return None
    return " ".join(type(part).__name__ for part in value.modules())[:40]


@pytest.mark.parametrize(("module", "shape", "fallbacks"), MODULES, ids=name_of)
def test_norms_and_sums_are_those_of_a_loop(
    module: nn.Module, shape: tuple[int, ...], fallbacks: int
) -> None:
    assert refusal_of(module) is None
    check_layer(module, drawn(*shape))
    path = BookKeepingGradients(PretrainModel(module, nn.Identity()), LossOfFirstView())
    assert len(path.fallbacks) == fallbacks


def test_what_is_formed_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tacit_client"):
        path = BookKeepingGradients(PretrainModel(Tokens(), nn.Identity()), LossOfFirstView())
        for _ in range(2):
            clipped(path, list(torch.ones(3, 3, 5).split(1)))
    assert path.fallbacks == ("encoder (Tokens)",)
    assert [record.message for record in caplog.records] == [
        "per-unit gradients are formed for: encoder (Tokens)"
    ]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_unit_that_is_not_finite_reaches_no_other(poison: float) -> None:
    path = BookKeepingGradients(PretrainModel(Tokens(), nn.Identity()).double(), LossOfFirstView())
    units = list(drawn(4, 3, 5).split(1))
    before = clipped(path, units[:3], physical_batch=4)
    units[3] = units[3] * poison
    assert torch.equal(clipped(path, units, physical_batch=4), before)


class Draws(nn.Module):
    """Does something else in every call."""

    def __init__(self, draw: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * x * self.draw()
        return out


class Counts(Draws):
    def __init__(self) -> None:
        self.calls = 0.0
        super().__init__(self._count)

    def _count(self) -> float:
        self.calls += 1
        return self.calls


class UsesTheBatch(Draws):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * (x - x.mean(dim=0))
        return out


class Dropping(SelfAttention):
    def __init__(self) -> None:
        super().__init__(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.cell(x[:, 0])
        return out


@pytest.mark.parametrize(
    "module",
    [Draws(lambda: torch.rand(1)), Counts(), UsesTheBatch(None), Dropping(), Recurrent()],
    ids=["random", "remembers", "mixes units", "dropout inside", "no rule for vmap"],
)
def test_a_module_that_is_not_the_same_again_is_refused(module: nn.Module) -> None:
    path = BookKeepingGradients(PretrainModel(module, nn.Identity()), LossOfFirstView())
    with pytest.raises(PrivacyConfigError, match="does something else then"):
        clipped(path, list(drawn(5, 4, 8).float().split(1)))


def test_opacus_attention_is_kept_layer_by_layer() -> None:
    attention = DPMultiheadAttention(8, 2, batch_first=True)
    path = BookKeepingGradients(
        PretrainModel(SelfAttention(attention), nn.Identity()), LossOfFirstView()
    )
    assert path.fallbacks == ()
