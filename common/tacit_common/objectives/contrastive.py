"""Contrast between two views of a record, with negatives from a public bank or the batch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder
from tacit_common.objectives.contract import Coupling, PretrainModel, Views
from tacit_common.procedural import strokes
from tacit_common.study import BankContrastPlan, SimCLRPlan, ViewsPlan
from tacit_common.views import random_views

BANK_SEED = 2104  # any constant: the bank is public and the same in every study


class BankContrast:
    """InfoNCE (van den Oord et al. 2018, eq. 4) whose negatives are public procedural images.

    The bank is embedded with the current parameters and takes no gradient, so it is a
    function of parameters and public constants, and no record meets another.
    """

    coupling = Coupling.NONE

    def __init__(
        self, plan: BankContrastPlan, views_plan: ViewsPlan, *, image_shape: tuple[int, int, int]
    ) -> None:
        """`image_shape` (C, H, W) of the records; H and W are equal."""
        self._plan = plan
        self._views_plan = views_plan
        channels, size, _ = image_shape
        self._bank = strokes(
            plan.bank_size,
            image_size=size,
            channels=channels,
            generator=torch.Generator().manual_seed(BANK_SEED),
        )

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The projector."""
        return projector(encoder.embed_dim, self._plan.projection_dim)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Two random views of every image, [B, C, H, W] each."""
        return two_views(batch, self._views_plan, generator)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Mean of the InfoNCE losses of a record's two views, [B]."""
        one, two = (project(model, view) for view in views)  # [B, P]
        with torch.no_grad():
            bank = project(model, self._bank.to(views[0]))  # [K, P]
        positive = (one * two).sum(dim=1, keepdim=True)  # [B, 1]
        losses = [self._info_nce(positive, anchor @ bank.T) for anchor in (one, two)]
        return (losses[0] + losses[1]) / 2

    def _info_nce(self, positive: Tensor, negatives: Tensor) -> Tensor:
        logits = torch.cat([positive, negatives], dim=1) / self._plan.temperature  # [B, 1 + K]
        return logits.logsumexp(dim=1) - logits[:, 0]


class SimCLR:
    """NT-Xent (Chen et al. 2020, arXiv 2002.05709, eq. 1) between all views of a batch.

    Every record is a negative of every other: there is no per-example gradient to clip.
    """

    coupling = Coupling.BATCH

    def __init__(self, plan: SimCLRPlan, views_plan: ViewsPlan) -> None:
        self._plan = plan
        self._views_plan = views_plan

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The projector."""
        return projector(encoder.embed_dim, self._plan.projection_dim)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Two random views of every image, [B, C, H, W] each."""
        return two_views(batch, self._views_plan, generator)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Mean of the losses of a record's two views, [B]; their mean is the paper's loss."""
        rows = views[0].shape[0]
        z = torch.cat([project(model, view) for view in views])  # [2B, P]
        logits = z @ z.T / self._plan.temperature
        itself = torch.eye(2 * rows, dtype=torch.bool, device=z.device)
        logits = logits.masked_fill(itself, float("-inf"))
        other_view = torch.arange(2 * rows, device=z.device).roll(rows)
        return F.cross_entropy(logits, other_view, reduction="none").view(2, rows).mean(dim=0)


def projector(embed_dim: int, projection_dim: int) -> nn.Module:
    """The two-layer projection head of SimCLR."""
    return nn.Sequential(
        nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, projection_dim)
    )


def project(model: PretrainModel, images: Tensor) -> Tensor:
    """Unit vectors [B, P] of images [B, C, H, W]."""
    return F.normalize(model.head(model.encoder(images)), dim=1)


def two_views(batch: Tensor, plan: ViewsPlan, generator: torch.Generator) -> Views:
    """Two random views of every image, [B, C, H, W] each."""
    return random_views(batch, plan, generator), random_views(batch, plan, generator)
