"""Logit-DP: the bound on what one record does, attacked; and the weights that it rests on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_common.errors import PrivacyConfigError, StudyError
from tacit_common.model import build_model
from tacit_common.objectives import (
    Coupling,
    LogitDP,
    Objective,
    PretrainModel,
    build_objective,
    logit_dp_sensitivity,
)
from tacit_common.plugins import PluginTable
from tacit_common.study import LogitDPPlan, Study, ViewsPlan
from tacit_common.study_file import parse_study

STUDY = """
name = "logits"
seed = 0
[encoder]
kind = "vit"
image_size = 8
channels = 1
patch_size = 4
width = 16
depth = 1
heads = 2
[objective]
kind = "logit_dp"
temperature = 1.5
projection_dim = 8
[views]
max_shift = 0.1
noise_stddev = 0.1
[privacy]
mode = "none"
sampling_rate = 0.1
[federation]
rounds = 1
local_steps = 1
client_lr = 0.1
"""

counts = st.integers(1, 200)
temperatures = st.floats(0.05, 20)
quick = settings(max_examples=60, deadline=None)


def bound(records: int | None, temperature: float, clip: float = 1.0) -> float:
    return logit_dp_sensitivity(l2_clip_norm=clip, temperature=temperature, records=records)


def study(*overrides: str) -> Study:
    return parse_study(STUDY, overrides=list(overrides)).travelling()


def built() -> tuple[PretrainModel, LogitDP]:
    model, objective = build_model(study(), PluginTable())
    assert isinstance(objective, LogitDP)
    return model.double(), objective


def objective_at(temperature: float) -> LogitDP:
    """For temperatures below 1 too, which a study may not have."""
    plan = LogitDPPlan.model_construct(kind="logit_dp", temperature=temperature, projection_dim=8)
    return LogitDP(plan, ViewsPlan(noise_stddev=0.1))


def unit_vectors(rows: int, seed: int, dim: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


# --- the bound -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "temperature", "expected"),
    [(2, 1.0, 3.523), (5, 1.0, 7.125), (3, 0.2, 29.998), (None, 1.0, 16.778), (None, 2.0, 3.718)],
)
def test_the_bound_has_its_golden_values(
    records: int | None, temperature: float, expected: float
) -> None:
    assert bound(records, temperature) == pytest.approx(expected, abs=5e-4)
    assert bound(records, temperature, clip=0.25) == bound(records, temperature) / 4


@quick
@given(counts, temperatures)
def test_the_bound_grows_with_the_sample_towards_its_supremum(n: int, temperature: float) -> None:
    here, more, supremum = (bound(k, temperature) for k in (n, n + 1, None))
    assert here <= more < supremum
    assert bound(10**15, temperature) == pytest.approx(supremum, rel=1e-3) or temperature < 0.1


def test_one_record_alone_reveals_nothing() -> None:
    assert bound(1, 1.0) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 1.7, 5.0])
def test_what_a_sample_of_random_size_is_noised_for_is_the_supremum(temperature: float) -> None:
    objective = objective_at(temperature)
    expected = 2 * 0.3 / temperature * (1 + math.exp(2 / temperature))
    assert objective.l2_sensitivity(0.3) == pytest.approx(expected, rel=1e-12)
    assert all(bound(n, temperature, 0.3) < objective.l2_sensitivity(0.3) for n in (1, 9, 10**6))


@pytest.mark.parametrize(
    ("clip", "temperature", "records"),
    [
        (0.0, 1.0, None),
        (-1.0, 1.0, None),
        (math.nan, 1.0, None),
        (math.inf, 1.0, None),
        (1.0, 0.0, None),
        (1.0, -1.0, None),
        (1.0, 1e-3, None),
        (1.0, math.nan, None),
        (1.0, 1.0, 0),
    ],
)
def test_a_bound_of_nothing_is_refused(
    clip: float, temperature: float, records: int | None
) -> None:
    with pytest.raises(PrivacyConfigError):
        bound(records, temperature, clip)


# --- the bound, attacked ---------------------------------------------------------------


def similarity_gradients(encoder: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine similarities [R, n, n] of linear encoders [R, D, d], and ∇s_ij [R, n, n, D·d].

    In closed form: ∇s = ((v − s·u)/‖Wx‖) xᵀ + ((u − s·v)/‖Wy‖) yᵀ for unit vectors u, v.
    """
    u, v = one @ encoder.mT, two @ encoder.mT  # [R, n, D]
    norm_u, norm_v = u.norm(dim=-1, keepdim=True), v.norm(dim=-1, keepdim=True)
    u, v = u / norm_u, v / norm_v
    s = u @ v.mT
    across = (v[:, None] - s[..., None] * u[:, :, None]) / norm_u[:, :, None]  # [R, n, n, D]
    down = (u[:, :, None] - s[..., None] * v[:, None]) / norm_v[:, None]
    gradients = across[..., None] * one[:, :, None, None] + down[..., None] * two[:, None, :, None]
    return s, gradients.flatten(3)


