"""An objective of one's own: denoising (Vincent et al. 2008)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_common.encoders import Encoder
from tacit_common.objectives import Coupling, PretrainModel, Views


class Denoising:
    """See a noisy image, predict the clean one."""

    coupling = Coupling.NONE  # the loss of a record depends on no other record

    def __init__(self, image_size: int, channels: int, noise_stddev: float = 0.3) -> None:
        self.pixels = channels * image_size**2
        self.noise_stddev = noise_stddev

    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Linear(encoder.embed_dim, self.pixels)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        noise = torch.randn(batch.shape, generator=generator)
        return batch + self.noise_stddev * noise, batch

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        noisy, clean = views  # [B, C, H, W] both
        predicted = model.head(model.encoder(noisy))  # [B, C·H·W]
        errors = F.mse_loss(predicted, clean.flatten(1), reduction="none")
        return errors.mean(dim=1)  # [B]
