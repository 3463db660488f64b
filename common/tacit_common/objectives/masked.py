"""Masked-patch modelling: reconstruct what was hidden.

MAE: He et al. 2022, arXiv 2111.06377. SimMIM: Xie et al. 2022, arXiv 2111.09886. Both are
separable: the loss of a record is a mean over its own hidden patches, never over all
hidden patches of the batch.
"""

import math

import torch
from torch import Tensor, nn

from tacit_common.encoders.contract import Encoder, PatchEncoder
from tacit_common.encoders.vision import (
    TransformerBlock,
    gather_patches,
    initialise_transformer,
    patchify,
    unpatchify,
)
from tacit_common.errors import StudyError
from tacit_common.objectives.contract import Coupling, PretrainModel, Views
from tacit_common.study import MaskedPlan, ViewsPlan
from tacit_common.views import random_views

PATCHES_ACROSS = 4  # of an image that an encoder without patches sees, at least
TARGET_VARIANCE_FLOOR = 1e-6  # as in the authors' code: a flat patch has no deviation


class MAEDecoder(nn.Module):
    """Transformer blocks that predict hidden patches from visible tokens (He et al., section 3)."""

    def __init__(
        self, embed_dim: int, width: int, depth: int, num_patches: int, patch_dim: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(embed_dim, width)
        self.mask_token = nn.Embedding(1, width)
        self.position = nn.Embedding(num_patches, width)
        heads = math.gcd(width, 4)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 4.0) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, patch_dim)
        initialise_transformer(self, self.position)

    def forward(self, tokens: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Pixels [B, M, patch_dim] of the patches `masked` [B, M].

        `tokens` [B, V, embed_dim] are those of the patches `visible` [B, V].
        """
        seen = self.embedding(tokens) + self.position(visible)
        hidden = self.mask_token(torch.zeros_like(masked)) + self.position(masked)
        # Attention does not mind the order, so the tokens need not be put back in place.
        decoded = self.norm(self.blocks(torch.cat([seen, hidden], dim=1)))
        out: Tensor = self.pixels(decoded[:, visible.shape[1] :])
        return out


class MaskedModelling:
    """MAE or SimMIM on a `PatchEncoder`; SimMIM on any encoder of images.

    Views are (images [B, C, H, W], permutation [B, N]): the first patches of row i's
    permutation stay visible, the rest are hidden. An encoder without patches sees its
    images with the hidden squares set to zero, and one linear layer predicts the image.
    """

    coupling = Coupling.NONE

    def __init__(
        self,
        plan: MaskedPlan,
        views_plan: ViewsPlan | None = None,
        *,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """`image_shape` (C, H, W) is needed for an encoder that is no `PatchEncoder`."""
        self._plan = plan
        self._views_plan = views_plan or ViewsPlan()
        self._image_shape = image_shape
        self._num_patches = 0  # known from `build_head` on

    def build_head(self, encoder: Encoder) -> nn.Module:
        """The MAE decoder, or SimMIM's linear prediction of pixels.

        Raises:
            StudyError: the plan cannot be used with this encoder.
        """
        if not isinstance(encoder, PatchEncoder):
            return self._build_image_head(encoder)
        self._num_patches = encoder.num_patches
        self._require_two_patches()
        if self._plan.style == "simmim":
            return nn.Linear(encoder.embed_dim, encoder.patch_dim)
        if self._plan.normalize_targets and encoder.patch_dim < 2:
            raise StudyError(
                "objective.normalize_targets leaves nothing to predict",
                why="a patch has one pixel, which standardises to zero",
                fix="set normalize_targets = false, or a larger encoder.patch_size",
            )
        return MAEDecoder(
            encoder.embed_dim,
            self._plan.decoder_width,
            self._plan.decoder_depth,
            encoder.num_patches,
            encoder.patch_dim,
        )

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        """Images [B, C, H, W] and an order of their patches [B, N] (long).

        Raises:
            StudyError: no head has been built, so the number of patches is unknown.
        """
        if not self._num_patches:
            raise StudyError(
                "masked modelling does not know the patches yet",
                why="they are the encoder's, and build_head(encoder) has not been called",
                fix="build the model first, for example with tacit_common.model.build_model",
            )
        images = random_views(batch, self._views_plan, generator)
        keys = torch.rand(
            batch.shape[0], self._num_patches, generator=generator, device=generator.device
        )
        return images, keys.argsort(dim=1).to(batch.device)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        """Error over each record's hidden patches, [B]: squared for MAE, absolute for SimMIM."""
        images, permutation = views
        masked = permutation[:, self._num_visible :]
        target = gather_patches(self._patchify(model, images), masked)  # [B, M, patch_dim]
        if self._plan.style == "simmim":
            return (self._predict(model, images, permutation) - target).abs().mean(dim=(1, 2))
        if self._plan.normalize_targets:
            mean, stddev = _patch_statistics(target)
            target = (target - mean) / stddev
        return (self._predict(model, images, permutation) - target).square().mean(dim=(1, 2))

    @torch.no_grad()
    def reconstruct(self, model: PretrainModel, views: Views) -> Tensor:
        """Images [B, C, H, W] whose hidden patches are predicted and whose others are kept.

        With `normalize_targets` a prediction has no mean and scale of its own; as in the
        paper's figures it is given those of the true patch.
        """
        images, permutation = views
        masked = permutation[:, self._num_visible :]
        patches = self._patchify(model, images)
        predicted = self._predict(model, images, permutation)
        if self._plan.style == "mae" and self._plan.normalize_targets:
            mean, stddev = _patch_statistics(gather_patches(patches, masked))
            predicted = predicted * stddev + mean
        return self._unpatchify(model, _put_patches(patches, masked, predicted))

    @torch.no_grad()
    def masked_images(self, model: PretrainModel, views: Views, *, fill: float = 0.0) -> Tensor:
        """Images [B, C, H, W] whose hidden patches have the value `fill`: what the model saw."""
        images, permutation = views
        patches = self._patchify(model, images)
        hidden = self._is_masked(permutation).unsqueeze(-1)
        return self._unpatchify(model, patches.masked_fill(hidden, fill))

    @property
    def _num_visible(self) -> int:
        masked = round(self._plan.mask_ratio * self._num_patches)
        return self._num_patches - min(max(masked, 1), self._num_patches - 1)

    def _is_masked(self, permutation: Tensor) -> Tensor:
        """Which patches are hidden, bool [B, N]."""
        hidden = torch.zeros_like(permutation, dtype=torch.bool)
        return hidden.scatter(1, permutation[:, self._num_visible :], True)

    def _predict(self, model: PretrainModel, images: Tensor, permutation: Tensor) -> Tensor:
        """What the model makes of the hidden patches, [B, M, patch_dim]."""
        visible, masked = permutation.tensor_split([self._num_visible], dim=1)
        encoder = model.encoder
        if not isinstance(encoder, PatchEncoder):
            features = encoder(self.masked_images(model, (images, permutation)))
            pixels = model.head(features).view(images.shape)
            return gather_patches(self._patchify(model, pixels), masked)
        if self._plan.style == "mae":
            out: Tensor = model.head(encoder.encode_visible(images, visible), visible, masked)
            return out
        tokens = encoder.encode_masked(images, self._is_masked(permutation))
        # Per token, so predicting the hidden ones alone gives the same loss for less work.
        return torch.as_tensor(model.head(gather_patches(tokens, masked)))

    def _patchify(self, model: PretrainModel, images: Tensor) -> Tensor:
        if isinstance(model.encoder, PatchEncoder):
            return model.encoder.patchify(images)
        return patchify(images, _square_side(images.shape[2], images.shape[3]))

    def _unpatchify(self, model: PretrainModel, patches: Tensor) -> Tensor:
        if isinstance(model.encoder, PatchEncoder):
            return model.encoder.unpatchify(patches)
        shape = self._require_image_shape()
        return unpatchify(patches, shape, _square_side(*shape[1:]))

    def _build_image_head(self, encoder: Encoder) -> nn.Module:
        if self._plan.style == "mae":
            raise StudyError(
                "objective style 'mae' needs an encoder that can skip patches",
                why="this encoder sees whole images; it has no encode_visible and patchify",
                fix='set objective.style = "simmim", or use a patch encoder such as '
                'encoder.kind = "vit"',
            )
        channels, height, width = self._require_image_shape()
        side = _square_side(height, width)
        self._num_patches = (height // side) * (width // side)
        self._require_two_patches()
        return nn.Linear(encoder.embed_dim, channels * height * width)

    def _require_image_shape(self) -> tuple[int, int, int]:
        if self._image_shape is None:
            raise StudyError(
                "masked modelling does not know the size of the images",
                why="the encoder is a plug-in without patches",
                fix="give the plug-in the options image_size and channels under [encoder.options]",
            )
        return self._image_shape

    def _require_two_patches(self) -> None:
        if self._num_patches < 2:
            raise StudyError(
                "masked modelling needs at least two patches",
                why="one patch stays visible and one is hidden, and the image is a single patch",
                fix="set a smaller encoder.patch_size",
            )


def _square_side(height: int, width: int) -> int:
    """Side of the squares hidden from an encoder without patches.

    The largest that tiles the image with at least `PATCHES_ACROSS` of them across.
    """
    across = math.gcd(height, width)
    limit = max(1, min(height, width) // PATCHES_ACROSS)
    return next(side for side in range(limit, 0, -1) if across % side == 0)


def _patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's pixels, [B, M, 1] both."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=0)
    return mean, (variance + TARGET_VARIANCE_FLOOR).sqrt()


def _put_patches(patches: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """`patches` [B, N, D] with those at `index` [B, M] replaced by `values` [B, M, D]."""
    return patches.scatter(1, index.unsqueeze(-1).expand_as(values), values)
