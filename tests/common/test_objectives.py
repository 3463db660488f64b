"""Objectives against slow loop references, and what couples which records."""

import math
import sys
import types

import opacus
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tacit_common.encoders import VisionTransformer, build_encoder
from tacit_common.errors import PluginError, StudyError
from tacit_common.model import build_model
from tacit_common.objectives import (
    BankContrast,
    Coupling,
    MaskedModelling,
    Objective,
    PretrainModel,
    SimCLR,
    Views,
    build_objective,
)
from tacit_common.objectives.masked import MAEDecoder
from tacit_common.plugins import PluginTable
from tacit_common.procedural import strokes
from tacit_common.study import (
    BankContrastPlan,
    FederationPlan,
    MaskedPlan,
    NoPrivacyPlan,
    ObjectivePlan,
    PluginPlan,
    SimCLRPlan,
    Study,
    ViewsPlan,
    ViTPlan,
)
from tacit_common.training import mean_gradient

VIT = ViTPlan(kind="vit", image_size=6, channels=2, patch_size=2, width=12, depth=2, heads=3)
VIEWS = ViewsPlan(max_shift=0.1, max_rotation_deg=20, noise_stddev=0.05)
MAE = MaskedPlan(kind="masked", mask_ratio=0.6, decoder_width=12)
SIMMIM = MaskedPlan(kind="masked", style="simmim", mask_ratio=0.6)
BANK = BankContrastPlan(kind="bank_contrast", bank_size=5, projection_dim=7)
SIMCLR = SimCLRPlan(kind="simclr", projection_dim=7, temperature=0.5)


def study(
    objective: ObjectivePlan,
    encoder: ViTPlan | PluginPlan = VIT,
    views: ViewsPlan = VIEWS,
    seed: int = 0,
) -> Study:
    return Study(
        name="test",
        seed=seed,
        encoder=encoder,
        objective=objective,
        views=views,
        privacy=NoPrivacyPlan(mode="none", sampling_rate=0.1),
        federation=FederationPlan(rounds=1, local_steps=1, client_lr=0.1),
    )


def built(objective: ObjectivePlan) -> tuple[PretrainModel, Objective]:
    model, created = build_model(study(objective), PluginTable())
    return model.double(), created


