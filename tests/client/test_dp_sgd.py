"""The private gradient: what one record can change, and what the fast path computes."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_client.dp_sgd import PerUnitGradients, private_mean_gradient
from tacit_common.encoders.contract import Encoder
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import NonPrivateRelease, PrivacyEvent
from tacit_common.study import Study
from tacit_common.training import seeded_generator, trained_parameters

C = 0.5
STUDIES = {
    "mae": (),
    "mae, normalised": ("objective.normalize_targets=true",),
    "simmim": ("objective.style=simmim",),
    "bank contrast": (
        'objective={ kind = "bank_contrast", bank_size = 16, projection_dim = 8 }',
        "views={ max_shift = 0.2, max_contrast = 0.5, noise_stddev = 0.1 }",
    ),
}


class ViewsOfContent:
    """An objective whose views of a record depend on the record alone, not on its place.

    So the same record gets the same views in every batch and chunk, and sums compare.
    """

    coupling = Coupling.NONE

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def build_head(self, encoder: Encoder) -> nn.Module:
        return self._objective.build_head(encoder)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        rows = [self._views_of(record) for record in batch]
        return tuple(torch.cat(parts) for parts in zip(*rows, strict=True))

    def _views_of(self, record: Tensor) -> Views:
        digest = hashlib.sha256(record.numpy().tobytes()).hexdigest()
        return self._objective.views(record[None], seeded_generator(digest))

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self._objective.loss(model, views)


Wrap = Callable[[Objective], Objective]


@dataclass(frozen=True)
class Gradients:
    """The engine under test, and a twin of its model that has no hooks."""

    engine: PerUnitGradients
    hooked: PretrainModel
    twin: PretrainModel
    objective: Objective

    @classmethod
    def of(cls, study: Study, wrap: Wrap = ViewsOfContent) -> Self:
        hooked, objective = build_model(study, PluginTable())
        twin, _ = build_model(study, PluginTable())
        wrapped = wrap(objective)
        return cls(PerUnitGradients(hooked, wrapped), hooked, twin, wrapped)

    def loss(self, views: Views) -> Tensor:
        return self.objective.loss(self.twin, views)

    def plain(self, loss: Tensor) -> Tensor:
        """The gradient of a scalar of the twin by plain autograd, float64 [P]."""
        parameters = [p for _, p in trained_parameters(self.twin)]
        parts = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts]).double()


@pytest.fixture(params=STUDIES, ids=lambda name: name.replace(" ", "-"))
def every(request: pytest.FixtureRequest, make_study: Callable[..., Study]) -> Gradients:
    """The gradients of each built-in objective that can be private."""
    return Gradients.of(make_study(*STUDIES[request.param]))


@pytest.fixture
def masked(make_study: Callable[..., Study]) -> Gradients:
    return Gradients.of(make_study())


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def clipped(
    gradients: Gradients,
    batch: Tensor,
    *,
    norm: float = C,
    augmentations: int = 1,
    chunk: int = 64,
    seed: int = 0,
) -> Tensor:
    return gradients.engine.clipped_sum(
        [record[None] for record in batch],
        torch.Generator().manual_seed(seed),
        l2_clip_norm=norm,
        augmentations=augmentations,
        physical_batch=chunk,
    )


def clip(gradient: Tensor, norm: float = C) -> Tensor:
    return gradient / max(1.0, float(gradient.norm()) / norm)


def slow_clipped_sum(gradients: Gradients, batch: Tensor, norm: float = C) -> Tensor:
    """Algorithm 1 of Abadi et al. 2016 as it is written: one record after the other."""
    total = torch.zeros_like(clipped(gradients, torch.empty(0)))
    for record in batch:
        views = gradients.objective.views(record[None], torch.Generator())
        total += clip(gradients.plain(gradients.loss(views).sum()), norm)
    return total


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal up to the float32 rounding of gradients."""
    error = float((actual - expected).norm() / expected.norm())
    assert error < 1e-5, f"relative error {error:.2g}"


# --- the fast sum is the slow sum ------------------------------------------------------


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("norm", [C, 1e-3, 1e6], ids=["some clipped", "all clipped", "none"])
def test_the_clipped_sum_is_that_of_a_loop_over_records(
    every: Gradients, size: int, norm: float
) -> None:
    batch = images(size)
    assert_close(clipped(every, batch, norm=norm), slow_clipped_sum(every, batch, norm))


def test_the_sum_without_clipping_is_the_total_gradient_of_every_parameter(
    every: Gradients,
) -> None:
    batch = images(16)
    fast = clipped(every, batch, norm=1e9)
    total = every.plain(every.loss(every.objective.views(batch, torch.Generator())).sum())
    assert_close(fast, total)
    sizes = [p.numel() for _, p in trained_parameters(every.twin)]
    names = [name for name, _ in trained_parameters(every.twin)]
    for name, ours, true in zip(
        names, torch.split(fast, sizes), torch.split(total, sizes), strict=True
    ):
        assert bool(ours.any()) == bool(true.any()), name
        assert torch.allclose(ours, true, rtol=1e-3, atol=1e-6 * float(total.norm())), name


