"""Stroke images: deterministic, drawn right, fast, and like scanned digits."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from tacit_common.procedural import _draw, strokes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(count: int, size: int, channels: int = 1, seed: int = 0) -> Tensor:
    return strokes(count, image_size=size, channels=channels, generator=seeded(seed))


@given(
    count=st.integers(0, 4),
    size=st.integers(4, 40),
    channels=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_images_have_the_shape_asked_for_and_values_in_zero_to_one(
    count: int, size: int, channels: int, seed: int
) -> None:
    images = draw(count, size, channels, seed)
    assert images.shape == (count, channels, size, size)
    assert images.dtype == torch.float32
    assert ((images >= 0) & (images <= 1)).all()


def test_the_generator_decides_everything() -> None:
    torch.manual_seed(0)
    one = draw(20, 8, seed=3)
    torch.manual_seed(1)
    assert torch.equal(draw(20, 8, seed=3), one)
    assert not torch.equal(draw(20, 8, seed=4), one)


def test_images_differ_from_each_other() -> None:
    images = draw(200, 16).flatten(1)
    apart = torch.cdist(images, images) + 100 * torch.eye(200)
    assert apart.min() > 0.3


def test_a_pixel_is_the_share_of_it_that_the_pen_covers() -> None:
    start, end = torch.tensor([[[3.2, 4.1]]]), torch.tensor([[[10.7, 9.9]]])
    radius, fine = 1.3, 32
    drawn = _draw(start, end, torch.tensor([radius]), torch.tensor([1.0]), 14)[0]
    # The reference counts points of a fine grid that lie within the pen's reach.
    grid = (torch.arange(14 * fine) + 0.5) / fine
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=-1)
    along = end[0, 0] - start[0, 0]
    share = (((points - start[0, 0]) @ along) / along.square().sum()).clamp(0, 1)
    inside = (points - start[0, 0] - share.unsqueeze(-1) * along).norm(dim=-1) <= radius
    expected = inside.float().view(14, fine, 14, fine).mean(dim=(1, 3))
    assert (drawn - expected).abs().max() < 0.12  # the pen's edge is not straight at its ends
    assert (drawn - expected).abs().mean() < 0.01


def test_a_pen_thinner_than_a_pixel_is_faint() -> None:
    start, end = torch.tensor([[[2.0, 4.5]]]), torch.tensor([[[7.0, 4.5]]])
    drawn = _draw(start, end, torch.tensor([0.1]), torch.tensor([1.0]), 9)[0]
    assert drawn[4, 4].item() == pytest.approx(0.2)
    assert drawn[2, 4].item() == 0


def test_the_figure_is_the_same_at_every_size() -> None:
    small, large = draw(100, 8), draw(100, 64)
    pooled = torch.nn.functional.avg_pool2d(large, 8)
    assert (pooled - small).abs().mean() < 0.06
    unrelated = (pooled.roll(1, dims=0) - small).abs().mean()
    assert unrelated > 0.15


def test_the_figure_is_centred_and_fills_the_height() -> None:
    images = draw(500, 28)[:, 0]
    touched = images > 0.2
    assert (touched.any(dim=2).sum(dim=1) >= 23).float().mean() > 0.95
    mean = images.mean(dim=0)
    assert (mean - mean.flip(0)).abs().max() < 0.1
    assert (mean - mean.flip(1)).abs().max() < 0.1
    assert mean[14, 14] > 4 * mean[14, 1]


def test_small_images_look_like_scanned_digits() -> None:
    digits = torch.tensor(load_digits().images / 16).unsqueeze(1)
    images = draw(2000, 8)
    assert images.mean().item() == pytest.approx(digits.mean().item(), abs=0.06)
    assert images.std().item() == pytest.approx(digits.std().item(), abs=0.06)
    dark, dark_digits = (x < 1 / 32 for x in (images, digits))
    assert dark.float().mean().item() == pytest.approx(dark_digits.float().mean().item(), abs=0.1)


def test_colour_images_use_every_channel() -> None:
    images = draw(300, 16, channels=3)
    assert images.std(dim=(2, 3)).mean() > 0.05
    assert images[:, :, 0, 0].std() > 0.2  # paper, too, has a colour


def test_ten_thousand_small_images_take_less_than_two_seconds_of_one_core() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        draw(10_000, 8)
        assert time.process_time() - started < 2
    finally:
        torch.set_num_threads(threads)