def batch(rows: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 2, 6, 6, generator=generator, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vit_of(model: PretrainModel) -> VisionTransformer:
    assert isinstance(model.encoder, VisionTransformer)
    return model.encoder


# --- masked modelling ------------------------------------------------------------------


@given(ratio=st.floats(0.01, 0.99), side=st.integers(2, 5), rows=st.integers(1, 4))
def test_the_planned_share_of_patches_is_hidden_in_each_record(
    ratio: float, side: int, rows: int
) -> None:
    plan = VIT.model_copy(update={"image_size": 2 * side})
    objective = MaskedModelling(MaskedPlan(kind="masked", mask_ratio=ratio, decoder_width=8))
    encoder = build_encoder(plan, PluginTable(), 0)
    assert isinstance(encoder, VisionTransformer)
    model = PretrainModel(encoder, objective.build_head(encoder))
    images, permutation = views = objective.views(torch.ones(rows, 2, 2 * side, 2 * side), seeded())
    count = side**2
    assert torch.equal(permutation.sort(dim=1).values, torch.arange(count).expand(rows, -1))
    shown = encoder.patchify(objective.masked_images(model, views)).amax(dim=2)
    hidden = min(max(round(ratio * count), 1), count - 1)
    assert ((shown == 0).sum(dim=1) == hidden).all()
    assert images.shape == (rows, 2, 2 * side, 2 * side)


def test_masks_come_from_the_generator_and_differ_between_records() -> None:
    _, objective = built(MAE)
    torch.manual_seed(0)
    one = objective.views(batch(), seeded(1))[1]
    torch.manual_seed(1)
    assert torch.equal(objective.views(batch(), seeded(1))[1], one)
    assert not torch.equal(objective.views(batch(), seeded(2))[1], one)
    assert not torch.equal(one[0], one[1])


def mae_loss_of_one_record(
    encoder: VisionTransformer,
    decoder: MAEDecoder,
    image: Tensor,
    order: Tensor,
    *,
    hidden: int,
    normalize: bool,
) -> float:
    """He et al., section 3, as it is told: put the tokens back in place, then decode."""
    visible, masked = order[:-hidden], order[-hidden:]
    patches = encoder.patchify(image[None])[0]  # [N, patch_dim]
    tokens = encoder.patch_embedding(patches[visible]) + encoder.position.weight[visible]
    tokens = encoder.norm(encoder.blocks(tokens[None]))[0]
    row = {int(n): k for k, n in enumerate(visible)}
    full = torch.stack(
        [
            decoder.embedding(tokens[row[n]]) if n in row else decoder.mask_token.weight[0]
            for n in range(len(patches))
        ]
    )
    decoded = decoder.norm(decoder.blocks((full + decoder.position.weight)[None]))[0]
    total = 0.0
    for n in masked:
        target = patches[n]
        if normalize:
            target = (target - target.mean()) / (target.var(correction=0) + 1e-6) ** 0.5
        for predicted, true in zip(decoder.pixels(decoded[n]), target, strict=True):
            total += (predicted - true).item() ** 2 / len(target) / hidden
    return total


@pytest.mark.parametrize("normalize", [False, True])
def test_mae_is_the_mean_squared_error_over_the_records_own_hidden_patches(
    normalize: bool,
) -> None:
    model, objective = built(MAE.model_copy(update={"normalize_targets": normalize}))
    views = objective.views(batch(), seeded())
    decoder = model.head
    assert isinstance(decoder, MAEDecoder)
    expected = [
        mae_loss_of_one_record(vit_of(model), decoder, image, order, hidden=5, normalize=normalize)
        for image, order in zip(*views, strict=True)
    ]
    torch.testing.assert_close(
        objective.loss(model, views), torch.tensor(expected, dtype=torch.float64)
    )


def test_simmim_is_the_mean_absolute_error_over_the_records_own_hidden_pixels() -> None:
    model, objective = built(SIMMIM)
    views = objective.views(batch(), seeded())
    encoder, expected = vit_of(model), []
    for image, order in zip(*views, strict=True):
        masked = order[-5:]
        patches = encoder.patchify(image[None])[0]
        tokens = encoder.patch_embedding(patches)
        tokens[masked] = 0
        tokens = encoder.norm(encoder.blocks((tokens + encoder.position.weight)[None]))[0]
        errors = [(model.head(tokens[n]) - patches[n]).abs() for n in masked]
        expected.append(torch.stack(errors).mean())
    torch.testing.assert_close(objective.loss(model, views), torch.stack(expected))


@pytest.mark.parametrize("plan", [MAE, SIMMIM, MAE.model_copy(update={"normalize_targets": True})])
def test_a_reconstruction_keeps_what_was_seen_and_explains_the_loss(plan: MaskedPlan) -> None:
    model, objective = built(plan)
    assert isinstance(objective, MaskedModelling)
    images, permutation = views = objective.views(batch(), seeded())
    encoder = vit_of(model)
    true, rebuilt, shown = (
        encoder.patchify(x)
        for x in (
            images,
            objective.reconstruct(model, views),
            objective.masked_images(model, views, fill=0.5),
        )
    )
    losses = objective.loss(model, views)
    for i, order in enumerate(permutation):
        visible, masked = order[:-5], order[-5:]
        assert torch.equal(rebuilt[i, visible], true[i, visible])
        assert torch.equal(shown[i, visible], true[i, visible])
        assert (shown[i, masked] == 0.5).all()
        error = rebuilt[i, masked] - true[i, masked]
        if plan.normalize_targets:
            error = error / (true[i, masked].var(dim=1, correction=0, keepdim=True) + 1e-6).sqrt()
        error = error.abs() if plan.style == "simmim" else error.square()
        torch.testing.assert_close(error.mean(), losses[i])


class _Convolutional(nn.Module):
    """An encoder of whole images, as a user would write one."""

    def __init__(self, image_size: int = 6, channels: int = 2) -> None:
        super().__init__()
        self.embed_dim = 10
        self.convolution = nn.Conv2d(channels, 5, 3, padding=1)
        self.out = nn.Linear(5 * image_size**2, 10)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.out(torch.tanh(self.convolution(images)).flatten(1))
        return features


def test_simmim_hides_squares_from_an_encoder_of_whole_images() -> None:
    objective = MaskedModelling(SIMMIM, image_shape=(2, 6, 6))
    encoder = _Convolutional()
    model = PretrainModel(encoder, objective.build_head(encoder)).double()
    images, permutation = views = objective.views(batch(), seeded())
    assert permutation.shape == (4, 36)  # the largest squares with four across are 1 pixel
    shown = objective.masked_images(model, views)
    expected = []
    for i in range(4):
        hidden = torch.zeros(36, dtype=torch.bool)
        hidden[permutation[i, -22:]] = True
        hidden = hidden.view(1, 6, 6).expand(2, -1, -1)
        assert torch.equal(shown[i], images[i].masked_fill(hidden, 0))
        predicted = model.head(encoder(shown[i : i + 1])).view(2, 6, 6)
        expected.append((predicted - images[i])[hidden].abs().mean())
    torch.testing.assert_close(objective.loss(model, views), torch.stack(expected))
    kept = shown == images
    rebuilt = objective.reconstruct(model, views)
    assert torch.equal(rebuilt[kept], images[kept])
    assert not torch.equal(rebuilt, images)


def test_mae_on_an_encoder_of_whole_images_is_refused_with_a_way_out() -> None:
    with pytest.raises(StudyError, match=r'set objective\.style = "simmim"'):
        MaskedModelling(MAE, image_shape=(2, 6, 6)).build_head(_Convolutional())


def test_an_encoder_of_whole_images_needs_their_size() -> None:
    with pytest.raises(StudyError, match="image_size and channels"):
        MaskedModelling(SIMMIM).build_head(_Convolutional())


def test_views_before_the_head_are_refused() -> None:
    with pytest.raises(StudyError, match="build the model first"):
        MaskedModelling(MAE).views(batch(), seeded())


@pytest.mark.parametrize(
    ("plan", "encoder", "complaint"),
    [
        (MAE, {"patch_size": 6}, "at least two patches"),
        (
            MAE.model_copy(update={"normalize_targets": True}),
            {"patch_size": 1, "channels": 1},
            "standardises to zero",
        ),
    ],
)
def test_plans_that_leave_nothing_to_predict_are_refused(
    plan: MaskedPlan, encoder: dict[str, int], complaint: str
) -> None:
    with pytest.raises(StudyError, match=complaint):
        build_model(study(plan, VIT.model_copy(update=encoder)), PluginTable())


@pytest.mark.parametrize("plan", [MAE, SIMMIM])
def test_masked_modelling_can_fit_a_few_images(plan: MaskedPlan) -> None:
    small = VIT.model_copy(update={"image_size": 8, "channels": 1, "width": 24, "depth": 1})
    model, objective = build_model(study(plan, small, ViewsPlan()), PluginTable())
    images = strokes(8, image_size=8, channels=1, generator=seeded())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(250):
        loss = mean_gradient(model, objective, images, seeded())
        optimizer.step()
    error = images - images.mean(dim=0)
    trivial = error.abs().mean() if plan.style == "simmim" else error.square().mean()
    assert loss < 0.5 * trivial.item()


# --- contrast --------------------------------------------------------------------------


def projected(model: PretrainModel, images: Tensor) -> list[Tensor]:
    """Unit vectors, one record at a time."""
    rows = [model.head(model.encoder(image[None]))[0] for image in images]
    return [row / row.norm() for row in rows]


def test_bank_contrast_is_info_nce_with_public_negatives() -> None:
    model, objective = built(BANK)
    views = objective.views(batch(), seeded())
    # The bank is public: anybody can draw it again.
    bank = strokes(5, image_size=6, channels=2, generator=torch.Generator().manual_seed(2104))
    with torch.no_grad():
        ones, twos = (projected(model, view) for view in views)
        negatives = projected(model, bank.double())
    expected = []
    for one, two in zip(ones, twos, strict=True):
        positive = math.exp(float(one @ two) / 0.2)
        terms = [
            -math.log(positive / (positive + sum(math.exp(float(a @ n) / 0.2) for n in negatives)))
            for a in (one, two)
        ]
        expected.append(sum(terms) / 2)
    torch.testing.assert_close(
        objective.loss(model, views), torch.tensor(expected, dtype=torch.float64)
    )


def test_the_bank_takes_no_gradient() -> None:
    model, objective = built(BANK)
    views = objective.views(batch(1), seeded())
    names = [name for name, _ in model.named_parameters()]
    loss = objective.loss(model, views).sum()
    gradients = dict(zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    one, two = projected(model, torch.cat(views))
    bank = strokes(5, image_size=6, channels=2, generator=torch.Generator().manual_seed(2104))
    negatives = torch.stack(projected(model, bank.double())).detach()
    reference = sum(
        torch.cat([(one @ two)[None], negatives @ a]).div(0.2).logsumexp(0) - one @ two / 0.2
        for a in (one, two)
    )
    assert isinstance(reference, Tensor)
    expected = torch.autograd.grad(reference / 2, list(model.parameters()))
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(gradients[name], gradient)


def test_simclr_is_nt_xent() -> None:
    model, objective = built(SIMCLR)
    views = objective.views(batch(), seeded())
    with torch.no_grad():
        z = projected(model, views[0]) + projected(model, views[1])
    losses = []
    for i in range(8):
        pair = (i + 4) % 8
        others = [math.exp(float(z[i] @ z[k]) / 0.5) for k in range(8) if k != i]
        losses.append(-math.log(math.exp(float(z[i] @ z[pair]) / 0.5) / sum(others)))
    expected = [(losses[i] + losses[i + 4]) / 2 for i in range(4)]
    torch.testing.assert_close(
        objective.loss(model, views), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("plan", "coupling"),
    [
        (MAE, Coupling.NONE),
        (SIMMIM, Coupling.NONE),
        (BANK, Coupling.NONE),
        (SIMCLR, Coupling.BATCH),
    ],
)
def test_records_couple_only_where_the_objective_says_so(
    plan: ObjectivePlan, coupling: Coupling
) -> None:
    model, objective = built(plan)
    views = objective.views(batch(), seeded())
    replaced = tuple(
        torch.cat([view[:-1], other[-1:]])
        for view, other in zip(views, objective.views(batch(seed=1), seeded(1)), strict=True)
    )
    before, after = objective.loss(model, views), objective.loss(model, replaced)
    assert objective.coupling is coupling
    assert before[-1] != after[-1]
    unchanged = torch.allclose(before[:-1], after[:-1], rtol=0, atol=1e-12)
    assert unchanged == (coupling is Coupling.NONE)


@pytest.mark.parametrize("plan", [BANK, SIMCLR])
def test_contrast_sees_two_different_views(plan: ObjectivePlan) -> None:
    _, objective = built(plan)
    one, two = objective.views(batch(), seeded())
    assert one.shape == two.shape == (4, 2, 6, 6)
    assert not torch.equal(one, two)


# --- per-example gradients -------------------------------------------------------------


def _alone(model: PretrainModel, objective: Objective, views: Views, row: int) -> list[Tensor]:
    loss = objective.loss(model, tuple(view[row : row + 1] for view in views)).sum()
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad]))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("plan", [MAE, SIMMIM, BANK])
def test_opacus_forms_the_gradient_of_each_record_alone(plan: ObjectivePlan) -> None:
    model, objective = built(plan)
    views = objective.views(batch(5), seeded())
    expected = [_alone(model, objective, views, row) for row in range(5)]
    hooked = opacus.GradSampleModule(model, loss_reduction="sum")
    objective.loss(model, views).sum().backward()  # type: ignore[no-untyped-call]
    for index, parameter in enumerate(hooked.parameters()):
        rows = parameter.grad_sample
        assert isinstance(rows, Tensor)
        truth = torch.stack([gradients[index] for gradients in expected])
        assert truth.any()
        torch.testing.assert_close(rows, truth, rtol=0, atol=1e-10)