def test_a_sum_leaves_parameters_and_their_gradients_as_they_were(every: Gradients) -> None:
    first = clipped(every, images(5))
    pairs = zip(every.hooked.parameters(), every.twin.parameters(), strict=True)
    assert all(torch.equal(after, before) for after, before in pairs)
    assert all(p.grad is None for p in every.hooked.parameters())
    assert torch.equal(first, clipped(every, images(5)))  # nothing was carried over


@pytest.mark.parametrize("chunk", [1, 3, 7, 16, 17])
def test_the_physical_batch_does_not_change_the_result(every: Gradients, chunk: int) -> None:
    batch = images(16)
    assert_close(clipped(every, batch, chunk=chunk), clipped(every, batch))


def test_an_empty_batch_gives_zeros_of_the_right_length(every: Gradients) -> None:
    nothing = clipped(every, torch.empty(0))
    assert nothing.dtype == torch.float64
    assert nothing.shape == clipped(every, images(1)).shape
    assert not nothing.any()


# --- what one record can change --------------------------------------------------------


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([1, 64]),
    brightness=st.sampled_from([0.0, 1.0, 1e3, 1e15, -1e6]),
    chunk=st.sampled_from([5, 64]),
)
def test_one_record_changes_the_sum_by_at_most_the_clip_norm(
    masked: Gradients, size: int, brightness: float, chunk: int
) -> None:
    batch = images(size)
    batch[0] *= brightness
    influence = clipped(masked, batch, chunk=chunk) - clipped(masked, batch[1:], chunk=chunk)
    assert float(influence.norm()) <= C * (1 + 1e-12)
    if brightness >= 1e3:
        assert float(influence.norm()) > 0.99 * C  # the bound is reached, so the test can fail


@pytest.mark.parametrize("size", [2, 5, 64])
def test_a_gradient_is_the_same_to_the_last_bit_wherever_its_record_stands(
    every: Gradients, size: int
) -> None:
    """Else parameters could be made that turn the last bit into more than the clip norm."""

    def rows(batch: Tensor) -> Tensor:
        parts = every.engine._rows_of_records(batch, torch.Generator(), 1)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    batch = images(size)
    there = rows(batch)
    for seed in range(3):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(rows(batch[order]), there[order])
    company = images(size, seed=1) * 1e3
    company[-1] = batch[0]
    assert torch.equal(rows(company)[-1], there[0])


