"""The unit of privacy: what belongs to a subject, and that it is bounded as one."""

from collections.abc import Callable, Hashable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.in_unit import InUnitGradients
from tacit_client.units import Units
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import InsecureSeededRandom, SecureRandom
from tacit_common.study import Study
from tacit_common.training import trained_parameters

C = 0.05
SIMCLR = (
    'objective={ kind = "simclr", projection_dim = 8 }',
    "views={ max_shift = 0.2, noise_stddev = 0.1 }",
)


class Subjects:
    """Records of nothing, each with a subject; None stands for one that cannot be told."""

    def __init__(self, subjects: list[Hashable]) -> None:
        self.subjects = subjects

    def __len__(self) -> int:
        return len(self.subjects)

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1, 8, 8)

    def unit_of(self, index: int) -> Hashable:
        if self.subjects[index] is None:
            raise KeyError(index)
        return self.subjects[index]


# --- grouping ---------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5)))
def test_every_record_is_in_the_unit_of_its_subject(subjects: list[Hashable]) -> None:
    units = Units.of_subjects(Subjects(subjects), records_per_subject=100)
    found = [set(units.records(u, SecureRandom()).tolist()) for u in range(len(units))]
    expected = [
        {i for i, other in enumerate(subjects) if other == subject}
        for subject in dict.fromkeys(subjects)
    ]
    assert found == expected


def test_every_record_is_a_unit_where_the_unit_is_the_record() -> None:
    units = Units.of_records(Subjects(["a", "a", "b"]))
    assert [units.records(u, SecureRandom()).tolist() for u in range(len(units))] == [[0], [1], [2]]


def test_a_record_whose_subject_cannot_be_told_is_left_out() -> None:
    units = Units.of_subjects(Subjects(["a", None, "a"]), records_per_subject=5)
    assert [units.records(u, SecureRandom()).tolist() for u in range(len(units))] == [[0, 2]]


def test_a_subject_never_gives_more_records_than_the_cap_and_each_gets_its_turn() -> None:
    units = Units.of_subjects(Subjects(["a"] * 10 + ["b"]), records_per_subject=3)
    random = InsecureSeededRandom(0, insecure_rng=True)
    draws = [units.records(0, random) for _ in range(200)]
    assert all(len(set(draw.tolist())) == 3 for draw in draws)
    counts = np.bincount(np.concatenate(draws), minlength=11)
    assert counts[10] == 0  # never a record of another subject
    assert counts[:10].min() > 30  # 60 expected; 30 is five standard deviations away


def test_no_records_are_no_units() -> None:
    assert len(Units.of_subjects(Subjects([]), records_per_subject=1)) == 0
    assert len(Units.of_records(Subjects([]))) == 0


# --- one clipped gradient per subject ---------------------------------------------------


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def subject_gradients(study: Study, cap: int) -> PerUnitGradients:
    model, objective = build_model(study, PluginTable())
    return PerUnitGradients(model, objective, records_per_unit=cap)


def in_unit_gradients(study: Study) -> InUnitGradients:
    return InUnitGradients(*build_model(study, PluginTable()))


def clipped(
    gradients: PerUnitGradients | InUnitGradients,
    units: list[Tensor],
    *,
    norm: float = C,
    physical_batch: int = 8,
    augmentations: int = 1,
) -> Tensor:
    return gradients.clipped_sum(
        units,
        torch.Generator().manual_seed(0),
        l2_clip_norm=norm,
        augmentations=augmentations,
        physical_batch=physical_batch,
    )


@pytest.mark.parametrize("path", ["separable", "coupled"])
@pytest.mark.parametrize("records", [1, 2, 4])
def test_a_subject_changes_the_sum_by_at_most_the_clip_norm_however_many_records(
    make_study: Callable[..., Study], path: str, records: int
) -> None:
    gradients = (
        subject_gradients(make_study(), 4)
        if path == "separable"
        else in_unit_gradients(make_study(*SIMCLR))
    )
    others = [images(3, seed=1), images(2, seed=2)]
    # Last, so that the others' views stay those that they were.
    with_subject = clipped(gradients, [*others, 100 * images(records, seed=3)])
    influence = float((with_subject - clipped(gradients, others)).norm())
    assert influence <= C * (1 + 1e-6)
    assert influence > 0.9 * C or records == 1  # or the bound was not tried


