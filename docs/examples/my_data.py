"""Data of one's own: images of stripes, drawn when they are asked for."""

import math

import torch
from torch import Tensor


class Stripes:
    """A record is read by its number, at any time and in any order: from a file, a database, …"""

    def __init__(self, image_size: int, channels: int, records: int = 600) -> None:
        self.shape = (channels, image_size, image_size)
        self.records = records

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> Tensor:
        """Float32 [C, H, W] with values in [0, 1]; the same whenever it is read."""
        phase = torch.rand(1, generator=torch.Generator().manual_seed(index)) * 2 * math.pi
        angle = math.pi * self.label_of(index) / 4
        grid = torch.arange(self.shape[-1], dtype=torch.float32)
        across = math.cos(angle) * grid[:, None] + math.sin(angle) * grid
        return (0.5 + 0.5 * torch.sin(1.5 * across + phase)).repeat(self.shape[0], 1, 1)

    def unit_of(self, index: int) -> int:
        return index  # every record is a privacy unit of its own

    def label_of(self, index: int) -> int:
        return index % 4  # the class; leave the method out where records have none
