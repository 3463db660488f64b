"""Random views of images: one affine warp, then contrast, brightness and noise.

Every parameter is drawn here from the caller's generator, one row a record, and applied
in one batched pass.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tacit_common.errors import StudyError
from tacit_common.study import ViewsPlan


def random_views(batch: Tensor, plan: ViewsPlan, generator: torch.Generator) -> Tensor:
    """One random view of each image in `batch` [B, C, H, W], of the same shape and dtype.

    Guarantees: row i is a function of row i, of the plan and of row i's own draws; a
    plan that changes nothing returns `batch` itself and draws nothing. A change of
    brightness, contrast or noise keeps pixels in [0, 1].

    Raises:
        StudyError: the plan changes images and the records are none.
    """
    if plan == ViewsPlan() or not len(batch):
        return batch
    if batch.ndim != 4:
        raise StudyError(
            "the study's views cannot be applied",
            why=f"they are made for images [C, H, W], and a record has {batch.ndim - 1} dimensions",
            fix="remove [views], or choose an objective plug-in that makes views of its own",
        )
    return _change_light(_warp(batch, plan, generator), plan, generator)


def _warp(images: Tensor, plan: ViewsPlan, generator: torch.Generator) -> Tensor:
    """Rotate, zoom and mirror about the centre, then shift; what comes from outside is 0."""
    if not (plan.max_shift or plan.max_rotation_deg or plan.max_zoom or plan.flip):
        return images
    rows, _, height, width = images.shape
    draws = torch.rand(rows, 5, generator=generator, device=generator.device).to(images)
    symmetric = 2 * draws[:, :4] - 1  # in [-1, 1)
    angle = symmetric[:, 0] * math.radians(plan.max_rotation_deg)
    zoom = 1 + symmetric[:, 1] * plan.max_zoom
    # In units of half the image, as `affine_grid` counts.
    shift = 2 * plan.max_shift * symmetric[:, 2:4]
    mirror = torch.where(draws[:, 4] < 0.5, -1.0, 1.0) if plan.flip else torch.ones_like(zoom)

    # `affine_grid` wants the map from the result's pixels to the source's, so this is the
    # inverse: unshift, unrotate, unzoom. Rotation is rigid in pixels, hence the aspect.
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    aspect = height / width
    linear = torch.stack(
        [
            torch.stack([mirror * cos, mirror * sin * aspect], dim=-1),
            torch.stack([-sin / aspect, cos], dim=-1),
        ],
        dim=1,
    )  # [B, 2, 2]
    offset = -linear @ shift.unsqueeze(-1)  # [B, 2, 1]
    # torch's own sampler is the one that kornia calls, and importing kornia takes a second.
    grid = F.affine_grid(torch.cat([linear, offset], dim=-1), list(images.shape), False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _change_light(images: Tensor, plan: ViewsPlan, generator: torch.Generator) -> Tensor:
    """Contrast about each image's own mean, then brightness, then pixel noise."""
    if not (plan.max_contrast or plan.max_brightness or plan.noise_stddev):
        return images
    rows = images.shape[0]
    draws = torch.rand(rows, 2, 1, 1, 1, generator=generator, device=generator.device)
    symmetric = 2 * draws.to(images) - 1
    contrast = 1 + symmetric[:, 0] * plan.max_contrast
    brightness = symmetric[:, 1] * plan.max_brightness
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    changed = mean + (images - mean) * contrast + brightness
    if plan.noise_stddev:
        noise = torch.randn(images.shape, generator=generator, device=generator.device)
        changed = changed + noise.to(images) * plan.noise_stddev
    return changed.clamp(0, 1)
