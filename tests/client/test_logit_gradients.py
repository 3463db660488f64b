"""Logit-DP on the path that production uses: what one record can change in the sum."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.gradients import UnitGradients
from tacit_client.logit_dp import LogitGradients
from tacit_client.site import Site
from tacit_common.errors import PrivacyConfigError
from tacit_common.messages import TrainReply, TrainRequest
from tacit_common.model import build_model
from tacit_common.objectives import LogitDP, PretrainModel, Views, logit_dp_sensitivity
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import check_separable
from tacit_common.strategy import ParameterVector
from tacit_common.study import LogitDPPlan, Study, ViewsPlan
from tacit_common.training import seeded_generator, trained_parameters

B = 0.5
OBJECTIVE = 'objective={ kind = "logit_dp", temperature = 1.5, projection_dim = 8 }'
VIEWS = "views={ max_shift = 0.2, max_contrast = 0.5, noise_stddev = 0.1 }"
PLAN = LogitDPPlan(kind="logit_dp", temperature=1.5, projection_dim=8)
VIEWS_PLAN = ViewsPlan(max_shift=0.2, max_contrast=0.5, noise_stddev=0.1)

quick = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class ViewsOfContent(LogitDP):
    """The views of a record depend on the record alone, so the same one compares everywhere."""

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        rows = [self._views_of(record) for record in batch]
        one, two = zip(*rows, strict=True)
        return torch.cat(one), torch.cat(two)

    def _views_of(self, record: Tensor) -> Views:
        digest = hashlib.sha256(record.float().numpy().tobytes()).hexdigest()
        return super().views(record[None], seeded_generator(digest))


class HalvesAsViews(LogitDP):
    """Records [2, d] that are their two views: whoever attacks chooses both."""

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return batch[:, 0], batch[:, 1]


@dataclass(frozen=True)
class Path:
    """The path under test, and a twin of its model that has no hooks."""

    gradients: LogitGradients
    hooked: PretrainModel
    twin: PretrainModel
    objective: LogitDP

    def sum(
        self,
        records: Tensor,
        *,
        norm: float = B,
        augmentations: int = 1,
        chunk: int = 16,
        seed: int = 0,
    ) -> Tensor:
        return self.gradients.clipped_sum(
            (record[None] for record in records),
            torch.Generator().manual_seed(seed),
            l2_clip_norm=norm,
            augmentations=augmentations,
            physical_batch=chunk,
        )

    def plain(self, scalar: Tensor) -> Tensor:
        """Its gradient on the twin by plain autograd, float64 [P]."""
        parameters = [p for _, p in trained_parameters(self.twin)]
        parts = torch.autograd.grad(scalar, parameters, retain_graph=True)
        return torch.cat([part.reshape(-1) for part in parts]).double()


Make = Callable[..., Path]


@pytest.fixture
def vit(make_study: Callable[..., Study]) -> Make:
    """`vit(dtype=…, objective=…)`: Logit-DP on the tiny study's transformer."""
    study = make_study(OBJECTIVE, VIEWS)

    def make(dtype: torch.dtype = torch.float32, objective: type[LogitDP] = ViewsOfContent) -> Path:
        hooked, twin = (build_model(study, PluginTable())[0].to(dtype) for _ in range(2))
        built = objective(PLAN, VIEWS_PLAN)
        return Path(LogitGradients(hooked, built), hooked, twin, built)

    return make


def linear(
    encoder: Tensor, temperature: float = 1.0, objective: type[LogitDP] = HalvesAsViews
) -> Path:
    """A linear encoder [D, d] without a head; the temperature may be below what studies allow."""

    def model() -> PretrainModel:
        layer = nn.Linear(encoder.shape[1], encoder.shape[0], bias=False, dtype=encoder.dtype)
        layer.weight.data.copy_(encoder)
        return PretrainModel(layer, nn.Identity())

    plan = LogitDPPlan.model_construct(kind="logit_dp", temperature=temperature, projection_dim=2)
    built, hooked = objective(plan, ViewsPlan()), model()
    return Path(LogitGradients(hooked, built), hooked, model(), built)


def images(count: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)


def clip(gradient: Tensor, norm: float) -> Tensor:
    return gradient / max(1.0, float(gradient.norm()) / norm)


