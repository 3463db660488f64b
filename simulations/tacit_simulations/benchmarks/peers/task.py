"""The work that all do: one model, one loss, the same images at the same sites.

A masked autoencoder of two perceptrons (Vincent et al. 2008): half of the pixels, always
the same ones, are hidden, and all are predicted. The loss of a record is its own, and has
no randomness, so that all can be asked for the same numbers.
"""

import json
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

IMAGE_SIZE, CHANNELS, EMBED_DIM = 16, 1, 64
PIXELS = CHANNELS * IMAGE_SIZE**2

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Work:
    """What a round is, and how many of them; equal for all that are compared."""

    name: str
    sites: int
    records: int  # of a site
    hidden: int  # units of the encoder's hidden layer; sets the number of parameters
    sampling_rate: float  # 1: every step sees all records of the site
    local_steps: int
    rounds: int  # that count, after a first one
    epsilon: float | None = None  # None: without differential privacy
    learning_rate: float = 0.05
    delta: float = 1e-5
    l2_clip_norm: float = 0.05  # below the norm of most gradients, so that clipping does something

    @property
    def batch(self) -> int:
        """Records of a step, the expected number where they are drawn at random."""
        return round(self.records * self.sampling_rate)

    @property
    def most_drawn(self) -> int:
        """Rows to allow a random batch: its mean and five standard deviations."""
        stddev = math.sqrt(self.batch * (1 - self.sampling_rate))
        return min(self.records, math.ceil(self.batch + 5 * stddev))

    @property
    def title(self) -> str:
        """What a round is, in a line."""
        whole = self.sampling_rate == 1
        drawn = f"all {self.batch}" if whole else f"about {self.batch}, drawn at random"
        privacy = (
            "without DP" if self.epsilon is None else f"DP-SGD, ε {self.epsilon:g} for a record"
        )
        return (
            f"{self.name}: {self.sites} sites × {self.records} records, {self.local_steps} steps "
            f"of {drawn}, {privacy}"
        )

    @property
    def epochs(self) -> int:
        """Passes over a site's records, where a framework counts in these.

        Raises:
            ValueError: the steps are no whole number of passes.
        """
        steps_of_epoch = self.records // self.batch
        if self.local_steps % steps_of_epoch or self.records % self.batch:
            raise ValueError(f"{self.local_steps} steps are no whole passes of {steps_of_epoch}")
        return self.local_steps // steps_of_epoch


@dataclass(frozen=True)
class Dealt:
    """A work as it lies in a folder: everything that a contestant reads."""

    folder: Path
    work: Work
    noise_multiplier: float | None

    @property
    def images(self) -> Vector:
        """Images of the sites [sites, records, C, H, W]; stay on disk until they are read."""
        images: Vector = np.load(self.folder / "sites.npy", mmap_mode="r")
        return images

    @property
    def start(self) -> Vector:
        """Parameters before the first round [P]."""
        start: Vector = np.load(self.folder / "start.npy")
        return start

    def site(self, index: int) -> Tensor:
        """Images of a site in memory, [records, C, H, W]."""
        return torch.from_numpy(np.array(self.images[index]))

    def finish(self, name: str, parameters: Vector) -> None:
        """Keep the parameters [P] after the last round, to be compared."""
        np.save(self.folder / f"end-{name}.npy", parameters)

    def end(self, name: str) -> Vector:
        """What `finish` kept."""
        end: Vector = np.load(self.folder / f"end-{name}.npy")
        return end


def write_dealt(
    folder: Path, work: Work, images: Vector, start: Vector, noise_multiplier: float | None
) -> None:
    """Write what `read_dealt` reads."""
    np.save(folder / "sites.npy", images)
    np.save(folder / "start.npy", start)
    content = {"work": asdict(work), "noise_multiplier": noise_multiplier}
    (folder / "work.json").write_text(json.dumps(content), encoding="utf-8")


@lru_cache(maxsize=1)
def read_dealt(folder: str) -> Dealt:
    """The work in a folder, read once a process."""
    content = json.loads((Path(folder) / "work.json").read_text(encoding="utf-8"))
    return Dealt(Path(folder), Work(**content["work"]), content["noise_multiplier"])


class Encoder(nn.Module):
    """Images [B, C, H, W] to features [B, embed_dim]."""

    def __init__(self, image_size: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.embed_dim = EMBED_DIM
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * image_size**2, hidden),
            nn.ReLU(),
            nn.Linear(hidden, EMBED_DIM),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images)
        return features


def build_head() -> nn.Module:
    """Features [B, embed_dim] to pixels [B, C·H·W]."""
    return nn.Linear(EMBED_DIM, PIXELS)


def record_losses(encoder: nn.Module, head: nn.Module, images: Tensor) -> Tensor:
    """Mean squared error of all pixels of every record, [B], from those that are shown."""
    predicted = head(encoder(images * shown()))  # [B, C·H·W]
    losses: Tensor = (predicted - images.flatten(1)).square().mean(dim=1)
    return losses


@lru_cache(maxsize=1)
def shown() -> Tensor:
    """The chequerboard of pixels that are not hidden, [H, W]."""
    row, column = torch.meshgrid(*2 * [torch.arange(IMAGE_SIZE)], indexing="ij")
    return ((row + column) % 2).to(torch.float32)


class Autoencoder(nn.Module):
    """Encoder and head in one; its parameters are named as in Tacit's `PretrainModel`."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.encoder = Encoder(IMAGE_SIZE, CHANNELS, hidden)
        self.head = build_head()

    def forward(self, images: Tensor) -> Tensor:
        """Losses [B] of images [B, C, H, W]."""
        return record_losses(self.encoder, self.head, images)


@torch.no_grad()
def load_flat(model: nn.Module, flat: Tensor) -> None:
    """Write a vector [P] into the model's parameters, in their order."""
    offset = 0
    for parameter in model.parameters():
        size = parameter.numel()
        parameter.copy_(flat[offset : offset + size].view_as(parameter))
        offset += size


@torch.no_grad()
def to_flat(model: nn.Module) -> Tensor:
    """All parameters as one vector [P], a copy."""
    return torch.cat([parameter.reshape(-1) for parameter in model.parameters()])


def started_model(dealt: Dealt) -> Autoencoder:
    """The model with the parameters from which all start."""
    model = Autoencoder(dealt.work.hidden)
    load_flat(model, torch.from_numpy(dealt.start))
    return model
