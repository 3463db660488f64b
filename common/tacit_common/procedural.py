"""Public images made of pen strokes: a formula and a seed, no data and so no privacy cost.

They serve the warm start before the first round, the negatives of `bank_contrast`, and
the basis of probes. Each image is one pen figure of one to three Bézier curves, scaled
to fill its frame as scanned characters are, and drawn by the exact coverage of a pixel.
"""

import math

import torch
from torch import Tensor

MAX_CURVES = 3
SEGMENTS_PER_CURVE = 16
JOINED_SHARE = 0.8  # of the curves that go on where the one before ended, pen not lifted
SMOOTH_SHARE = 0.5  # of those joints that keep their direction instead of turning a corner
PEN_RADIUS = (0.05, 0.1)  # share of the image size
EDGE_BLUR = (1.0, 1.6)  # width of the pen's edge in pixels; 1 is a pixel's own average
WIDTH_SHARE = (0.4, 0.9)  # of the image that the figure is wide
HEIGHT_SHARE = (0.9, 1.1)  # of the image that the figure is high; more is cut off
MAX_SLANT = 0.25  # horizontal shear
ELEMENTS_AT_ONCE = 2**22  # pixel-segment distances in memory at once


def strokes(count: int, *, image_size: int, channels: int, generator: torch.Generator) -> Tensor:
    """Random stroke images [count, channels, image_size, image_size], values in [0, 1].

    Light strokes on black for one channel; ink and paper of random colours for more.

    Guarantees: the result is a function of the arguments and the generator's state.
    """
    start, end, radius, blur = _figures(count, image_size, generator)
    coverage = torch.empty(count, 1, image_size, image_size)
    at_once = max(1, ELEMENTS_AT_ONCE // (image_size**2 * start.shape[1]))
    for first in range(0, count, at_once):
        rows = slice(first, first + at_once)
        coverage[rows, 0] = _draw(start[rows], end[rows], radius[rows], blur[rows], image_size)
    if channels == 1:
        return coverage
    paper, ink = torch.rand(2, count, channels, 1, 1, generator=generator).unbind()
    return paper + (ink - paper) * coverage


def _figures(
    count: int, image_size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pen figures in pixels: segment starts and ends [count, S, 2], pen radius and blur [count]."""
    curves = _pen_curves(count, generator)  # [count, K, 4, 2]
    points = _bezier(curves)  # [count, K, T + 1, 2]

    height = _uniform(HEIGHT_SHARE, count, generator)
    width = _uniform(WIDTH_SHARE, count, generator)
    slant = _uniform((-MAX_SLANT, MAX_SLANT), count, generator)
    radius = _uniform(PEN_RADIUS, count, generator)
    blur = _uniform(EDGE_BLUR, count, generator)

    flat = points.flatten(1, 2)
    flat = torch.stack([flat[..., 0] + slant[:, None] * flat[..., 1], flat[..., 1]], dim=-1)
    low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    # The pen's own width counts towards the frame that the figure fills.
    frame = torch.stack([width, height], dim=-1) - 2 * radius[:, None]
    frame = frame.clamp_min(0.02)
    centred = (flat - (low + high) / 2) / (high - low).clamp_min(1e-3) * frame[:, None]
    pixels = ((centred + 0.5) * image_size).view(points.shape)
    return (
        pixels[:, :, :-1].flatten(1, 2),
        pixels[:, :, 1:].flatten(1, 2),
        radius * image_size,
        blur,
    )


def _pen_curves(count: int, generator: torch.Generator) -> Tensor:
    """Control points of cubic Bézier curves [count, K, 4, 2] in the unit square.

    An image of fewer than `MAX_CURVES` curves repeats its last one, which draws nothing new.
    """
    control = torch.rand(count, MAX_CURVES, 4, 2, generator=generator)
    joined = torch.rand(count, MAX_CURVES, generator=generator) < JOINED_SHARE
    smooth = torch.rand(count, MAX_CURVES, generator=generator) < SMOOTH_SHARE
    number = torch.randint(1, MAX_CURVES + 1, (count,), generator=generator)
    for k in range(1, MAX_CURVES):
        before, curve = control[:, k - 1], control[:, k]
        is_joined = joined[:, k, None]
        curve[:, 0] = torch.where(is_joined, before[:, 3], curve[:, 0])
        mirrored = 2 * before[:, 3] - before[:, 2]
        curve[:, 1] = torch.where(is_joined & smooth[:, k, None], mirrored, curve[:, 1])
        absent = (number <= k)[:, None, None]
        control[:, k] = torch.where(absent, before, curve)
    return control


def _bezier(control: Tensor) -> Tensor:
    """Points [..., T + 1, 2] along cubic Bézier curves with control points [..., 4, 2]."""
    t = torch.linspace(0, 1, SEGMENTS_PER_CURVE + 1, dtype=control.dtype)
    weights = torch.stack([math.comb(3, j) * t**j * (1 - t) ** (3 - j) for j in range(4)], dim=-1)
    return weights @ control


def _draw(start: Tensor, end: Tensor, radius: Tensor, blur: Tensor, image_size: int) -> Tensor:
    """Share of every pixel that the pen covers, [B, image_size, image_size].

    The pen's edge is taken as straight within a pixel, so that the share is the
    difference of two clamped ramps of the distance to the figure.
    """
    centres = torch.arange(image_size, dtype=start.dtype) + 0.5
    along = end - start  # [B, S, 2]
    inverse_length = 1 / along.square().sum(-1).clamp_min(1e-12)  # of the square, [B, S]
    # Axes from here on: [B, rows or columns, S], joined by broadcasting to [B, H, W, S].
    offset_x = centres[None, :, None] - start[:, None, :, 0]
    offset_y = centres[None, :, None] - start[:, None, :, 1]
    share_x = (offset_x * (along[..., 0] * inverse_length)[:, None])[:, None]
    share_y = (offset_y * (along[..., 1] * inverse_length)[:, None])[:, :, None]
    share = (share_x + share_y).clamp_(0, 1)
    miss_x = (share * along[:, None, None, :, 0]).sub_(offset_x[:, None])
    miss_y = share.mul_(along[:, None, None, :, 1]).sub_(offset_y[:, :, None])
    nearest = miss_x.square_().add_(miss_y.square_()).amin(-1).sqrt_()
    edge = blur[:, None, None]
    outer = ((radius[:, None, None] - nearest) / edge + 0.5).clamp(0, 1)
    inner = ((-radius[:, None, None] - nearest) / edge + 0.5).clamp(0, 1)
    return outer - inner


def _uniform(bounds: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(count, generator=generator)
