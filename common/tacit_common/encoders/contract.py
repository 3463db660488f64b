"""The encoder plug-in point."""

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """An `nn.Module` from a batch of records to features.

    Row i of the result depends on record i and the parameters alone: no batch
    statistics (BatchNorm), no state that changes while it runs. Every parameter
    belongs to a layer whose per-example gradient Opacus can form; a free-standing
    `nn.Parameter` is written as an `nn.Embedding` that is looked up.
    """

    embed_dim: int

    def __call__(self, batch: Tensor) -> Tensor:
        """Features [B, embed_dim] of `batch` [B, ...]."""
        ...


@runtime_checkable
class PatchEncoder(Encoder, Protocol):
    """An encoder that sees an image as a sequence of patches and can skip some of them."""

    num_patches: int
    patch_dim: int

    def patchify(self, images: Tensor) -> Tensor:
        """Pixels of every patch, [B, num_patches, patch_dim], from images [B, C, H, W]."""
        ...

    def unpatchify(self, patches: Tensor) -> Tensor:
        """Images [B, C, H, W] from [B, num_patches, patch_dim]: the inverse of `patchify`."""
        ...

    def encode_visible(self, images: Tensor, visible: Tensor) -> Tensor:
        """Tokens [B, V, embed_dim] of the patches `visible` [B, V] alone (MAE)."""
        ...

    def encode_masked(self, images: Tensor, masked: Tensor) -> Tensor:
        """Tokens [B, num_patches, embed_dim] where `masked` [B, num_patches] (bool) patches
        were replaced by the mask token (SimMIM)."""
        ...