# --- from a study to a model -----------------------------------------------------------


def test_the_model_depends_on_the_study_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, _ = build_model(study(MAE, seed=3), PluginTable())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    two, _ = build_model(study(MAE, seed=3), PluginTable())
    other, _ = build_model(study(MAE, seed=4), PluginTable())
    for part in ("encoder.patch_embedding.weight", "head.pixels.weight"):
        assert torch.equal(one.get_parameter(part), two.get_parameter(part))
        assert not torch.equal(one.get_parameter(part), other.get_parameter(part))


def test_a_study_builds_the_objective_that_it_names() -> None:
    assert isinstance(build_objective(study(MAE), PluginTable()), MaskedModelling)
    assert isinstance(build_objective(study(BANK), PluginTable()), BankContrast)
    assert isinstance(build_objective(study(SIMCLR), PluginTable()), SimCLR)


@pytest.mark.parametrize("plan", [BANK, SIMCLR])
def test_contrast_without_views_is_refused(plan: ObjectivePlan) -> None:
    with pytest.raises(StudyError, match=r"views\.max_shift"):
        build_objective(study(plan, views=ViewsPlan()), PluginTable())


class _WithBatchNorm(_Convolutional):
    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__(image_size, channels)
        self.norm = nn.BatchNorm1d(10, track_running_stats=False)


