"""The bounds that cover rounding in norms and sums, attacked: against 80-bit arithmetic.

Sums of products are compared with `numpy.longdouble`, whose own rounding is 2⁻¹¹ of float64's.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_client.book_keeper import clip_weights
from tacit_client.book_keeping import FLOAT_SLACK, MOST_UNITS
from tacit_client.layer_pairs import MOST_ROUNDINGS, GhostPairs
from tacit_common.training import seeded_generator

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="this machine has no longer floats to compare with"
)

Exact = np.ndarray[tuple[int, ...], np.dtype[np.longdouble]]


def exactly(values: Tensor) -> Exact:
    return values.double().numpy().astype(np.longdouble)


def pairs_of(inputs: Tensor, gradients: Tensor, *, bias: bool) -> GhostPairs:
    """A linear layer's pairs, from [U, T, d] and [U, T, p]."""
    weight = nn.Parameter(torch.empty(gradients.shape[-1], inputs.shape[-1]))
    extra = nn.Parameter(torch.empty(gradients.shape[-1])) if bias else None
    return GhostPairs(inputs[None], gradients[None], weight, extra)


def true_gradients(pairs: GhostPairs) -> Exact:
    """Per-unit gradients of weight and bias side by side, [U, p, d + 1]."""
    a, g = exactly(pairs.inputs[0]), exactly(pairs.gradients[0])
    if pairs.bias is not None:
        a = np.concatenate([a, np.ones_like(a[..., :1])], axis=-1)
    return np.einsum("utp,utd->upd", g, a)


def hostile(
    *, units: int, length: int, d: int, p: int, rest: float, scale: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Float32 tokens in pairs that cancel but for a share of `rest`, on two scales."""
    generator = seeded_generator("hostile", seed)
    half = max(1, length // 2)
    a = torch.randn(units, half, d, generator=generator)
    g = torch.randn(units, half, p, generator=generator)
    sizes = torch.where(torch.rand(units, half, 1, generator=generator) < 0.5, 1.0, scale)
    inputs = torch.cat([a * sizes, a * sizes], dim=1)
    gradients = torch.cat([g, g * (rest - 1)], dim=1)
    return inputs, gradients


cases = {
    "units": st.integers(1, 5),
    "length": st.sampled_from([2, 6, 64]),
    "d": st.integers(1, 40),
    "p": st.integers(1, 40),
    "rest": st.sampled_from([0.0, 2.0**-23, 1e-5, 1e-3, 0.1, 1.0]),
    "scale": st.sampled_from([1.0, 1e-6, 1e6, 1e15]),
    "seed": st.integers(0, 1000),
}


@given(**cases, bias=st.booleans())
def test_norms_are_never_below_the_true_ones_and_hardly_above(
    units: int, length: int, d: int, p: int, rest: float, scale: float, seed: int, bias: bool
) -> None:
    a, g = hostile(units=units, length=length, d=d, p=p, rest=rest, scale=scale, seed=seed)
    pairs = pairs_of(a, g, bias=bias)
    norms = pairs.norms()
    squares = (true_gradients(pairs) ** 2).sum(axis=(1, 2))
    terms = exactly(norms.terms)
    assert (exactly(norms.squares) >= squares).all()
    slack = (d + p + 2 * a.shape[1] + 9) * np.longdouble(2.0**-53)
    assert (exactly(norms.squares) <= squares + 2 * slack * terms).all()


@pytest.mark.parametrize("length", [1000, 4096])
def test_norms_of_very_many_tokens_that_cancel(length: int) -> None:
    a, g = hostile(units=1, length=length, d=3, p=2, rest=1e-6, scale=1e3, seed=0)
    pairs = pairs_of(a, g, bias=True)
    norms = pairs.norms()
    true = (true_gradients(pairs) ** 2).sum()
    assert true <= exactly(norms.squares)[0] <= true + 1e-10 * exactly(norms.terms)[0]


@given(**cases, clip=st.sampled_from([1e-6, 1.0, 1e6]), bias=st.booleans())
def test_weighted_gradients_are_bounded_whatever_cancels(
    units: int, length: int, d: int, p: int, rest: float, scale: float, seed: int,
    clip: float, bias: bool,
) -> None:  # fmt: skip
    a, g = hostile(units=units, length=length, d=d, p=p, rest=rest, scale=scale, seed=seed)
    pairs = pairs_of(a, g, bias=bias)
    weights = clip_weights([pairs], torch.ones(units, dtype=torch.float64), clip)
    lengths = np.sqrt((true_gradients(pairs) ** 2).sum(axis=(1, 2)))
    assert (exactly(weights) * lengths <= clip * np.longdouble(1 + 1e-12)).all()
    terms = pairs.norms().terms.sqrt()
    assert bool((weights * terms <= 2**8 * clip * (1 + 1e-12)).all())


@given(**cases, clip=st.sampled_from([1e-6, 1.0]))
def test_sums_are_off_by_no_more_than_the_reserve_allows(
    units: int, length: int, d: int, p: int, rest: float, scale: float, seed: int, clip: float
) -> None:
    a, g = hostile(units=units, length=length, d=d, p=p, rest=rest, scale=scale, seed=seed)
    pairs = pairs_of(a, g, bias=True)
    weights = clip_weights([pairs], torch.ones(units, dtype=torch.float64), clip)
    weight, bias = pairs.weight, pairs.bias
    assert bias is not None
    sums: dict[nn.Parameter, Tensor] = {
        parameter: torch.full(parameter.shape, torch.nan, dtype=torch.float64)
        for parameter in (weight, bias)
    }
    pairs.write_sum(weights, sums)
    summed = exactly(torch.cat([sums[weight], sums[bias][:, None]], dim=1))
    true = np.einsum("u,upd->pd", exactly(weights), true_gradients(pairs))
    off = np.sqrt(((summed - true) ** 2).sum())
    terms = (exactly(weights) * exactly(pairs.norms().terms.sqrt())).sum()
    assert off <= (2 * 512 + 4) * np.longdouble(2.0**-53) * terms
    assert off <= FLOAT_SLACK / 2 * clip * units / MOST_UNITS


def test_the_reserve_is_what_the_bounds_multiply_to() -> None:
    assert 2 * MOST_ROUNDINGS * 2**8 * MOST_UNITS * 2.0**-53 == FLOAT_SLACK