def slow_sum(path: Path, records: Tensor, norm: float = B) -> Tensor:
    """Algorithm 1 of Kong et al. as it is written: one pair after the other."""
    views = path.objective.views(records, torch.Generator())
    one, two = (path.objective.embed(path.twin, view).double() for view in views)
    similarity = one @ two.T
    chosen = (similarity / PLAN.temperature).softmax(dim=1).detach()
    weights = (chosen - torch.eye(len(records), dtype=torch.float64)) / PLAN.temperature
    total = torch.zeros(path.gradients.size, dtype=torch.float64)
    for i in range(len(records)):
        for j in range(len(records)):
            total += weights[i, j] * clip(path.plain(similarity[i, j]), norm)
    return total


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    error = float((actual - expected).norm() / expected.norm())
    assert error < tolerance, f"relative error {error:.2g}"


# --- the sum is what the paper says ----------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
@pytest.mark.parametrize("norm", [B, 1e-3], ids=["some clipped", "all clipped"])
def test_the_sum_is_that_of_a_loop_over_pairs(vit: Make, chunk: int, norm: float) -> None:
    path, batch = vit(), images(5)
    assert_close(path.sum(batch, norm=norm, chunk=chunk), slow_sum(path, batch, norm))


def test_without_clipping_the_sum_is_the_gradient_of_info_nce(vit: Make) -> None:
    path, batch = vit(torch.float64), images(6, dtype=torch.float64)
    views = path.objective.views(batch, torch.Generator())
    expected = path.plain(path.objective.loss(path.twin, views).sum())
    assert_close(path.sum(batch, norm=1e12), expected, tolerance=1e-9)
    assert float((path.sum(batch, norm=B) - expected).norm()) > 0.1 * float(expected.norm())


def test_a_sum_leaves_parameters_and_their_gradients_as_they_were(vit: Make) -> None:
    path = vit()
    first = path.sum(images(3))
    pairs = zip(path.hooked.parameters(), path.twin.parameters(), strict=True)
    assert all(torch.equal(after, before) for after, before in pairs)
    assert all(p.grad is None for p in path.hooked.parameters())
    assert torch.equal(first, path.sum(images(3)))


@pytest.mark.parametrize("count", [0, 1])
def test_no_record_or_one_alone_gives_exactly_zero(vit: Make, count: int) -> None:
    total = vit().sum(images(count))
    assert total.dtype == torch.float64
    assert total.shape == (sum(p.numel() for p in vit().twin.parameters()),)
    assert not total.any()
    assert vit().sum(images(2)).any()


def test_views_are_drawn_from_the_generator_alone(vit: Make) -> None:
    path, batch = vit(objective=LogitDP), images(4)
    torch.manual_seed(0)
    first = path.sum(batch, seed=1)
    torch.manual_seed(1)
    assert torch.equal(path.sum(batch, seed=1), first)
    assert not torch.allclose(path.sum(batch, seed=2), first, rtol=1e-2)


def test_augmentations_are_the_mean_over_draws_of_the_views(vit: Make) -> None:
    path, batch = vit(objective=LogitDP), images(4)
    generator = torch.Generator().manual_seed(3)
    each = [
        path.gradients.clipped_sum(
            batch[:, None], generator, augmentations=1, l2_clip_norm=B, physical_batch=16
        )
        for _ in range(3)
    ]
    mean = torch.stack(each).mean(dim=0)
    assert_close(path.sum(batch, augmentations=3, seed=3), mean, tolerance=1e-12)
    assert float((each[0] - mean).norm()) > 1e-2 * float(mean.norm())


class Sizes(ViewsOfContent):
    """Notes how many rows the model is called with."""

    seen: tuple[int, ...] = ()

    def embed(self, model: PretrainModel, view: Tensor) -> Tensor:
        self.seen = (*self.seen, len(view))
        return super().embed(model, view)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_model_never_sees_how_many_records_were_drawn(vit: Make, count: int) -> None:
    path = vit(objective=Sizes)
    path.sum(images(count), chunk=4)
    assert isinstance(path.objective, Sizes)
    passes = math.ceil(count / 4) + math.ceil(count**2 / 4)
    assert path.objective.seen == (4,) * 2 * passes


def test_the_gradient_of_a_pair_is_the_same_to_the_last_bit_in_any_company(vit: Make) -> None:
    path = vit()
    one, two = images(8), images(8, seed=1)

    def rows(*views: Tensor) -> Tensor:
        parts = path.gradients._pair_gradients.rows(views)
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    there = rows(one, two)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows(one[order], two[order]), there[order])
    others = images(8, seed=2) * 1e3
    company = rows(torch.cat([others[:7], one[:1]]), torch.cat([others[:7], two[:1]]))
    assert torch.equal(company[7], there[0])


# --- what one record can change --------------------------------------------------------


