"""A vision transformer that clips exactly (Dosovitskiy et al. 2021, arXiv 2010.11929).

Every parameter sits in an `nn.Linear`, `nn.LayerNorm` or `nn.Embedding`, and each of them
is called with one leading row per record, so that the gradient of every record can be
formed and bounded. The patch embedding is a reshape and a linear layer, which is the
same map as a strided convolution.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tacit_common.errors import DataError
from tacit_common.study import ViTPlan

MASK_TOKEN_STDDEV = 0.02


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Pixels of square patches in reading order, [B, N, C·p·p], from images [B, C, H, W]."""
    rows, channels, height, width = images.shape
    down, across = height // patch_size, width // patch_size
    grid = images.reshape(rows, channels, down, patch_size, across, patch_size)
    patches = grid.permute(0, 2, 4, 1, 3, 5)  # [B, h, w, C, p, p]
    return patches.reshape(rows, down * across, channels * patch_size**2)


def unpatchify(patches: Tensor, image_shape: tuple[int, int, int], patch_size: int) -> Tensor:
    """Images [B, C, H, W] of shape `image_shape` from patches [B, N, C·p·p]."""
    rows, (channels, height, width) = patches.shape[0], image_shape
    down, across = height // patch_size, width // patch_size
    grid = patches.reshape(rows, down, across, channels, patch_size, patch_size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)


class TransformerBlock(nn.Module):
    """Pre-norm self-attention and MLP on tokens [B, N, width]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = max(1, round(width * mlp_ratio))
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, hidden)
        self.mlp_out = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, width] from tokens [B, N, width]."""
        tokens = tokens + self._attend(self.attention_norm(tokens))
        mlp: Tensor = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(tokens))))
        return tokens + mlp

    def _attend(self, tokens: Tensor) -> Tensor:
        rows, length, width = tokens.shape
        qkv = self.qkv(tokens).reshape(rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, N, width/heads]
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


@torch.no_grad()
def initialise_transformer(module: nn.Module, position: nn.Embedding) -> None:
    """Xavier-uniform layers, sine-cosine positions: He et al. 2022, arXiv 2111.06377, appendix A.

    Theirs stay fixed. Ours are learned from there, which beats a small random start by far
    in the few hundred steps of a warm start.
    """
    if position.weight.is_meta:  # a model that is only counted: torch imports for long to do this
        return
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=MASK_TOKEN_STDDEV)
    position.weight.copy_(sine_cosine_positions(*position.weight.shape))


def sine_cosine_positions(count: int, width: int) -> Tensor:
    """Sines and cosines [count, width] of the row and column of `count` patches.

    Patches lie on a square grid, or on a line if `count` is no square. Frequencies rise
    from a quarter turn over the whole grid to less than half a turn from patch to patch.
    """
    root = math.isqrt(count)
    columns = root if root * root == count else count
    place = torch.arange(count)
    quarter = -(-width // 4)  # rounded up; what is too much is cut off below
    octave = torch.linspace(-1, math.log2(columns) - 0.5, quarter)
    frequency = math.pi / columns * 2**octave
    angles = torch.stack([place // columns, place % columns], dim=1).unsqueeze(-1) * frequency
    # [count, 2, quarter] -> [count, 2, 2 * quarter]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class VisionTransformer(nn.Module):
    """The built-in `PatchEncoder`: an image becomes the mean of its normalised tokens.

    The mask token is the zero vector, before positions are added. That loses nothing
    against a learned one: adding a vector m to it is the same function as adding m to
    every position and taking it off the patch bias, and those are learned. It spares
    objectives without masks a parameter that no gradient reaches, only noise.
    """

    def __init__(self, plan: ViTPlan) -> None:
        super().__init__()
        self.image_shape = (plan.channels, plan.image_size, plan.image_size)
        self.patch_size = plan.patch_size
        self.embed_dim = plan.width
        self.num_patches = (plan.image_size // plan.patch_size) ** 2
        self.patch_dim = plan.channels * plan.patch_size**2
        self.patch_embedding = nn.Linear(self.patch_dim, plan.width)
        self.position = nn.Embedding(self.num_patches, plan.width)
        self.blocks = nn.Sequential(
            *(TransformerBlock(plan.width, plan.heads, plan.mlp_ratio) for _ in range(plan.depth))
        )
        self.norm = nn.LayerNorm(plan.width)
        initialise_transformer(self, self.position)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, embed_dim] of images [B, C, H, W]."""
        tokens = self.patch_embedding(self.patchify(images))
        return self._encode(tokens, self._every_patch(images)).mean(dim=1)

    def encode_visible(self, images: Tensor, visible: Tensor) -> Tensor:
        """Tokens [B, V, embed_dim] of the patches `visible` [B, V] (long) alone."""
        patches = gather_patches(self.patchify(images), visible)
        return self._encode(self.patch_embedding(patches), visible)

    def encode_masked(self, images: Tensor, masked: Tensor) -> Tensor:
        """Tokens [B, N, embed_dim], where patches `masked` [B, N] (bool) show the mask token."""
        tokens = self.patch_embedding(self.patchify(images))
        return self._encode(
            tokens.masked_fill(masked.unsqueeze(-1), 0.0), self._every_patch(images)
        )

    def patchify(self, images: Tensor) -> Tensor:
        """Pixels of every patch, [B, N, patch_dim], from images [B, C, H, W].

        Raises:
            DataError: the images have another shape than the encoder's plan.
        """
        if images.shape[1:] != self.image_shape:
            raise DataError(
                f"records of shape {list(images.shape[1:])} do not fit the encoder",
                why=f"it was planned for images of shape {list(self.image_shape)}",
                fix="set encoder.image_size and encoder.channels to the data's, or convert the "
                "records",
            )
        return patchify(images, self.patch_size)

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Images [B, C, H, W] from patches [B, N, patch_dim]: the inverse of `patchify`."""
        return unpatchify(patches, self.image_shape, self.patch_size)

    def _encode(self, tokens: Tensor, patch_index: Tensor) -> Tensor:
        """Normalised output tokens [B, L, width] of tokens that lie at `patch_index` [B, L]."""
        out: Tensor = self.norm(self.blocks(tokens + self.position(patch_index)))
        return out

    def _every_patch(self, images: Tensor) -> Tensor:
        """Numbers of all patches, [B, N]: one row per record, as per-example gradients need."""
        every = torch.arange(self.num_patches, device=images.device)
        return every.expand(images.shape[0], -1)


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, L] of patches [B, N, D]: [B, L, D]."""
    return patches.gather(1, index.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
