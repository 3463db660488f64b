"""What the suite is tried on: a batch, and encoders that are sound."""

import torch
from torch import Tensor, nn

from tacit_common.encoders import VisionTransformer, build_encoder
from tacit_common.plugins import PluginTable
from tacit_common.study import ViewsPlan, ViTPlan

VIT = ViTPlan(kind="vit", image_size=6, channels=2, patch_size=2, width=12, depth=2, heads=3)
VIEWS = ViewsPlan(max_shift=0.1, max_rotation_deg=20, noise_stddev=0.05)
BATCH = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
BATCH[:, 0, 0, 0] = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.0])  # for `_Order`


def vit() -> VisionTransformer:
    encoder = build_encoder(VIT, PluginTable(), 0)
    assert isinstance(encoder, VisionTransformer)
    return encoder


class SoundEncoder(nn.Module):
    """A sound encoder; faults are planted by overriding `mix`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 4
        self.first = nn.Conv2d(2, 3, 3)
        self.last = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(torch.tanh(self.first(images)).flatten(1))
        return self.mix(features)

    def mix(self, features: Tensor) -> Tensor:
        return features


def swapped(key: Tensor) -> bool:
    """Whether the records of `BATCH` meet in another order; never if others are among them."""
    return len(key) > 3 and bool((key.sum() - 1.7).abs() < 1e-6) and bool(key[0] > key[3])