def worst_case(records: int, nearly: float = 1e-3, kernel: float = 1e7) -> tuple[Tensor, Tensor]:
    """An encoder [2, 3] and records [n, 2, 3] that come near to the bound.

    Similarities are those that the proof of the bound asks for: first views of old records
    lie along u, second ones (nearly) along −u, and those of the last record the other way
    round. The encoder does not see the third coordinate; it makes every ∇s_ij long, hence
    clipped, and all of them parallel.
    """
    encoder = torch.eye(2, 3, dtype=torch.float64)
    cos, sin = math.cos(nearly), math.sin(nearly)
    old = [[[1.0, 0.0, kernel], [-cos, -sin, 0.0]]] * (records - 1)
    return encoder, torch.tensor([*old, [[-1.0, 0.0, -kernel], [cos, sin, 0.0]]]).double()


@pytest.mark.parametrize(
    ("records", "temperature", "at_least"),
    [(2, 1.0, 3.515), (5, 1.0, 7.095), (3, 0.2, 29.995), (12, 1.0, 10.0), (6, 4.0, 0.9)],
)
def test_the_bound_is_reached_but_for_a_thousandth_and_never_passed(
    records: int, temperature: float, at_least: float
) -> None:
    encoder, drawn = worst_case(records)
    path = linear(encoder.double(), temperature)
    influence = float((path.sum(drawn, norm=1.0) - path.sum(drawn[:-1], norm=1.0)).norm())
    bound = logit_dp_sensitivity(l2_clip_norm=1.0, temperature=temperature, records=records)
    assert max(at_least, 0.999 * bound) < influence <= bound * (1 + 1e-9)
    assert bound < path.gradients.l2_sensitivity(1.0)


def test_the_noise_is_scaled_to_the_supremum_over_sample_sizes(vit: Make) -> None:
    path: UnitGradients = vit().gradients
    assert path.l2_sensitivity(B) == pytest.approx(2 * B / 1.5 * (1 + math.exp(2 / 1.5)), rel=1e-12)


numbers = st.sampled_from([0.0, 1.0, -1.0, 1e-6, -1e-3, 3.0, 1e3, -1e8, 1e-15, 1e20]) | st.floats(
    -2, 2
)


@quick
@given(
    values=st.lists(numbers, min_size=6 * 5 + 6, max_size=6 * 5 + 6),
    temperature=st.sampled_from([0.3, 1.0, 3.0]),
    count=st.integers(2, 5),
    added=st.integers(0, 4),
    chunk=st.sampled_from([3, 32]),
)
def test_a_record_added_anywhere_changes_the_sum_by_at_most_the_bound(
    values: list[float], temperature: float, count: int, added: int, chunk: int
) -> None:
    encoder = torch.tensor(values[:6], dtype=torch.float64).view(2, 3)
    records = torch.tensor(values[6:], dtype=torch.float64).view(5, 2, 3)[:count]
    path, place = linear(encoder, temperature), added % count
    others = torch.cat([records[:place], records[place + 1 :]])
    influence = path.sum(records, chunk=chunk) - path.sum(others, chunk=chunk)
    bound = logit_dp_sensitivity(l2_clip_norm=B, temperature=temperature, records=count)
    assert float(influence.norm()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("augmentations", [1, 3])
@pytest.mark.parametrize("brightness", [0.0, 1.0, 1e3, -1e6, 1e15])
def test_one_image_changes_the_sum_of_a_transformer_by_at_most_the_bound(
    vit: Make, brightness: float, augmentations: int
) -> None:
    path, batch = vit(), images(5)
    batch[0] *= brightness
    influence = path.sum(batch, augmentations=augmentations, norm=1e-2) - path.sum(
        batch[1:], augmentations=augmentations, norm=1e-2
    )
    bound = logit_dp_sensitivity(l2_clip_norm=1e-2, temperature=1.5, records=5)
    assert 0.05 * bound < float(influence.norm()) <= bound * (1 + 1e-9)


# --- records that are not finite -------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 3e38])
def test_a_record_that_is_not_finite_counts_as_not_sampled(vit: Make, poison: float) -> None:
    path, batch = vit(objective=PlainViews), images(5)
    batch[2, 0, 3:5, 3:5] = poison
    others = torch.cat([batch[:2], batch[3:]])
    total = path.sum(batch)
    assert total.isfinite().all()
    assert torch.equal(total, path.sum(others))
    assert total.any()


class PlainViews(LogitDP):
    """Equal views, so that a poisoned pixel reaches the encoder as it is."""

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return batch, batch.flip(-1)


@pytest.mark.parametrize("side", [0, 1])
def test_one_view_that_is_not_finite_disqualifies_its_record_as_a_partner_too(side: int) -> None:
    records = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    path = linear(torch.randn(2, 3, generator=torch.Generator().manual_seed(1)).double())
    records[1, side, 0] = math.nan
    assert torch.equal(path.sum(records), path.sum(records[[0, 2, 3]]))


def test_a_batch_of_nothing_finite_sums_to_zero_and_leaves_no_trace(vit: Make) -> None:
    path = vit(objective=PlainViews)
    clean = path.sum(images(3))
    assert not path.sum(torch.full((3, 1, 8, 8), math.nan)).any()
    assert torch.equal(path.sum(images(3)), clean)


def test_a_pair_whose_gradient_is_not_finite_counts_as_zero_and_keeps_the_bound() -> None:
    """Embeddings are finite here; the gradient of similarities with record 0 overflows."""
    records = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    encoder = torch.eye(2, 3)
    records[0, 0] = torch.tensor([1e-20, 0.0, 1e30])
    path = linear(encoder)
    rows = path.gradients._pair_gradients.rows((records[:, 0], records[:, 1]))
    assert rows[0].isfinite().flatten(1).all(dim=1).tolist() == [False, True, True, True]
    total = path.sum(records)
    assert total.isfinite().all()
    influence = float((total - path.sum(records[1:])).norm())
    assert 0 < influence <= logit_dp_sensitivity(l2_clip_norm=B, temperature=1.0, records=4)


# --- what it is not --------------------------------------------------------------------


def test_clipping_the_loss_of_each_record_instead_lets_one_record_change_many_times_c() -> None:
    """The usual mistake: InfoNCE under per-example clipping, by the same machinery.

    Old records agree but for a little; which way each wants to turn, the last one decides.
    """
    encoder, records = worst_case(16)
    angles = math.pi + 1e-3 * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8)
    angles[-1] = 0.5
    records[:, 1, :2] = torch.stack([angles.cos(), angles.sin()], dim=1)
    path = linear(encoder)
    usual = PerUnitGradients(path.twin, path.objective)

    def clipped_losses(of: Tensor) -> Tensor:
        return usual.clipped_sum(
            of[:, None],
            torch.Generator(),
            l2_clip_norm=B,
            augmentations=1,
            physical_batch=len(of),
        )

    influence = float((clipped_losses(records) - clipped_losses(records[:-1])).norm())
    assert usual.l2_sensitivity(B) == B
    assert influence > 10 * B
    bounded = float((path.sum(records) - path.sum(records[:-1])).norm())
    assert bounded <= path.gradients.l2_sensitivity(B)