def weighted_sum(s: Tensor, gradients: Tensor, temperature: float) -> Tensor:
    chosen = (s / temperature).softmax(dim=-1)
    weights = (chosen - torch.eye(s.shape[-1], dtype=s.dtype)) / temperature
    return (weights[..., None] * gradients).sum(dim=(1, 2))


def influence(encoder: Tensor, one: Tensor, two: Tensor, temperature: float) -> Tensor:
    """What the last record changes in the sum of clipped gradients (B = 1), [R]."""
    s, gradients = similarity_gradients(encoder, one, two)
    clipped = gradients / gradients.norm(dim=-1, keepdim=True).clamp(min=1)
    with_it = weighted_sum(s, clipped, temperature)
    without = weighted_sum(s[:, :-1, :-1], clipped[:, :-1, :-1], temperature)
    return (with_it - without).norm(dim=-1)


def strongest_attack(records: int, temperature: float) -> float:
    """Gradient ascent on encoder and records from 64 random starts: the largest influence."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((64, 2, 3), (64, records, 3), (64, records, 3))
    attack = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    optimizer = torch.optim.Adam(attack, lr=0.05)
    best = 0.0
    for _ in range(300):
        optimizer.zero_grad()
        reached = influence(*attack, temperature)
        best = max(best, float(reached.detach().max()))
        (-reached.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return best


def quoted_bound(n: int) -> float:
    """A closed form often given for cosine similarity without a temperature, B = 1."""
    return 2 * (1 + (n - 2) * math.exp(2) / (math.exp(2) + n - 1))


def bound_without_temperature(n: int, temperature: float) -> float:
    """The authors' released code, times n for the sum, B = 1: the factor 1/τ is missing."""
    ratio = math.exp(2 / temperature)
    return 1 + n * min(2 * ratio / (n + ratio - 1), 2)


@pytest.mark.parametrize(
    ("records", "temperature", "at_least"), [(2, 1.0, 3.4), (5, 1.0, 7.0), (3, 0.2, 29.9)]
)
def test_linear_encoders_come_close_to_the_bound_and_never_pass_it(
    records: int, temperature: float, at_least: float
) -> None:
    assert at_least < strongest_attack(records, temperature) <= bound(records, temperature)


def test_bounds_quoted_elsewhere_are_exceeded() -> None:
    for records in (2, 5):
        assert strongest_attack(records, 1.0) > 1.15 * quoted_bound(records)
    assert strongest_attack(3, 0.2) > 4 * bound_without_temperature(3, 0.2)


@quick
@given(st.integers(1, 6), st.floats(0.1, 5), st.integers(0, 2**31), st.floats(0.01, 100))
def test_no_clipped_vectors_at_all_pass_the_bound(
    n: int, temperature: float, seed: int, scale: float
) -> None:
    """The proof asks for nothing of g_ij but its norm, and nothing of s_ij but its range."""
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(1, n, n, generator=generator, dtype=torch.float64).round(decimals=1) - 1
    s = torch.where(torch.rand(1, n, n, generator=generator) < 0.7, s.sign(), s)
    gradients = scale * torch.randn(1, n, n, 2, generator=generator, dtype=torch.float64)
    clipped = gradients / gradients.norm(dim=-1, keepdim=True).clamp(min=1)
    difference = weighted_sum(s, clipped, temperature) - weighted_sum(
        s[:, :-1, :-1], clipped[:, :-1, :-1], temperature
    )
    assert float(difference.norm()) <= bound(n, temperature) * (1 + 1e-12) + 1e-12


# --- weights ---------------------------------------------------------------------------


