"""Per-unit norms and clipped sums of every layer, by shape, against plain autograd."""

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.book_keeping_case import (
    check_layer,
    drawn,
)
from torch import Tensor, nn

from tacit_common.training import seeded_generator

small = st.integers(1, 7)
lengths = st.lists(st.integers(1, 5), max_size=2)


@given(batch=small, between=lengths, d=st.integers(1, 20), p=st.integers(1, 20), bias=st.booleans())
def test_linear_layers_of_every_shape(
    batch: int, between: list[int], d: int, p: int, bias: bool
) -> None:
    check_layer(nn.Linear(d, p, bias=bias), drawn(batch, *between, d))


@given(
    batch=small,
    groups=st.sampled_from([1, 2, 3]),
    width=st.integers(1, 3),
    out=st.integers(1, 3),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    bias=st.booleans(),
    flat=st.booleans(),
)
def test_convolutions_of_every_shape(
    batch: int, groups: int, width: int, out: int, kernel: int, stride: int, padding: int,
    dilation: int, mode: str, bias: bool, flat: bool,
) -> None:  # fmt: skip
    kind: Any = nn.Conv1d if flat else nn.Conv2d
    layer = kind(
        groups * width, groups * out, kernel, stride, padding, dilation, groups, bias, mode
    )
    check_layer(layer, drawn(batch, groups * width, *([9] if flat else [9, 6])))


def test_convolutions_that_keep_the_size() -> None:
    check_layer(nn.Conv2d(2, 3, (1, 3), padding="same"), drawn(3, 2, 5, 6))


@given(batch=small, between=lengths, shape=st.lists(st.integers(2, 6), min_size=1, max_size=2))
def test_layer_norms_of_every_shape(batch: int, between: list[int], shape: list[int]) -> None:
    check_layer(nn.LayerNorm(shape), drawn(batch, *between, *shape))


@given(batch=small, groups=st.integers(1, 3), per_group=st.integers(2, 4), after=lengths)
def test_group_norms_of_every_shape(
    batch: int, groups: int, per_group: int, after: list[int]
) -> None:
    channels = groups * per_group
    check_layer(nn.GroupNorm(groups, channels), drawn(batch, channels, *after))


@given(
    batch=small,
    between=lengths,
    size=st.integers(1, 9),
    d=st.integers(1, 9),
    padding=st.booleans(),
)
def test_embeddings_of_every_shape_with_repeated_rows(
    batch: int, between: list[int], size: int, d: int, padding: bool
) -> None:
    index = torch.randint(size, (batch, *between), generator=seeded_generator(batch, size))
    if padding and size > 1:
        index = index.flatten().index_fill(0, torch.tensor([0]), 1).view_as(index)
        index[0] = 1  # record 0 has something to learn
        index = torch.where(index == 0, 1, index) if not between else index
    layer = nn.Embedding(size, d, padding_idx=0 if padding and size > 1 and between else None)
    if layer.padding_idx is not None:
        index[..., 0] = 1  # and so has every other
    check_layer(layer, index)


@given(batch=small, widths=st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_stacks_of_layers(batch: int, widths: list[int]) -> None:
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
    check_layer(nn.Sequential(*layers), drawn(batch, 3, widths[0]))


class Twice(nn.Module):
    """Calls one layer twice, the second time on what it made of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.layer(x))
        out: Tensor = self.norm(self.layer(torch.cat([first, x], dim=1)))
        return out


def test_a_layer_that_is_called_twice_has_its_cross_terms() -> None:
    check_layer(Twice(), drawn(5, 3, 4))