def test_the_start_up_check_accepts_its_pairs_and_refuses_its_loss(
    make_study: Callable[..., Study],
) -> None:
    """What is clipped is the gradient of a pair, which is a function of that pair alone."""
    model, objective = build_model(make_study(OBJECTIVE, VIEWS), PluginTable())
    assert isinstance(objective, LogitDP)
    check_separable(model, objective.pairs, images(6), gradient_path=PerUnitGradients)
    with pytest.raises(PrivacyConfigError, match="not separable"):
        check_separable(model, objective, images(6), gradient_path=PerUnitGradients)


def test_a_unit_with_several_records_is_refused(vit: Make) -> None:
    with pytest.raises(PrivacyConfigError, match="several records"):
        vit().gradients.clipped_sum(
            [images(1), images(2)],
            torch.Generator(),
            l2_clip_norm=B,
            augmentations=1,
            physical_batch=4,
        )


# --- the whole site --------------------------------------------------------------------


def test_two_rounds_of_a_site_carry_noise_for_the_bound_and_not_for_the_clip_norm(
    make_study: Callable[..., Study],
    make_site: Callable[..., Site],
    train_request: Callable[..., TrainRequest],
    start_of: Callable[[Study], ParameterVector],
) -> None:
    study = make_study(OBJECTIVE, VIEWS, "federation.local_steps=1")
    site, parameters = make_site(), start_of(study)
    for number in (1, 2):
        request = train_request(study, parameters, round=number)
        reply = site.answer(request)
        assert isinstance(reply, TrainReply)
        assert request.plan.noise_multiplier is not None
        update = torch.from_numpy(reply.update).double()
        # update = −lr · (sum + noise) / (q · 30), and the noise is far larger than the sum.
        released = update * (0.25 * 30 / 0.1)
        sensitivity = logit_dp_sensitivity(l2_clip_norm=B, temperature=1.5, records=None)
        expected = request.plan.noise_multiplier * sensitivity * (1 + 1 / 64)
        assert float(released.std()) == pytest.approx(expected, rel=0.05)
        assert expected > 6 * request.plan.noise_multiplier * B
        parameters = parameters + reply.update
    kinds = [entry.kind for entry in site.ledger.entries()]
    assert kinds.count("RESERVE") == kinds.count("COMMIT") == 2
