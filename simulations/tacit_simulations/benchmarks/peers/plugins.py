"""The work as Tacit takes it: an encoder and an objective as plug-ins (docs/extending.md)."""

import torch
from torch import Tensor, nn

from tacit_common.encoders import Encoder
from tacit_common.objectives import Coupling, PretrainModel, Views
from tacit_simulations.benchmarks.peers.task import build_head, record_losses


class FixedMask:
    """Predict all pixels from those that a fixed mask shows."""

    coupling = Coupling.NONE

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The decoder of the work."""
        del encoder  # its width is the work's
        return build_head()

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """The records as they are."""
        del generator  # nothing is random
        return (batch,)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Loss of every record, [B]."""
        (images,) = views
        return record_losses(model.encoder, model.head, images)
