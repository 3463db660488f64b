"""Mistake 4: the gate judges objectives rightly on the gradients that production clips.

The objectives are those of tests/faults/couplings.py.
"""

import time
from collections.abc import Callable

import pytest
import torch
from tests.faults.couplings import (
    HIDING,
    LITERATURE,
    BatchNorm,
    CountNormalised,
    Faint,
    FaintTokens,
    FunctionalUse,
    MaskedTokens,
    MeanOverAllHidden,
    MoCo,
    OwnLoss,
    PatchContrast,
    RefusesNaN,
    SimSiam,
    SwAV,
    TopKRouting,
    WaitsForABatch,
)
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel, Views
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability.influence import (
    derivative_violations,
    row_violations,
    views_pool,
)
from tacit_common.privacy.separability.rows import check_separable, find_violation
from tacit_common.privacy.separability.violation import Clause
from tacit_common.procedural import strokes
from tacit_common.study import Study

Refuse = Callable[[Objective], None]
MakeStudy = Callable[..., Study]
RECORDS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

STUDIES = {
    "masked, mae": (),
    "masked, mae, normalised": ("objective.normalize_targets=true",),
    "masked, simmim": ("objective.style=simmim",),
    "bank contrast": (
        'objective={ kind = "bank_contrast", bank_size = 4, projection_dim = 8 }',
        "views={ max_shift = 0.2, max_contrast = 0.5, noise_stddev = 0.1 }",
    ),
}


@pytest.mark.parametrize("name", STUDIES)
def test_sound_objectives_of_this_package_pass(make_study: MakeStudy, name: str) -> None:
    model, objective = build_model(make_study(*STUDIES[name]), PluginTable())
    check_separable(model, objective, RECORDS, gradient_path=PerUnitGradients)


@pytest.fixture
def model_for(make_study: MakeStudy) -> Callable[[Objective], PretrainModel]:
    """The tiny study's encoder, under the head of an objective."""

    def make(objective: Objective) -> PretrainModel:
        encoder = build_model(make_study(), PluginTable())[0].encoder
        if isinstance(objective, MaskedTokens):
            encoder.requires_grad_(False)  # it sees no pixels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return PretrainModel(encoder, objective.build_head(encoder))

    return make


@pytest.fixture
def check(model_for: Callable[[Objective], PretrainModel]) -> Callable[..., None]:
    def run(objective: Objective, records: Tensor = RECORDS) -> None:
        check_separable(model_for(objective), objective, records, gradient_path=PerUnitGradients)

    return run


@pytest.mark.parametrize(
    "objective",
    [OwnLoss(), SimSiam(), PatchContrast(), MaskedTokens()],
    ids=lambda value: type(value).__name__,
)
def test_sound_objectives_of_ones_own_pass(check: Refuse, objective: Objective) -> None:
    check(objective)


@pytest.mark.parametrize(
    ("objective", "clause"), LITERATURE + HIDING, ids=lambda value: type(value).__name__
)
def test_an_objective_that_couples_records_is_refused_by_the_clause_that_it_breaks(
    check: Refuse, objective: Objective, clause: Clause
) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        check(objective)
    assert f"that {clause} failed" in caught.value.why
    assert type(objective).__name__ in caught.value.what


def test_every_clause_has_a_fault_planted_for_it() -> None:
    only_for_units = {Clause.BOUNDED}  # see tests/common/privacy/separability/test_units.py
    assert {clause for _, clause in LITERATURE + HIDING} == set(Clause) - only_for_units
    assert len(LITERATURE) >= 11


def test_a_coupling_that_waits_for_a_batch_is_found_if_the_check_is_given_one(
    check: Callable[..., None],
) -> None:
    many = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(PrivacyConfigError, match=Clause.REPLACED):
        check(WaitsForABatch(), many)
    check(WaitsForABatch(), many[:15])  # what the check's docstring says that it cannot see
    check(OwnLoss(), many)


# --- what the parts of the gate are for ------------------------------------------------


@pytest.fixture
def parts(
    model_for: Callable[[Objective], PretrainModel],
) -> Callable[[Objective], tuple[list[Clause], list[Clause]]]:
    """What the two halves of the gate find each by itself: values of losses, and derivatives."""

    def run(objective: Objective) -> tuple[list[Clause], list[Clause]]:
        model = model_for(objective).double()

        def loss(views: Views) -> Tensor:
            with torch.no_grad():
                return objective.loss(model, views)

        generator = torch.Generator().manual_seed(0)
        views = objective.views(RECORDS.double(), generator)
        pool, pooled = views_pool(views, objective.views(RECORDS.double().flip(0), generator))
        values = row_violations(
            lambda company: [loss(tuple(view[list(company)] for view in pooled))],
            pool,
            touched=range(4),
        )
        derivatives = derivative_violations(loss, model, views)
        return [found.clause for found in values], [found.clause for found in derivatives]

    return run