@quick
@given(st.integers(1, 12), st.floats(0.1, 10), st.integers(0, 1000))
def test_weights_are_the_derivatives_of_the_summed_loss(
    n: int, temperature: float, seed: int
) -> None:
    one, two = unit_vectors(n, seed), unit_vectors(n, seed + 1)
    similarity = (one @ two.T).requires_grad_()
    log_softmax = (similarity / temperature).log_softmax(dim=1)
    (expected,) = torch.autograd.grad(-log_softmax.diagonal().sum(), similarity)
    weights = objective_at(temperature).logit_weights(one, two)
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-12)


@quick
@given(st.integers(1, 12), st.floats(0.1, 10), st.integers(0, 1000), st.sampled_from([1, 1e30]))
def test_weights_stay_within_what_the_bound_assumes(
    n: int, temperature: float, seed: int, stretch: float
) -> None:
    """For any finite vectors, not for unit vectors alone."""
    one, two = stretch * unit_vectors(n, seed), stretch * unit_vectors(n, seed + 1)
    weights = objective_at(temperature).logit_weights(one, two)
    assert weights.dtype == torch.float64
    assert float(weights.sum(dim=1).abs().max()) <= 1e-12 / temperature
    assert float(weights.abs().sum(dim=1).max()) <= 2 / temperature * (1 + 1e-12)
    least = 1 / (1 + (n - 1) * math.exp(2 / temperature))
    chosen = weights * temperature + torch.eye(n, dtype=torch.float64)
    assert float(chosen.min()) >= least * (1 - 1e-9) - 1e-13


def test_weights_of_no_record_are_no_weights() -> None:
    nothing = torch.empty(0, 4)
    assert objective_at(1.0).logit_weights(nothing, nothing).shape == (0, 0)


# --- the objective ---------------------------------------------------------------------


def images(rows: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, 1, 8, 8, generator=generator, dtype=torch.float64)


def test_the_loss_is_info_nce_in_one_direction_between_two_views() -> None:
    model, objective = built()
    views = objective.views(images(), torch.Generator().manual_seed(1))
    with torch.no_grad():
        ones, twos = ([model.head(model.encoder(x[None]))[0] for x in view] for view in views)
    expected = []
    for i, one in enumerate(ones):
        terms = [
            math.exp(float(nn.functional.cosine_similarity(one, t, dim=0)) / 1.5) for t in twos
        ]
        expected.append(-math.log(terms[i] / sum(terms)))
    losses = objective.loss(model, views)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_the_chain_rule_over_pairs_gives_the_gradient_of_the_loss() -> None:
    model, objective = built()
    views = objective.views(images(), torch.Generator().manual_seed(1))
    parameters = list(model.parameters())
    expected = torch.autograd.grad(objective.loss(model, views).sum(), parameters)
    weights = objective.logit_weights(*(objective.embed(model, v).detach() for v in views))
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    similarities = objective.pairs.loss(model, (views[0][i], views[1][j]))  # [16]
    actual = torch.autograd.grad((weights[i, j] * similarities).sum(), parameters)
    for ours, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-9, atol=1e-12)


def test_it_declares_that_records_couple_through_similarities_and_its_pairs_do_not() -> None:
    model, objective = built()
    assert (objective.coupling, objective.pairs.coupling) == (Coupling.LOGITS, Coupling.NONE)
    assert isinstance(objective, Objective)
    assert isinstance(objective.pairs, Objective)
    views = objective.views(images(), torch.Generator().manual_seed(1))
    other = tuple(torch.cat([view[:-1], view[:1]]) for view in views)
    assert not torch.equal(objective.loss(model, views)[:-1], objective.loss(model, other)[:-1])
    before, after = (objective.pairs.loss(model, v) for v in (views, other))
    torch.testing.assert_close(before[:-1], after[:-1], rtol=1e-12, atol=0)
    assert float((before[-1] - after[-1]).detach().abs()) > 1e-6


def test_a_study_that_changes_nothing_between_views_is_refused() -> None:
    with pytest.raises(StudyError, match="nothing to learn from"):
        build_objective(study("views={}"), PluginTable())


def test_a_temperature_below_one_is_refused() -> None:
    with pytest.raises(StudyError, match="temperature"):
        study("objective.temperature=0.5")
