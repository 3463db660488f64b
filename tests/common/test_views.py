"""Random views: what changes, by how much at most, and what never reaches another row."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit_common.errors import StudyError
from tacit_common.study import ViewsPlan
from tacit_common.views import random_views

EVERYTHING = ViewsPlan(
    max_shift=0.2,
    max_rotation_deg=40,
    max_zoom=0.3,
    flip=True,
    max_brightness=0.3,
    max_contrast=0.5,
    noise_stddev=0.1,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(rows: int, height: int, width: int, dy: float, dx: float) -> Tensor:
    """Images [rows, 1, height, width] of one small blob at (dx, dy) pixels from the centre."""
    y = torch.arange(height) + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    blob = torch.exp(-((y[:, None] - dy) ** 2 + (x[None] - dx) ** 2) / 8)
    return blob.expand(rows, 1, -1, -1).clone()


def centres(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Where the mass of each image lies, (dx, dy) in pixels from the centre."""
    _, _, height, width = batch.shape
    y = torch.arange(height) + 0.5 - height / 2
    x = torch.arange(width) + 0.5 - width / 2
    mass = batch.sum(dim=(1, 2, 3))
    return (batch.sum(dim=(1, 2)) @ x) / mass, (batch.sum(dim=(1, 3)) @ y) / mass


def test_a_plan_that_changes_nothing_returns_the_batch_and_draws_nothing() -> None:
    batch, generator = torch.rand(2, 1, 8, 8), seeded()
    before = generator.get_state()
    assert random_views(batch, ViewsPlan(), generator) is batch
    assert torch.equal(generator.get_state(), before)


@given(
    seed=st.integers(0, 99),
    rows=st.integers(0, 5),
    channels=st.integers(1, 3),
    height=st.integers(4, 12),
    width=st.integers(4, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_views_keep_shape_dtype_and_range(
    seed: int, rows: int, channels: int, height: int, width: int, dtype: torch.dtype
) -> None:
    batch = torch.rand(rows, channels, height, width, dtype=dtype)
    views = random_views(batch, EVERYTHING, seeded(seed))
    assert views.shape == batch.shape
    assert views.dtype == dtype
    assert ((views >= 0) & (views <= 1)).all()


@given(seed=st.integers(0, 99), j=st.integers(0, 5))
def test_a_view_depends_on_its_own_record_alone(seed: int, j: int) -> None:
    batch = torch.rand(6, 2, 8, 8)
    changed = batch.clone()
    changed[j] = math.nan
    views = random_views(batch, EVERYTHING, seeded(seed))
    others = torch.arange(6) != j
    moved = random_views(changed, EVERYTHING, seeded(seed))
    assert torch.equal(moved[others], views[others])
    assert not torch.equal(moved[j], views[j])


def test_all_randomness_comes_from_the_generator() -> None:
    batch = torch.rand(4, 1, 8, 8)
    torch.manual_seed(0)
    one = random_views(batch, EVERYTHING, seeded(7))
    torch.manual_seed(1)
    assert torch.equal(random_views(batch, EVERYTHING, seeded(7)), one)
    assert not torch.equal(random_views(batch, EVERYTHING, seeded(8)), one)


def test_records_of_one_batch_get_views_of_their_own() -> None:
    batch = torch.rand(1, 1, 8, 8).expand(5, -1, -1, -1)
    views = random_views(batch, EVERYTHING, seeded()).flatten(1)
    assert (torch.cdist(views, views) + torch.eye(5)).min() > 0.01


def test_shifts_fill_the_range_that_is_allowed_and_no_more() -> None:
    views = random_views(blobs(400, 40, 60, 0, 0), ViewsPlan(max_shift=0.25), seeded())
    dx, dy = centres(views)
    for moved, size in ((dx, 60), (dy, 40)):
        assert moved.abs().max() <= 0.25 * size + 0.05
        assert moved.min() < -0.22 * size
        assert moved.max() > 0.22 * size
    assert torch.corrcoef(torch.stack([dx, dy]))[0, 1].abs() < 0.2


def test_a_rotation_is_rigid_in_pixels_also_for_wide_images() -> None:
    views = random_views(blobs(300, 40, 60, 0, 12), ViewsPlan(max_rotation_deg=30), seeded())
    dx, dy = centres(views)
    torch.testing.assert_close((dx**2 + dy**2).sqrt(), torch.full((300,), 12.0), atol=0.1, rtol=0)
    angle = torch.rad2deg(torch.atan2(dy, dx))
    assert angle.abs().max() <= 30.1
    assert angle.min() < -27
    assert angle.max() > 27


def test_zoom_scales_about_the_centre() -> None:
    views = random_views(blobs(300, 40, 60, 8, 0), ViewsPlan(max_zoom=0.25), seeded())
    dx, dy = centres(views)
    assert dx.abs().max() < 0.05
    assert dy.min() == pytest.approx(6, abs=0.2)
    assert dy.max() == pytest.approx(10, abs=0.2)


def test_a_flip_mirrors_half_of_the_records_exactly() -> None:
    batch = torch.rand(400, 1, 6, 7)
    views = random_views(batch, ViewsPlan(flip=True), seeded())
    same = torch.isclose(views, batch, atol=1e-5).all(dim=(1, 2, 3))
    mirrored = torch.isclose(views, batch.flip(3), atol=1e-5).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_what_comes_from_outside_is_black() -> None:
    views = random_views(torch.ones(50, 1, 20, 20), ViewsPlan(max_shift=0.3), seeded())
    assert views[:, :, 0, 0].min() == 0
    assert (views[:, :, 10, 10] > 0.99).all()


def test_brightness_is_added_and_contrast_keeps_the_mean() -> None:
    batch = 0.4 + 0.2 * torch.rand(300, 1, 6, 6)
    added = random_views(batch, ViewsPlan(max_brightness=0.2), seeded()) - batch
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added))
    assert 0.19 < added.max() <= 0.2 + 1e-6
    assert -0.2 - 1e-6 <= added.min() < -0.19

    stretched = random_views(batch, ViewsPlan(max_contrast=0.5), seeded())
    torch.testing.assert_close(stretched.mean(dim=(1, 2, 3)), batch.mean(dim=(1, 2, 3)))
    ratio = stretched.std(dim=(1, 2, 3)) / batch.std(dim=(1, 2, 3))
    assert 0.5 - 1e-4 <= ratio.min() < 0.52
    assert 1.48 < ratio.max() <= 1.5 + 1e-4


def test_noise_has_the_stddev_of_the_plan() -> None:
    batch = torch.full((200, 1, 10, 10), 0.5)
    noise = random_views(batch, ViewsPlan(noise_stddev=0.05), seeded()) - batch
    assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    assert abs(noise.mean().item()) < 0.002


def test_records_that_are_no_images_are_refused() -> None:
    with pytest.raises(StudyError, match="a record has 1 dimensions"):
        random_views(torch.rand(3, 5), EVERYTHING, seeded())
