"""Objectives that couple records where a small check in float64 does not look.

Honest mistakes, each: plug-ins by name for `PluginTable`, which calls them with options.
"""

import torch
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder
from tacit_common.objectives.contract import Coupling, PretrainModel, Views
from tacit_common.objectives.masked import MaskedModelling
from tacit_common.study import MaskedPlan


class Sound:
    """Masked modelling as it is; the others spoil it."""

    coupling = Coupling.NONE

    def __init__(self) -> None:
        plan = MaskedPlan(kind="masked", mask_ratio=0.5, decoder_width=8)
        self.inner = MaskedModelling(plan)
        self.mean: Tensor | None = None

    def build_head(self, encoder: Encoder) -> nn.Module:
        return self.inner.build_head(encoder)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return self.inner.views(batch, generator)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self.inner.loss(model, views)

    def remembered(self, images: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = images.mean().detach()
        return images - self.mean


class CentresByTheFirstBatch(Sound):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        images, *rest = views
        return self.inner.loss(model, (self.remembered(images), *rest))


class ViewsCentredByTheFirstBatch(Sound):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return self.inner.views(self.remembered(batch), generator)


class SubjectsCentredByTheFirstOne(CentresByTheFirstBatch):
    coupling = Coupling.BATCH


class CentresLargeBatches(Sound):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        images, *rest = views
        if len(images) > 32:
            images = images - images.mean(0, keepdim=True)
        return self.inner.loss(model, (images, *rest))


class ScalesInFloat32(Sound):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        images, *rest = views
        if images.dtype == torch.float32:
            images = images / images.abs().amax()
        return self.inner.loss(model, (images, *rest))


class ClaimsLogits(Sound):
    coupling = Coupling.LOGITS
