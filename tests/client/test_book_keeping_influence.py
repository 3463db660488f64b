"""What one unit can change in a sum that is formed without its gradient: never more than C."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.book_keeping_case import (
    C,
    LossOfFirstView,
    assert_close,
    clipped,
    drawn,
    images,
)
from torch import Tensor, nn

from tacit_client.book_keeping import BookKeepingGradients
from tacit_common.encoders.vision import VisionTransformer
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.objectives.masked import MaskedModelling
from tacit_common.study import MaskedPlan, ViTPlan
from tacit_common.training import seeded_generator

# --- what one unit can change ---------------------------------------------------------------


HARD: dict[str, Callable[[Tensor], Tensor]] = {
    "as drawn": lambda x: x,
    "huge": lambda x: x * 1e12,
    "tiny": lambda x: x * 1e-12,
    "of two scales": lambda x: x * torch.tensor([1e6, 1e-6, 1.0, 1e3])[None, :, None],
    "all alike": lambda x: x[:, :1].expand_as(x).contiguous(),
    "a large mean": lambda x: x + 1e4,
}


class Cancelling(LossOfFirstView):
    """Gradients of tokens that cancel but for a share of `rest`."""

    def __init__(self, rest: float) -> None:
        self.rest = rest

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        out = model.encoder(views[0])  # [B, T, p]
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0 + self.rest], dtype=out.dtype)
        return (out * signs[:, None]).sum(dim=(1, 2))


@pytest.mark.parametrize("rest", [None, 1.0, 1e-2, 1e-4, 1e-6, 0.0])
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("width", [3, 48], ids=["formed", "by Gram matrices"])
def test_a_contribution_is_never_longer_than_the_clip_norm(
    rest: float | None, kind: str, width: int
) -> None:
    objective = LossOfFirstView() if rest is None else Cancelling(rest)
    model = PretrainModel(nn.Linear(width, width), nn.Identity())
    path = BookKeepingGradients(model, objective)
    batch = HARD[kind](torch.randn(6, 4, width, generator=seeded_generator(kind)))
    for norm in (1e-8, 1.0, 1e8):
        for record in batch.split(1):
            total = clipped(path, [record], norm=norm)
            assert float(total.norm()) <= norm * (1 + 1e-9)
        whole = clipped(path, list(batch.split(1)), norm=norm)
        for left in range(6):
            rest_of = [record for i, record in enumerate(batch.split(1)) if i != left]
            influence = float((whole - clipped(path, rest_of, norm=norm)).norm())
            assert influence <= norm * (1 + 1e-6)


def _masked_model() -> tuple[PretrainModel, Objective]:
    encoder = VisionTransformer(
        ViTPlan(kind="vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2)
    )
    objective = MaskedModelling(MaskedPlan(kind="masked", mask_ratio=0.5, decoder_width=8))
    return PretrainModel(encoder, objective.build_head(encoder)), objective


@given(
    size=st.sampled_from([1, 64]),
    brightness=st.sampled_from([0.0, 1.0, 1e3, 1e15, -1e6]),
    chunk=st.sampled_from([5, 64]),
)
def test_one_record_changes_the_sum_by_at_most_the_clip_norm(
    size: int, brightness: float, chunk: int
) -> None:
    path = BookKeepingGradients(*_masked_model())
    batch = list(images(size).split(1))
    batch[-1] = batch[-1] * brightness  # last, so that the others' views stay as they are
    whole = clipped(path, batch, physical_batch=chunk)
    influence = float((whole - clipped(path, batch[:-1], physical_batch=chunk)).norm())
    assert influence <= C * (1 + 1e-6)
    if abs(brightness) >= 1e3:
        assert influence > 0.99 * C


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_unit_that_is_not_finite_does_not_reach_others_in_its_pass(poison: float) -> None:
    batch = drawn(5, 4, 3)
    model, objective = PretrainModel(nn.Linear(3, 3), nn.LayerNorm(3)).double(), LossOfFirstView()
    path = BookKeepingGradients(model, objective)
    others = clipped(path, list(batch[1:].split(1)))
    batch[0, 0, 0] = poison
    assert_close(clipped(path, list(batch.split(1))), others, 1e-14)