@pytest.mark.parametrize(
    "objective",
    [SwAV(), TopKRouting(), CountNormalised(), MeanOverAllHidden()],
    ids=lambda value: type(value).__name__,
)
def test_a_gate_of_derivatives_alone_would_miss_hard_assignments_and_counts(
    parts: Callable[[Objective], tuple[list[Clause], list[Clause]]], objective: Objective
) -> None:
    values, derivatives = parts(objective)
    assert derivatives == []
    assert set(values) & {Clause.REPLACED, Clause.REMOVED}


@pytest.mark.parametrize(
    "objective", [Faint(), FaintTokens()], ids=lambda value: type(value).__name__
)
def test_a_gate_of_values_alone_would_miss_faint_couplings(
    parts: Callable[[Objective], tuple[list[Clause], list[Clause]]], objective: Objective
) -> None:
    values, derivatives = parts(objective)
    assert values == []
    assert set(derivatives) == {Clause.DERIVATIVE}


def test_gradients_are_probed_beside_losses(
    parts: Callable[[Objective], tuple[list[Clause], list[Clause]]],
    model_for: Callable[[Objective], PretrainModel],
) -> None:
    objective = FunctionalUse()
    assert parts(objective) == ([], [])  # nothing is coupled; part of it is never clipped
    found = find_violation(model_for(objective), objective, RECORDS, gradient_path=PerUnitGradients)
    assert found is not None
    assert found.clause is Clause.TOTAL
    assert found.detail == "parameter 'head.3.weight'"


def test_a_layer_that_the_path_has_no_hook_for_is_never_taken_for_clipped(
    model_for: Callable[[Objective], PretrainModel],
) -> None:
    class Unhooked(PerUnitGradients):
        """Production's path with one layer's rows lost."""

        def rows(self, views: Views) -> list[Tensor]:
            *rows, last = super().rows(views)
            return [*rows, torch.zeros_like(last)]

    objective = OwnLoss()
    with pytest.raises(PrivacyConfigError, match=r"parameter 'head.3.bias'"):
        check_separable(model_for(objective), objective, RECORDS, gradient_path=Unhooked)


# --- what the gate leaves behind -------------------------------------------------------


def test_model_objective_and_random_state_stay_as_they_are(
    model_for: Callable[[Objective], PretrainModel],
) -> None:
    objective = MoCo()
    model = model_for(objective)
    before = {name: p.clone() for name, p in model.named_parameters()}
    queue, state = objective.queue.clone(), torch.get_rng_state()
    with pytest.raises(PrivacyConfigError):
        check_separable(model, objective, RECORDS, gradient_path=PerUnitGradients)
    assert torch.equal(objective.queue, queue)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.dtype == torch.float32
        assert not hasattr(parameter, "grad_sample")
    assert not any(module._forward_hooks for module in model.modules())


def test_a_refusal_says_what_why_and_what_to_do(check: Refuse) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        check(BatchNorm())
    assert caught.value.what == "objective 'BatchNorm' is not separable on this model"
    assert caught.value.why == (
        "the check that row i stays when record j is replaced failed (record 0 became fresh): "
        "what looks like one record's gradient depends on others, so clipping bounds nothing"
    )
    assert "LayerNorm" in caught.value.fix


def test_the_text_of_an_error_in_a_probe_is_not_passed_on(check: Refuse) -> None:
    with pytest.raises(PrivacyConfigError) as caught:
        check(RefusesNaN())
    assert "a probe raised RuntimeError" in caught.value.why
    assert "not finite" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)  # for the log of the site itself


def test_a_check_of_fewer_than_four_records_is_not_made(check: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="at least 4 records"):
        check(OwnLoss(), RECORDS[:3])


def test_a_model_that_has_its_hooks_already_is_refused(
    model_for: Callable[[Objective], PretrainModel],
) -> None:
    objective = OwnLoss()
    model = model_for(objective)
    PerUnitGradients(model, objective)
    with pytest.raises(PrivacyConfigError, match="a probe raised ValueError"):
        check_separable(model, objective, RECORDS, gradient_path=PerUnitGradients)


@pytest.mark.slow
def test_a_transformer_of_three_million_parameters_is_checked_in_a_minute(
    make_study: MakeStudy,
) -> None:
    study = make_study(
        "encoder.image_size=32",
        "encoder.channels=3",
        "encoder.width=192",
        "encoder.depth=6",
        "encoder.heads=3",
        "objective.mask_ratio=0.75",
        "objective.decoder_width=128",
    )
    model, objective = build_model(study, PluginTable())
    assert sum(p.numel() for p in model.parameters()) > 2_900_000
    images = strokes(16, image_size=32, channels=3, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    check_separable(model, objective, images, gradient_path=PerUnitGradients)
    assert time.process_time() - start < 60