class _WithRunningMean(_Convolutional):
    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__(image_size, channels)
        self.register_buffer("running_mean", torch.zeros(10))


class _WithConstant(_Convolutional):
    def __init__(self, image_size: int, channels: int) -> None:
        super().__init__(image_size, channels)
        self.register_buffer("window", torch.ones(10), persistent=False)


class _MyObjective:
    coupling = Coupling.NONE

    def build_head(self, encoder: nn.Module) -> nn.Module:
        return nn.Identity()

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch,)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        out: Tensor = model.encoder(views[0]).square().sum(dim=1)
        return out


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> PluginTable:
    module = types.ModuleType("plugins_for_test_objectives")
    classes = [_Convolutional, _WithBatchNorm, _WithRunningMean, _WithConstant, _MyObjective]
    names = ["convolutional", "batch_norm", "running_mean", "constant", "mine"]
    vars(module).update(zip(names, classes, strict=True))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return PluginTable({name: f"{module.__name__}:{name}" for name in names})


def plugin_encoder(name: str) -> PluginPlan:
    return PluginPlan(kind="plugin", name=name, options={"image_size": 6, "channels": 2})


@pytest.mark.parametrize("plan", [SIMMIM, BANK, SIMCLR])
def test_objectives_work_on_a_plug_in_encoder(plugins: PluginTable, plan: ObjectivePlan) -> None:
    model, objective = build_model(study(plan, plugin_encoder("convolutional")), plugins)
    loss = objective.loss(model, objective.views(batch().float(), seeded()))
    assert loss.shape == (4,)
    assert loss.isfinite().all()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("batch_norm", "'encoder.norm' is a BatchNorm1d"), ("running_mean", "encoder.running_mean")],
)
def test_a_model_that_keeps_batch_statistics_is_refused(
    plugins: PluginTable, name: str, complaint: str
) -> None:
    with pytest.raises(PluginError, match=complaint):
        build_model(study(SIMMIM, plugin_encoder(name)), plugins)


def test_a_constant_that_is_not_saved_is_fine(plugins: PluginTable) -> None:
    model, _ = build_model(study(SIMMIM, plugin_encoder("constant")), plugins)
    assert len(list(model.buffers())) == 1


def test_bank_contrast_on_a_plug_in_encoder_needs_the_size_of_images(plugins: PluginTable) -> None:
    plan = PluginPlan(kind="plugin", name="convolutional")
    with pytest.raises(StudyError, match="options image_size and channels"):
        build_objective(study(BANK, plan), plugins)


def test_a_plug_in_objective_is_found_by_name(plugins: PluginTable) -> None:
    plan = PluginPlan(kind="plugin", name="mine")
    _, objective = build_model(study(plan), plugins)
    assert isinstance(objective, _MyObjective)


def test_what_is_no_objective_is_refused(plugins: PluginTable) -> None:
    with pytest.raises(PluginError, match="build_head, coupling, loss"):
        build_objective(study(PluginPlan(kind="plugin", name="convolutional")), plugins)
