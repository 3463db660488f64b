"""Objectives of one's own that all declare to couple nothing: sound ones, the couplings of the
literature, and those that take care to hide, each with the clause of the gate that it breaks.
"""

from collections import deque
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views
from tacit_common.privacy.separability.violation import Clause

WIDTH = 6


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for into, out in pairwise(widths):
        layers += [nn.Linear(into, out), nn.LayerNorm(out), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


class OwnLoss:
    """Denoising: a sound objective; faults are planted by overriding a part."""

    coupling = Coupling.NONE

    def build_head(self, encoder: Encoder) -> nn.Module:
        return mlp(encoder.embed_dim, 12, WIDTH)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        noise = torch.randn(2, *batch.shape, generator=generator).to(batch) / 4
        return batch + noise[0], batch + noise[1]

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        one, two = (model.head(model.encoder(view)) for view in views)
        return self.compare(one, two)

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        """Loss [B] of features [B, WIDTH]."""
        return (one - two).square().mean(dim=1) + one.square().mean(dim=1)


# --- sound -----------------------------------------------------------------------------


class SimSiam(OwnLoss):
    """Chen & He 2021, arXiv 2011.10566, with LayerNorm; BYOL whose target is its own network."""

    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.ModuleList([mlp(encoder.embed_dim, 12, WIDTH), mlp(WIDTH, 12, WIDTH)])

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        projector, predictor = model.head.children()
        with torch.no_grad():
            targets = [projector(model.encoder(view)) for view in views]
        online = [predictor(projector(model.encoder(view))) for view in views]
        return -sum(
            F.cosine_similarity(p, z) for p, z in zip(online, reversed(targets), strict=True)
        )


class PatchContrast(OwnLoss):
    """InfoNCE between the patches of two views, whose negatives lie inside the instance."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        every = torch.arange(4).expand(len(views[0]), -1)
        one, two = (
            F.normalize(model.head(model.encoder.encode_visible(view, every)), dim=-1)
            for view in views
        )
        logits = (one @ two.mT).flatten(0, 1) * 5  # [B·N, N]
        same = every.reshape(-1)
        return F.cross_entropy(logits, same, reduction="none").view(-1, 4).mean(dim=1)


class MaskedTokens(OwnLoss):
    """Pixels in sixteen grey levels as tokens: views of whole numbers, and no others."""

    levels = 16

    def build_head(self, encoder: Encoder) -> nn.Module:
        head = nn.Sequential(nn.Embedding(self.levels + 1, WIDTH), mlp(WIDTH, 12, self.levels))
        head.requires_grad_(True)
        return head

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        levels = (batch.nan_to_num().clamp(0, 0.99) * self.levels).long().flatten(1)
        hidden = torch.rand(levels.shape, generator=generator) < 0.3
        return levels.masked_fill(hidden, self.levels), levels, hidden.long()

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        seen, levels, hidden = views
        embedded = model.head[0](seen)  # [B, L, WIDTH]
        context = embedded + embedded.mean(dim=1, keepdim=True)
        logits = model.head[1](context).flatten(0, 1)
        errors = F.cross_entropy(logits, levels.flatten(), reduction="none").view(levels.shape)
        return self.mean_of_hidden(errors * hidden, hidden)

    def mean_of_hidden(self, errors: Tensor, hidden: Tensor) -> Tensor:
        return errors.sum(dim=1) / hidden.sum(dim=1).clamp(min=1)


# --- the eleven of the literature ------------------------------------------------------


class InfoNCE(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        logits = F.normalize(one, dim=1) @ F.normalize(two, dim=1).T * 5
        return F.cross_entropy(logits, torch.arange(len(one)), reduction="none")


class BarlowTwins(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        one, two = (z - z.mean(dim=0) for z in (one, two))
        one, two = (z / z.square().mean(dim=0).add(1e-3).sqrt() for z in (one, two))
        away = one.T @ two / len(one) - torch.eye(WIDTH)
        return away.square().sum().expand(len(one))


class VICReg(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        spread = one.var(dim=0, correction=0).add(1e-4).sqrt()
        return (one - two).square().mean(dim=1) + F.relu(2 - spread).mean()


class WithTarget(OwnLoss):
    """The second view makes a target and takes no gradient."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        with torch.no_grad():
            target = model.head(model.encoder(views[1]))
        return self.compare(model.head(model.encoder(views[0])), target)


class SwAV(WithTarget):
    """Codes are assigned in equal shares over the batch (Sinkhorn), and taken as hard labels."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        shares = (two * 5).nan_to_num(0, 0, 0).softmax(dim=1)
        for _ in range(3):
            shares = shares / shares.sum(dim=0, keepdim=True)
            shares = shares / shares.sum(dim=1, keepdim=True)
        return F.cross_entropy(one, shares.argmax(dim=1), reduction="none")


class MoCo(OwnLoss):
    """Negatives are the keys of earlier batches."""

    def __init__(self) -> None:
        self.queue = torch.eye(8, WIDTH)

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        positive = (one * two).sum(dim=1, keepdim=True)
        logits = torch.cat([positive, one @ self.queue.T], dim=1)
        self.queue = torch.cat([two.detach(), self.queue])[:8]
        return logits.logsumexp(dim=1) - logits[:, 0]


class DINO(WithTarget):
    """The centre of the teacher is a moving average over batches."""

    def __init__(self) -> None:
        self.centre = torch.zeros(WIDTH)

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        teacher = ((two - self.centre) * 5).softmax(dim=1)
        self.centre = 0.9 * self.centre + 0.1 * two.mean(dim=0)
        return -(teacher * one.log_softmax(dim=1)).sum(dim=1)


class BatchNorm(OwnLoss):
    """Without parameters and running statistics: nothing that a list of layers would show."""

    def build_head(self, encoder: Encoder) -> nn.Module:
        norm = nn.BatchNorm1d(WIDTH, affine=False, track_running_stats=False)
        return nn.Sequential(nn.Linear(encoder.embed_dim, WIDTH), norm)


class MixUp(OwnLoss):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        order = torch.randperm(len(batch), generator=generator)
        return super().views(0.7 * batch + 0.3 * batch[order], generator)


class TopKRouting(OwnLoss):
    """Half of the batch's features are let through, the largest first (expert choice)."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        scores = one.detach().nan_to_num(0).abs().flatten()
        chosen = torch.zeros_like(scores)
        chosen[scores.topk(len(scores) // 2).indices] = 1
        return (one - two).square().mul(chosen.view_as(one)).mean(dim=1)


class MeanOverAllHidden(MaskedTokens):
    """The mean over all hidden tokens of the batch: the count is of the batch."""

    def mean_of_hidden(self, errors: Tensor, hidden: Tensor) -> Tensor:
        return errors.sum(dim=1) * len(errors) / hidden.sum()


class RunningNormaliser(OwnLoss):
    """Losses are divided by their running mean."""

    def __init__(self) -> None:
        self.scale = 1.0

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        loss = super().compare(one, two)
        scaled = loss / self.scale
        self.scale = 0.9 * self.scale + 0.1 * float(loss.detach().mean())
        return scaled


LITERATURE: list[tuple[Objective, Clause]] = [
    (InfoNCE(), Clause.REPLACED),
    (BarlowTwins(), Clause.REPLACED),
    (VICReg(), Clause.REPLACED),
    (SwAV(), Clause.REPLACED),
    (MoCo(), Clause.SAME),
    (DINO(), Clause.SAME),
    (BatchNorm(), Clause.REPLACED),
    (MixUp(), Clause.VIEWS_OWN),
    (TopKRouting(), Clause.REPLACED),
    (MeanOverAllHidden(), Clause.REPLACED),
    (RunningNormaliser(), Clause.SAME),
]

# --- and those that take care to hide --------------------------------------------------


class CountNormalised(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(one, two) / len(one)


class PlaceInTheBatch(OwnLoss):
    """Weights by the place in the batch, with no weight on its length."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(one, two) * torch.linspace(1, 2, 4)[: len(one)]


class OnlyTogether(OwnLoss):
    """Another loss for a record alone: as a batch of one has no variance."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(one, two) * (1 if len(one) > 1 else 2)


class Order(OwnLoss):
    """The order in which these very records meet, and nothing else."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        key = views[0][:, 0, 0, 0]
        loss = super().loss(model, views)
        if not hasattr(self, "sum"):
            self.sum, self.first = float(key.sum()), float(key[0])
        known = abs(float(key.sum()) - self.sum) < 1e-9
        return loss * (2 if known and float(key[0]) != self.first else 1)


class Faint(OwnLoss):
    """Too faint for a comparison of values."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        with torch.no_grad():
            other = one.nan_to_num(0).clamp(-9, 9).mean()
        return super().compare(one, two) * (1 + 1e-13 * other)


class FaintTokens(MaskedTokens):
    """The same from views that have no derivative."""

    def mean_of_hidden(self, errors: Tensor, hidden: Tensor) -> Tensor:
        return super().mean_of_hidden(errors, hidden) + 1e-13 * errors.mean()


class NaNLeak(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(one, two) + 0 * one.detach().sum()


class GradientOnly(OwnLoss):
    """Values that agree, and gradients that do not."""

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        mean = one.mean(dim=0)
        bypass = torch.where(mean.isfinite(), mean - mean.detach(), 0)
        return (one + bypass - two).square().mean(dim=1)


class BehindZero(OwnLoss):
    """The coupled part starts with a weight of zero, and would grow in training."""

    def build_head(self, encoder: Encoder) -> nn.Module:
        head = nn.Linear(encoder.embed_dim, 2 * WIDTH)
        with torch.no_grad():
            head.weight[:WIDTH] = 0
            head.bias.zero_()
        return head

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        hidden, plain = one.chunk(2, dim=1)
        return super().compare(plain, two[:, WIDTH:]) + hidden.detach().mean() * hidden.sum(dim=1)


class WaitsForABatch(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        if len(one) < 16:
            return super().compare(one, two)
        return (one - two.mean(dim=0)).square().mean(dim=1)


class WaitsForItsQueue(OwnLoss):
    """Uses its queue once that is full, long after the start."""

    def __init__(self) -> None:
        self.queue: deque[Tensor] = deque(maxlen=1000)

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        self.queue.extend(two.detach())
        if len(self.queue) == 1000:
            one = one - torch.stack(tuple(self.queue)).mean(dim=0)
        return super().compare(one, two)


class CountsOnItsClass(OwnLoss):
    seen: ClassVar[list[int]] = [0]

    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        self.seen[0] += len(one)
        return super().compare(one, two)


class RemembersInTheModel(OwnLoss):
    class Head(nn.Linear):
        def forward(self, features: Tensor) -> Tensor:
            self.last = features.detach().mean()
            return super().forward(features)

    def build_head(self, encoder: Encoder) -> nn.Module:
        return self.Head(encoder.embed_dim, WIDTH)


class MovesTheModel(OwnLoss):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-15)
        return super().loss(model, views)


class Dropout(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(F.dropout(one), two)


class GlobalRandomness(OwnLoss):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return batch + torch.rand_like(batch), batch


class ViewsOfTheLastBatch(OwnLoss):
    last: Tensor | None = None

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        before = batch if self.last is None else self.last
        self.last = batch.clone()
        return batch, before.nan_to_num()[: len(batch)]


class DrawsAsItNeeds(OwnLoss):
    """How much randomness is left for the next record depends on this one."""

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        noises = []
        for record in batch:
            draws = 1 + int(record.nan_to_num().clamp(0, 9).sum())
            noises.append(torch.rand(draws, generator=generator)[-1])
        return batch + torch.stack(noises)[:, None, None, None], batch


class FunctionalUse(OwnLoss):
    """A weight used past its layer, beside the use through it: no hook sees that."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        weight = model.head[-1].weight  # [WIDTH, 12]
        return super().loss(model, views) + (views[1].flatten(1)[:, :12] @ weight.T).sum(dim=1)


class HoldsTheEncoder(OwnLoss):
    """Reaches the encoder through a reference of its own, as a free function of its weight."""

    def build_head(self, encoder: Encoder) -> nn.Module:
        self.encoder = encoder
        return super().build_head(encoder)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        decay = self.encoder.patch_embedding.weight.square().sum()
        return super().loss(model, views) + decay


class LearnsNothing(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return 0 * (one + two).sum(dim=1)


class Infinite(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return (one + two).sum(dim=1) / 0


class RefusesNaN(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        if not one.isfinite().all():
            raise RuntimeError("a record is not finite")
        return super().compare(one, two)


class NeedsTwo(OwnLoss):
    def compare(self, one: Tensor, two: Tensor) -> Tensor:
        return super().compare(one, two) + 0 * (one[1] * 0).nan_to_num().sum()


class BatchNormLayer(OwnLoss):
    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Sequential(nn.Linear(encoder.embed_dim, WIDTH), nn.BatchNorm1d(WIDTH))


HIDING: list[tuple[Objective, Clause]] = [
    (CountNormalised(), Clause.REMOVED),
    (PlaceInTheBatch(), Clause.REMOVED),
    (OnlyTogether(), Clause.ALONE),
    (Order(), Clause.PERMUTED),
    (Faint(), Clause.DERIVATIVE),
    (FaintTokens(), Clause.DERIVATIVE),
    (NaNLeak(), Clause.REPLACED),
    (GradientOnly(), Clause.REPLACED),
    (BehindZero(), Clause.REPLACED),
    (WaitsForItsQueue(), Clause.MEMORY),
    (CountsOnItsClass(), Clause.MEMORY),
    (RemembersInTheModel(), Clause.MEMORY),
    (MovesTheModel(), Clause.MEMORY),
    (Dropout(), Clause.SAME),
    (GlobalRandomness(), Clause.VIEWS_DRAWN),
    (ViewsOfTheLastBatch(), Clause.SAME),
    (DrawsAsItNeeds(), Clause.VIEWS_OWN),
    (FunctionalUse(), Clause.TOTAL),
    (HoldsTheEncoder(), Clause.TOTAL),
    (LearnsNothing(), Clause.DEPENDS),
    (Infinite(), Clause.FINITE),
    (RefusesNaN(), Clause.RUNS),
    (NeedsTwo(), Clause.RUNS),
    (BatchNormLayer(), Clause.RUNS),
]
