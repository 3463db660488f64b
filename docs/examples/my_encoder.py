"""An encoder of one's own: a small convolutional network."""

from torch import Tensor, nn


class SmallConvNet(nn.Module):
    """Images [B, channels, image_size, image_size] to features [B, embed_dim]."""

    def __init__(self, image_size: int, channels: int, embed_dim: int = 32) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 16, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(4, 16),  # BatchNorm would mix records, and is refused
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(16 * ((image_size + 1) // 2) ** 2, embed_dim),
            nn.LayerNorm(embed_dim),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features
