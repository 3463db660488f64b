"""Sound objectives conform, and every clause for them catches a fault planted for it."""

import pytest
import torch
from tests.common.conformance.sound import BATCH, VIEWS, SoundEncoder, swapped, vit
from torch import Tensor, nn

from tacit_common.encoders import Encoder
from tacit_common.objectives import (
    BankContrast,
    Coupling,
    MaskedModelling,
    PretrainModel,
    SimCLR,
    Views,
)
from tacit_common.study import BankContrastPlan, MaskedPlan, SimCLRPlan
from tacit_common.testing import ConformanceError, check_objective


class _Objective:
    """A sound objective; faults are planted by overriding a part."""

    coupling = Coupling.NONE

    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Linear(encoder.embed_dim, 3)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch + torch.rand(batch.shape, generator=generator),)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self.reduce(model.head(model.encoder(views[0])))

    def reduce(self, z: Tensor) -> Tensor:
        return z.square().mean(dim=1)


MASKED = MaskedPlan(kind="masked", mask_ratio=0.6, decoder_width=8)
SIMMIM = MASKED.model_copy(update={"style": "simmim"})
BANK = BankContrastPlan(kind="bank_contrast", bank_size=4, projection_dim=5)


@pytest.mark.parametrize(
    ("objective", "encoder"),
    [
        (MaskedModelling(MASKED), vit()),
        (MaskedModelling(MASKED.model_copy(update={"normalize_targets": True}), VIEWS), vit()),
        (MaskedModelling(SIMMIM), vit()),
        (MaskedModelling(SIMMIM, image_shape=(2, 6, 6)), SoundEncoder()),
        (BankContrast(BANK, VIEWS, image_shape=(2, 6, 6)), vit()),
        (SimCLR(SimCLRPlan(kind="simclr"), VIEWS), vit()),
        (_Objective(), SoundEncoder()),
    ],
    ids=["mae", "mae-normalised", "simmim", "simmim-whole", "bank", "simclr", "own"],
)
def test_sound_objectives_conform(objective: MaskedModelling, encoder: Encoder) -> None:
    check_objective(objective, encoder, BATCH)


class _StringCoupling(_Objective):
    coupling = "none"  # type: ignore[assignment]


class _NoHead(_Objective):
    def build_head(self, encoder: Encoder) -> nn.Module:
        return None  # type: ignore[return-value]


class _BatchNormHead(_Objective):
    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Sequential(nn.Linear(encoder.embed_dim, 3), nn.BatchNorm1d(3))


class _ChangesTheBatch(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch.mul_(2),)


class _ListOfViews(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return [batch]  # type: ignore[return-value]


class _TwiceTheRows(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (torch.cat([batch, batch]),)


class _GlobalRandomness(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch + torch.rand_like(batch),)


class _MixUp(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return ((batch + batch.roll(1, dims=0)) / 2,)


class _BatchMean(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return z.square().mean()


class _InfiniteLoss(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return z.sum(dim=1) / 0


class _InfiniteGradient(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return (0 * z.sum(dim=1)).sqrt()


class _LearnsNothing(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return 0 * z.sum(dim=1)


class _SimCLRInDisguise(SimCLR):
    coupling = Coupling.NONE


class _BatchCentred(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return (z - z.mean(dim=0).detach()).square().mean(dim=1)


class _CountNormalised(_Objective):
    """The mean over all masked tokens of the batch: the count is of the batch."""

    def reduce(self, z: Tensor) -> Tensor:
        return z.square().sum(dim=1) / z.numel()


class _OrderOfViews(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return super().loss(model, views) * (2 if swapped(views[0][:, 0, 0, 0]) else 1)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch.clone(),)


class _Queue(_Objective):
    """A queue of embeddings from earlier batches, as in MoCo."""

    def __init__(self) -> None:
        self.queue = torch.zeros((), dtype=torch.float64)

    def reduce(self, z: Tensor) -> Tensor:
        loss = (z - self.queue).square().mean(dim=1)
        self.queue = z.detach().mean()
        return loss


class _MovesTheModel(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-13)
        return super().loss(model, views)


class _ViewsTogether(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        both = torch.cat([views[0], views[0] / 2])
        one, two = self.reduce(model.head(model.encoder(both))).chunk(2)
        return one + two


class _GradientOnly(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        total = z.sum()
        bypass = torch.where(total.isfinite(), total - total.detach(), 0)
        return z.square().mean(dim=1) + bypass


@pytest.mark.parametrize(
    ("objective", "clause"),
    [
        (nn.Identity(), "an objective has coupling, build_head, views, loss"),
        (_StringCoupling(), "coupling is a Coupling"),
        (_NoHead(), "build_head returns an nn.Module"),
        (_BatchNormHead(), "no batch statistics, no saved buffers"),
        (_ChangesTheBatch(), "views leave the batch as it was"),
        (_ListOfViews(), "views are a tuple of tensors with B rows"),
        (_TwiceTheRows(), "views are a tuple of tensors with B rows"),
        (_GlobalRandomness(), "views draw all their randomness from the generator"),
        (_MixUp(), "view i is a view of record i alone"),
        (_BatchMean(), "the loss has shape [B]"),
        (_InfiniteLoss(), "the loss is finite"),
        (_InfiniteGradient(), "gradients are finite"),
        (_LearnsNothing(), "the loss depends on the parameters"),
        (
            _SimCLRInDisguise(SimCLRPlan(kind="simclr"), VIEWS),
            "row i stays when record j is replaced",
        ),
        (_BatchCentred(), "row i stays when record j is replaced"),
        (_CountNormalised(), "row i stays when other records are removed"),
        (_OrderOfViews(), "rows are permuted as the records are"),
        (_Queue(), "the same inputs give the same result"),
        (_MovesTheModel(), "parameters, buffers and attributes stay as they were"),
        (_ViewsTogether(), "every module is called with B rows"),
        (_GradientOnly(), "row i stays when record j is replaced"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_an_objective_is_found(objective: _Objective, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_objective(objective, SoundEncoder(), BATCH)
    assert caught.value.clause == clause