def test_a_subject_s_gradient_is_the_mean_over_its_records(
    make_study: Callable[..., Study],
) -> None:
    """Against records that are units: with nothing clipped, a mean of two sums."""
    study = make_study("objective.mask_ratio=0.5")
    pair = images(2)
    # One pass of two rows in both cases, so that both draw the same views.
    as_one = clipped(subject_gradients(study, 2), [pair], norm=1e9, physical_batch=2)
    as_two = clipped(subject_gradients(study, 1), [pair[:1], pair[1:]], norm=1e9, physical_batch=2)
    assert torch.allclose(as_one, as_two / 2, rtol=1e-5, atol=1e-7)


def test_empty_places_of_a_subject_add_nothing(make_study: Callable[..., Study]) -> None:
    """One record under a cap of four is that record, not a quarter of it."""
    study = make_study()
    alone = clipped(subject_gradients(study, 4), [images(1)], norm=1e9, physical_batch=4)
    record = clipped(subject_gradients(study, 1), [images(1)], norm=1e9, physical_batch=4)
    assert torch.allclose(alone, record, rtol=1e-5, atol=1e-7)


def test_a_subject_with_one_bad_record_contributes_nothing_and_harms_nobody(
    make_study: Callable[..., Study],
) -> None:
    gradients = subject_gradients(make_study(), 2)
    bad = images(2, seed=5)
    bad[1, 0, 0, 0] = float("nan")
    alone = clipped(gradients, [images(2, seed=1)])
    assert torch.equal(clipped(gradients, [images(2, seed=1), bad]), alone)


# --- contrast within a subject ------------------------------------------------------------


def test_contrast_within_a_subject_is_the_gradient_of_its_own_loss(
    make_study: Callable[..., Study],
) -> None:
    study = make_study(*SIMCLR)
    model, objective = build_model(study, PluginTable())
    unit = images(3)
    total = clipped(InUnitGradients(model, objective), [unit], norm=1e9)
    views = objective.views(unit, torch.Generator().manual_seed(0))
    parameters = [p for _, p in trained_parameters(model)]
    expected = torch.autograd.grad(objective.loss(model, views).mean(), parameters)
    flat = torch.cat([g.reshape(-1) for g in expected]).double()
    assert torch.allclose(total, flat, rtol=1e-6, atol=1e-9)
    assert float(flat.norm()) > 0


def test_contrast_does_not_reach_over_to_another_subject(
    make_study: Callable[..., Study],
) -> None:
    """The contribution of the first is the same to the last bit, whoever comes after."""
    gradients = in_unit_gradients(make_study(*SIMCLR))
    first = clipped(gradients, [images(3)])
    for second in (images(3, seed=7), 1e4 * images(1, seed=8)):
        both = clipped(gradients, [images(3), second])
        assert float((both - first).norm()) <= C * (1 + 1e-6)


def test_augmentations_are_averaged_before_a_subject_is_clipped(
    make_study: Callable[..., Study],
) -> None:
    gradients = in_unit_gradients(make_study(*SIMCLR))
    once, many = (clipped(gradients, [images(3)], norm=1e9, augmentations=k) for k in (1, 4))
    assert not torch.equal(once, many)
    assert float(clipped(gradients, [images(3)], augmentations=4).norm()) <= C * (1 + 1e-6)


def test_no_subject_gives_zero(make_study: Callable[..., Study]) -> None:
    for gradients in (subject_gradients(make_study(), 2), in_unit_gradients(make_study(*SIMCLR))):
        assert not clipped(gradients, []).any()
        assert gradients.l2_sensitivity(C) == C


def test_a_scalar_loss_is_refused(make_study: Callable[..., Study]) -> None:
    class Scalar:
        def __getattr__(self, name: str) -> object:
            return getattr(objective, name)

        def loss(self, model: object, views: object) -> Tensor:
            return objective.loss(model, views).mean()

    model, objective = build_model(make_study(*SIMCLR), PluginTable())
    with pytest.raises(PrivacyConfigError, match="no loss per record"):
        clipped(InUnitGradients(model, Scalar()), [images(2)])
