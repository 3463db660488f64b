"""Clipping without forming gradients: the same sums as where they are formed."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from tests.client.book_keeping_case import (
    C,
    LossOfFirstView,
    assert_close,
    clipped,
    images,
)
from torch import Tensor, nn

from tacit_client.book_keeping import BookKeepingGradients
from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import (
    check_bounded,
    check_same_sums,
    check_units_separate,
)
from tacit_common.study import Study

VIEWS = "views={ max_shift = 0.2, max_contrast = 0.5, noise_stddev = 0.1 }"
STUDIES = {
    "mae": (),
    "mae, normalised": ("objective.normalize_targets=true",),
    "mae, tiny patches": ("encoder.patch_size=1", "objective.mask_ratio=0.9"),
    "simmim": ("objective.style=simmim",),
    "bank contrast": (
        'objective={ kind = "bank_contrast", bank_size = 16, projection_dim = 8 }',
        VIEWS,
    ),
}


def paths(
    study: Study, *, cap: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[BookKeepingGradients, PerUnitGradients]:
    """The path under test and the one that forms gradients, on equal models."""
    ours, objective = build_model(study, PluginTable())
    theirs, _ = build_model(study, PluginTable())
    return (
        BookKeepingGradients(ours.to(dtype), objective, records_per_unit=cap),
        PerUnitGradients(theirs.to(dtype), objective, records_per_unit=cap),
    )


TOLERANCES = [(torch.float32, 1e-6), (torch.float64, 1e-10)]


@pytest.fixture(params=STUDIES, ids=lambda name: name.replace(" ", "-"))
def study(request: pytest.FixtureRequest, make_study: Callable[..., Study]) -> Study:
    return make_study(*STUDIES[request.param])


# --- the same sums ----------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("norm", [C, 1e-3, 1e6], ids=["some clipped", "all clipped", "none"])
@pytest.mark.parametrize("chunk", [5, 64])
def test_sums_are_those_of_the_path_that_forms_gradients(
    study: Study, dtype: torch.dtype, tolerance: float, norm: float, chunk: int
) -> None:
    ours, theirs = paths(study, dtype=dtype)
    units = list(images(13).to(dtype).split(1))
    assert_close(
        clipped(ours, units, norm=norm, physical_batch=chunk),
        clipped(theirs, units, norm=norm, physical_batch=chunk),
        tolerance,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("norm", [C, 1e6])
def test_subjects_and_views_clip_as_one(
    study: Study, dtype: torch.dtype, tolerance: float, norm: float
) -> None:
    """Units of one, two and three records under a cap of three, and three views of each."""
    ours, theirs = paths(study, cap=3, dtype=dtype)
    units = [images(n, seed=n).to(dtype) for n in (1, 3, 2, 3)]
    for k in (1, 3):
        # Passes of equal units, so that both draw the same views.
        fast = clipped(ours, units, norm=norm, augmentations=k, physical_batch=6 * k)
        slow = clipped(theirs, units, norm=norm, augmentations=k, physical_batch=6)
        assert_close(fast, slow, tolerance)


def test_a_unit_whose_views_do_not_fit_one_pass_gets_passes_of_its_own(study: Study) -> None:
    ours, theirs = paths(study, cap=3)
    units = [images(n, seed=n) for n in (1, 3, 2)]
    fast = clipped(ours, units, augmentations=4, physical_batch=3)
    assert_close(fast, clipped(theirs, units, augmentations=4, physical_batch=3), 1e-6)


class NaNOfNothing(nn.Module):
    """An encoder whose features of an image of zeros are not finite."""

    embed_dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        features: Tensor = self.layer(flat / flat.norm(dim=1, keepdim=True))
        return features


def test_empty_slots_of_a_unit_with_passes_of_its_own_reach_nothing() -> None:
    path = BookKeepingGradients(
        PretrainModel(NaNOfNothing(), nn.Identity()), LossOfFirstView(), records_per_unit=4
    )
    alone = clipped(path, [images(2)], augmentations=3, physical_batch=4)
    assert torch.isfinite(alone).all()
    assert alone.norm() > 0


def test_an_empty_sample_gives_zeros_of_the_right_length(study: Study) -> None:
    ours, theirs = paths(study)
    nothing = clipped(ours, [])
    assert nothing.dtype == torch.float64
    assert nothing.shape == (ours.size,) == (theirs.size,)
    assert not nothing.any()


def test_the_model_is_left_as_it_was(study: Study) -> None:
    model, objective = build_model(study, PluginTable())
    before = copy.deepcopy(model)
    path = BookKeepingGradients(model, objective)
    first = clipped(path, list(images(5).split(1)))
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert all(torch.equal(a, b) and a.requires_grad and a.grad is None for a, b in pairs)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(first, clipped(path, list(images(5).split(1))))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("cap", [1, 2])
def test_a_unit_that_is_not_finite_contributes_exactly_zero(
    study: Study, poison: float, cap: int
) -> None:
    ours, _ = paths(study, cap=cap)
    units = [images(cap, seed=seed) for seed in range(4)]
    before = clipped(ours, units[:3])
    units[3][-1] = poison
    assert torch.equal(clipped(ours, units), before)
    assert not clipped(ours, units[3:]).any()
    assert torch.equal(clipped(ours, units[:3]), before)  # and it leaves no trace


# --- the gate ---------------------------------------------------------------------------


def test_the_gate_passes_in_float64_and_in_the_types_of_production(study: Study) -> None:
    model, objective = build_model(study, PluginTable())
    units = [images(2, seed=seed) for seed in range(3)]

    def path(model: PretrainModel, objective: Objective) -> BookKeepingGradients:
        return BookKeepingGradients(model, objective, records_per_unit=2)

    check_units_separate(model, objective, units, gradient_path=path)
    check_bounded(
        "ours", path(copy.deepcopy(model), objective), units, sensitivity=1.0, physical_batch=6
    )


class ForgetsAView(BookKeepingGradients):
    """A path that clips something else than what was checked."""

    def _views(self, grid: Tensor, generator: torch.Generator, augmentations: int) -> Views:
        return super()._views(grid * 0.999, generator, augmentations)


def test_paths_with_the_same_sums_are_one_and_others_are_refused(
    make_study: Callable[..., Study],
) -> None:
    model, objective = build_model(make_study(), PluginTable())
    units = images(3).split(1)
    check_same_sums(model, objective, units, (PerUnitGradients, BookKeepingGradients))
    with pytest.raises(PrivacyConfigError, match="on the path that clips"):
        check_same_sums(model, objective, units, (PerUnitGradients, ForgetsAView))
