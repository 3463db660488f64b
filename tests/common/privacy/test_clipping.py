"""Clipping: one unit moves the sum by at most the clip norm, whatever it holds."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from tacit_common.errors import PrivacyConfigError
from tacit_common.privacy import clip_factors, clip_rows, clipped_sum
from tacit_common.privacy.clipping import weighted_clipped_sum

FLOAT64 = 1 + 1e-12
FLOAT32 = 1 + 2e-7

anything64 = st.floats(allow_nan=True, allow_infinity=True)
anything32 = st.floats(allow_nan=True, allow_infinity=True, width=32)
clips = st.floats(1e-6, 1e6)
shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)
quick = settings(max_examples=60, deadline=None)


def norm(row: Tensor) -> float:
    """L2 norm by the standard library, which scales against overflow on its own."""
    return math.hypot(*row.double().reshape(-1).tolist())


def slow_clipped_sum(rows: Tensor, clip: float) -> list[float]:
    """One row at a time, in exact sums: what `clipped_sum` must agree with."""
    kept = []
    for row in rows.double().tolist():
        length = math.hypot(*row)
        if math.isfinite(length):
            kept.append([x * min(1.0, clip / length) if length else x for x in row])
    return [math.fsum(column) for column in zip(*kept, strict=True)] or [0.0] * rows.shape[1]


# --- clip_rows --------------------------------------------------------------------------


@quick
@given(hnp.arrays(np.float64, shapes, elements=anything64), clips)
def test_clipped_rows_are_finite_and_within_the_bound(array: np.ndarray, clip: float) -> None:
    clipped = clip_rows(torch.from_numpy(array), clip)
    assert clipped.dtype == torch.float64
    for row in clipped:
        assert norm(row) <= clip * FLOAT64


@quick
@given(hnp.arrays(np.float32, shapes, elements=anything32), clips)
def test_clipped_float32_rows_stay_within_the_bound(array: np.ndarray, clip: float) -> None:
    clipped = clip_rows(torch.from_numpy(array), clip)
    assert clipped.dtype == torch.float32
    for row in clipped:
        assert norm(row) <= clip * FLOAT32


@quick
@given(hnp.arrays(np.float64, shapes, elements=st.floats(-1e300, 1e300)), clips)
def test_rows_within_the_bound_are_unchanged_and_others_keep_their_direction(
    array: np.ndarray, clip: float
) -> None:
    rows = torch.from_numpy(array)
    for row, clipped in zip(rows, clip_rows(rows, clip), strict=True):
        length = norm(row)
        if length <= clip * (1 - 1e-12):
            assert torch.equal(row, clipped)
        else:
            assert norm(clipped - row / length * clip) <= clip * 1e-12


def test_zero_stays_zero_and_what_is_not_finite_becomes_zero() -> None:
    rows = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [3.0, math.inf], [-math.inf, math.inf]])
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(clip_rows(rows.to(dtype), 1.0), torch.zeros(4, 2, dtype=dtype))


def test_squares_that_overflow_or_vanish_do_not() -> None:
    rows = torch.tensor([[1e308, 1e308], [3e-200, 4e-200], [5e-324, 0.0]], dtype=torch.float64)
    clipped = clip_rows(rows, 1.0)
    assert clipped[0].tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert torch.equal(clipped[1:], rows[1:])
    assert norm(clip_rows(rows, 1e-250)[1]) == pytest.approx(1e-250)


# --- clip_factors -----------------------------------------------------------------------


def test_factors_follow_the_table_of_edge_cases() -> None:
    norms = torch.tensor([0.0, 0.5, 2.0, 8.0, math.inf, math.nan], dtype=torch.float64)
    assert clip_factors(norms, 2.0).tolist() == [1.0, 1.0, 1.0, 0.25, 0.0, 0.0]


# --- clipped_sum ------------------------------------------------------------------------


@quick
@given(hnp.arrays(np.float32, shapes, elements=anything32), clips)
def test_the_fast_sum_is_the_slow_sum(array: np.ndarray, clip: float) -> None:
    rows = torch.from_numpy(array)
    total = clipped_sum([rows], clip)
    assert total.dtype == torch.float64
    assert total.tolist() == pytest.approx(slow_clipped_sum(rows, clip), abs=clip * 1e-12)


@pytest.mark.parametrize("batch", [1, 64])
@settings(max_examples=15, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.just(9)), elements=anything64),
    st.sampled_from([1e-3, 1.0, 1e3, 1e30]),
    clips,
)
def test_mistake_6_influence_is_at_most_the_clip_norm(
    batch: int, outlier: np.ndarray, magnitude: float, clip: float
) -> None:
    others = torch.randn(batch, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = others * magnitude
    rows[batch // 2] = torch.from_numpy(outlier)
    zeroed = rows.clone()
    zeroed[batch // 2] = 0.0
    removed = torch.cat([rows[: batch // 2], rows[batch // 2 + 1 :]])

    def total(of: Tensor) -> Tensor:
        return clipped_sum([of[:, :4].reshape(-1, 2, 2), of[:, 4:]], clip)

    for neighbour in (zeroed, removed):
        assert norm(total(rows) - total(neighbour)) <= clip * (1 + 2.0**-20)


def test_mistake_6_the_influence_of_a_large_row_reaches_the_clip_norm() -> None:
    rows = torch.ones(64, 10)
    rows[3] *= 1e6
    without = torch.cat([rows[:3], rows[4:]])
    influence = norm(clipped_sum([rows], 0.5) - clipped_sum([without], 0.5))
    assert influence == pytest.approx(0.5, rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mistake_5_a_row_that_is_not_finite_contributes_exactly_zero(
    bad: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(8, n, generator=generator).to(dtype) for n in (5, 3))
    poisoned = first.clone()
    poisoned[2, 4] = bad  # one entry of one piece spoils the whole row
    kept = torch.arange(8) != 2
    expected = clipped_sum([first[kept], second[kept]], 1.0)
    assert torch.equal(clipped_sum([poisoned, second], 1.0), expected)
    assert bool(expected.isfinite().all())


def test_mistake_5_a_batch_of_nothing_finite_sums_to_zero() -> None:
    assert torch.equal(
        clipped_sum([torch.full((4, 3), math.nan)], 1.0), torch.zeros(3, dtype=torch.float64)
    )


def test_a_row_is_clipped_by_its_joint_norm_over_all_pieces() -> None:
    pieces = [torch.full((1, 2, 2), 3.0), torch.full((1,), 8.0), torch.zeros(1, 2)]  # norm 10
    expected = [0.3, 0.3, 0.3, 0.3, 0.8, 0.0, 0.0]
    assert clipped_sum(pieces, 1.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_pieces_of_different_types_are_clipped_together() -> None:
    pieces = [torch.full((2, 1), 6e200, dtype=torch.float64), torch.full((2, 1), 8.0)]
    assert clipped_sum(pieces, 1.0).tolist() == pytest.approx([2.0, 2 * 8 / 6e200])


@quick
@given(st.integers(1, 40), st.integers(0, 40), clips)
def test_mistake_6_microbatches_sum_to_the_whole(batch: int, cut: int, clip: float) -> None:
    generator = torch.Generator().manual_seed(batch)
    rows = torch.randn(batch, 6, generator=generator) * 3
    parts = clipped_sum([rows[:cut]], clip) + clipped_sum([rows[cut:]], clip)
    assert torch.allclose(parts, clipped_sum([rows], clip), rtol=0, atol=clip * 1e-12)


def test_an_empty_batch_sums_to_zero() -> None:
    pieces = [torch.zeros(0, 3, 2), torch.zeros(0)]
    assert torch.equal(clipped_sum(pieces, 1.0), torch.zeros(7, dtype=torch.float64))


def test_many_columns_are_summed_in_blocks_without_a_seam() -> None:
    rows = torch.randn(16, 40_001, generator=torch.Generator().manual_seed(2))
    norms = rows.double().norm(dim=1)
    expected = clip_factors(norms, 1.0) @ rows.double()
    assert torch.allclose(clipped_sum([rows], 1.0), expected, rtol=0, atol=1e-14)


def test_gradients_are_not_changed_by_summing_them() -> None:
    rows = torch.tensor([[3.0, 4.0], [math.nan, 0.0]])
    clipped_sum([rows], 1.0)
    assert rows[0].tolist() == [3.0, 4.0]
    assert math.isnan(rows[1, 0])


def test_pieces_with_different_numbers_of_rows_are_refused() -> None:
    for pieces in ([torch.ones(4, 2), torch.ones(1, 2)], []):
        with pytest.raises(PrivacyConfigError, match="belong together"):
            clipped_sum(pieces, 1.0)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_clip_norm_that_bounds_nothing_is_refused(bad: float) -> None:
    calls: tuple[Callable[[], Tensor], ...] = (
        lambda: clip_rows(torch.ones(2, 2), bad),
        lambda: clip_factors(torch.ones(2), bad),
        lambda: clipped_sum([torch.ones(2, 2)], bad),
    )
    for call in calls:
        with pytest.raises(PrivacyConfigError, match="l2_clip_norm"):
            call()


# --- weighted_clipped_sum ---------------------------------------------------------------


@quick
@given(hnp.arrays(np.float64, shapes, elements=anything64), clips, st.integers(0, 1000))
def test_the_weighted_sum_adds_up_clipped_rows_and_never_more_than_their_weights(
    array: np.ndarray, clip: float, seed: int
) -> None:
    rows = torch.from_numpy(array)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(rows), generator=generator, dtype=torch.float64)
    total = weighted_clipped_sum([rows[:, :1], rows[:, 1:]], weights, clip)
    expected = weights @ clip_rows(rows, clip)
    assert total.dtype == torch.float64
    assert total.tolist() == pytest.approx(expected.tolist(), abs=clip * 1e-12)
    assert norm(total) <= clip * float(weights.abs().sum()) * FLOAT64


def test_weights_of_one_give_the_clipped_sum() -> None:
    rows = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) * 10
    rows[3, 1] = math.nan
    assert torch.equal(weighted_clipped_sum([rows], torch.ones(8), 1.0), clipped_sum([rows], 1.0))


@pytest.mark.parametrize("bad", [[1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 1.0]]])
def test_weights_that_are_not_one_finite_number_a_row_are_refused(bad: list[float]) -> None:
    with pytest.raises(PrivacyConfigError, match="weights"):
        weighted_clipped_sum([torch.ones(2, 2)], torch.tensor(bad), 1.0)