class Sizes(ViewsOfContent):
    """Notes how many rows the model is called with."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.seen: list[int] = []

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        self.seen.append(len(views[0]))
        return super().loss(model, views)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 30])
def test_the_model_never_sees_how_many_records_were_drawn(
    make_study: Callable[..., Study], size: int
) -> None:
    gradients = Gradients.of(make_study(), wrap=Sizes)
    total = clipped(gradients, images(size), chunk=8)
    assert isinstance(gradients.objective, Sizes)
    assert gradients.objective.seen == [8] * math.ceil(size / 8)
    assert_close(total, slow_clipped_sum(gradients, images(size)))  # and the filling adds nothing


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
def test_a_record_that_is_not_finite_contributes_exactly_zero(
    masked: Gradients, size: int, poison: float
) -> None:
    batch = images(size)
    batch[size // 2, 0, 3:5, 3:5] = poison  # in all four patches
    total = clipped(masked, batch)
    assert total.isfinite().all()
    others = torch.cat([batch[: size // 2], batch[size // 2 + 1 :]])
    if size == 1:
        assert not total.any()
    else:
        assert_close(total, clipped(masked, others))


def test_a_record_that_is_not_finite_leaves_no_trace_in_the_next_sum(masked: Gradients) -> None:
    clean = clipped(masked, images(4))
    clipped(masked, torch.full((4, 1, 8, 8), math.nan))
    assert torch.equal(clipped(masked, images(4)), clean)


# --- augmentations ---------------------------------------------------------------------


@pytest.mark.parametrize("norm", [C, 1e6], ids=["clipped", "not clipped"])
def test_views_of_a_record_are_averaged_before_they_are_clipped(
    make_study: Callable[..., Study], norm: float
) -> None:
    views = "views={ max_shift = 0.3, max_rotation_deg = 90, max_contrast = 0.9 }"
    gradients = Gradients.of(make_study(views), wrap=lambda objective: objective)
    batch, k = images(6), 4
    fast = clipped(gradients, batch, norm=norm, augmentations=k, seed=7, chunk=len(batch))

    generator = torch.Generator().manual_seed(7)
    drawn = [gradients.objective.views(batch, generator) for _ in range(k)]
    expected, clipped_first = torch.zeros_like(fast), torch.zeros_like(fast)
    for row in range(len(batch)):
        alone = [tuple(view[row : row + 1] for view in views) for views in drawn]
        each = [gradients.plain(gradients.loss(views).sum()) for views in alone]
        expected += clip(torch.stack(each).mean(dim=0), norm)
        clipped_first += torch.stack([clip(gradient, norm) for gradient in each]).mean(dim=0)
    assert_close(fast, expected)
    if norm == C:
        assert float((fast - clipped_first).norm() / fast.norm()) > 1e-2  # they do differ


def test_augmentations_do_not_raise_what_a_record_can_change(masked: Gradients) -> None:
    batch = images(1) * 1e3
    assert float(clipped(masked, batch, augmentations=5).norm()) <= C * (1 + 1e-12)


# --- objectives that break their contract ----------------------------------------------


class Broken(ViewsOfContent):
    """Misbehaves while it is told to."""

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective)
        self.fault: Callable[[Tensor], Tensor] | None = None

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        loss = super().loss(model, views)
        return loss if self.fault is None else self.fault(loss)


def mean_of_all(loss: Tensor) -> Tensor:
    return loss.mean()


def column(loss: Tensor) -> Tensor:
    return loss[:, None]


def one_too_few(loss: Tensor) -> Tensor:
    return loss[1:]


def raises(loss: Tensor) -> Tensor:
    raise MemoryError("the batch did not fit")


@pytest.fixture
def broken(make_study: Callable[..., Study]) -> tuple[Gradients, Broken]:
    gradients = Gradients.of(make_study(), wrap=Broken)
    assert isinstance(gradients.objective, Broken)
    return gradients, gradients.objective


@pytest.mark.parametrize("fault", [mean_of_all, column, one_too_few])
def test_a_loss_that_is_not_one_value_a_record_is_refused(
    broken: tuple[Gradients, Broken], fault: Callable[[Tensor], Tensor]
) -> None:
    gradients, objective = broken
    objective.fault = fault
    with pytest.raises(PrivacyConfigError, match="no loss per unit"):
        clipped(gradients, images(4))


@pytest.mark.parametrize("fault", [raises, mean_of_all])
def test_a_sum_that_failed_leaves_no_trace_in_the_next_one(
    broken: tuple[Gradients, Broken], fault: Callable[[Tensor], Tensor]
) -> None:
    gradients, objective = broken
    clean = clipped(gradients, images(4))
    objective.fault = fault
    with pytest.raises((MemoryError, PrivacyConfigError)):
        clipped(gradients, images(4, seed=1))
    objective.fault = None
    assert torch.equal(clipped(gradients, images(4)), clean)


class Detached(ViewsOfContent):
    """SimSiam's shape: two passes through the model, and no gradient through one of them."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return super().loss(model, views) * (1 + super().loss(model, views).detach())


class WithoutGradient(ViewsOfContent):
    """The same, in the way that Opacus understands."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        with torch.no_grad():
            target = super().loss(model, views)
        return super().loss(model, views) * (1 + target)


def test_a_detached_pass_is_refused_and_never_taken_for_a_zero_gradient(
    make_study: Callable[..., Study],
) -> None:
    gradients = Gradients.of(make_study(), wrap=Detached)
    for _ in range(2):  # the second time as the first
        with pytest.raises(PrivacyConfigError, match="detached"):
            clipped(gradients, images(4))


def test_a_pass_without_gradient_does_not_disturb_the_one_with(
    make_study: Callable[..., Study],
) -> None:
    gradients = Gradients.of(make_study(), wrap=WithoutGradient)
    assert_close(clipped(gradients, images(4)), slow_clipped_sum(gradients, images(4)))


class TwoPerRecord(ViewsOfContent):
    """Calls the model with twice as many rows as there are records."""

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        doubled = tuple(torch.cat([view, view]) for view in views)
        return super().loss(model, doubled).view(2, -1).mean(dim=0)


def test_a_model_called_with_other_rows_than_the_units_is_refused(
    make_study: Callable[..., Study],
) -> None:
    with pytest.raises(PrivacyConfigError, match="per-unit gradients cannot be formed"):
        clipped(Gradients.of(make_study(), wrap=TwoPerRecord), images(4))


# --- the noisy mean --------------------------------------------------------------------


class AddsSeven:
    """A mechanism whose noise is plain to see."""

    l2_sensitivity = C

    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum + 7.0

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return NonPrivateRelease()


@given(expected_batch=st.floats(0.5, 1e6))
def test_noise_is_added_to_the_sum_and_the_divisor_is_the_declared_batch(
    expected_batch: float,
) -> None:
    total = torch.tensor([0.0, 1.0, -3.0], dtype=torch.float64)
    mean = private_mean_gradient(total, AddsSeven(), expected_batch=expected_batch)
    assert mean.dtype == torch.float32
    assert torch.allclose(mean.double() * expected_batch, total + 7.0, rtol=1e-6)
    assert total.tolist() == [0.0, 1.0, -3.0]
