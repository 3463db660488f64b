"""The conformance suite: built-ins pass it, and every clause catches a fault planted for it."""

import ast
import math
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit_client.data import ArraySource, LabeledArraySource
from tacit_common import testing
from tacit_common.encoders import Encoder, VisionTransformer, build_encoder
from tacit_common.errors import UnreadableRecordError
from tacit_common.objectives import (
    BankContrast,
    Coupling,
    MaskedModelling,
    PretrainModel,
    SimCLR,
    Views,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.noise import LatticeGaussian, SecureRandom
from tacit_common.probes.contract import FloatArray, PublicBasis
from tacit_common.probes.ridge import RidgeProbe
from tacit_common.strategy import ParameterVector, StrategyState
from tacit_common.study import (
    BankContrastPlan,
    FedAdamPlan,
    FedAvgMPlan,
    FedAvgPlan,
    FedProxPlan,
    MaskedPlan,
    SimCLRPlan,
    StrategyPlan,
    ViewsPlan,
    ViTPlan,
)
from tacit_common.testing import (
    ConformanceError,
    check_data_source,
    check_encoder,
    check_mechanism,
    check_objective,
    check_probe,
    check_strategy,
)
from tacit_server.strategies import build_strategy

VIT = ViTPlan(kind="vit", image_size=6, channels=2, patch_size=2, width=12, depth=2, heads=3)
VIEWS = ViewsPlan(max_shift=0.1, max_rotation_deg=20, noise_stddev=0.05)
BATCH = torch.rand(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))
BATCH[:, 0, 0, 0] = torch.tensor([0.1, 0.9, 0.5, 0.2, 0.0])  # for `_Order`


def vit() -> VisionTransformer:
    encoder = build_encoder(VIT, PluginTable(), 0)
    assert isinstance(encoder, VisionTransformer)
    return encoder


def test_the_broken_clause_is_named() -> None:
    error = ConformanceError("the loss has shape [B]", "got [3]")
    assert isinstance(error, AssertionError)
    assert error.clause == "the loss has shape [B]"
    assert str(error) == "the loss has shape [B] (got [3])"


def test_every_clause_has_a_fault_planted_for_it() -> None:
    calls = {"_require", "_require_same", "ConformanceError"}
    clauses = {
        argument.value
        for node in ast.walk(ast.parse(Path(testing.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
        for argument in node.args
        if isinstance(argument, ast.Constant)
    }
    tests = ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8")))
    planted = {node.value for node in tests if isinstance(node, ast.Constant)}
    assert len(clauses) > 50
    assert clauses <= planted


# --- encoders --------------------------------------------------------------------------


class _Encoder(nn.Module):
    """A sound encoder; faults are planted by overriding `mix`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 4
        self.first = nn.Conv2d(2, 3, 3)
        self.last = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(torch.tanh(self.first(images)).flatten(1))
        return self.mix(features)

    def mix(self, features: Tensor) -> Tensor:
        return features


@pytest.mark.parametrize("encoder", [vit(), _Encoder()], ids=["vit", "convolutional"])
def test_sound_encoders_conform(encoder: Encoder) -> None:
    check_encoder(encoder, BATCH)


class _NotAModule:
    embed_dim = 4

    def __call__(self, batch: Tensor) -> Tensor:
        return batch


class _ZeroDim(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 0


class _WrongDim(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features[:, :3]


class _Infinite(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features / 0


class _Dropout(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return F.dropout(features, 0.5, training=self.training)


class _Centred(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features - features.mean(dim=0)


class _NaNLeak(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features + 0 * features.sum()  # equal values, until one record is NaN


class _CountsRows(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features / len(features)


class _KnowsItsPlace(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        return features * torch.tensor([1.0] + [2.0] * (len(features) - 2) + [1.0])[:, None]


def swapped(key: Tensor) -> bool:
    """Whether the records of `BATCH` meet in another order; never if others are among them."""
    return len(key) > 3 and bool((key.sum() - 1.7).abs() < 1e-6) and bool(key[0] > key[3])


class _Order(_Encoder):
    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = super().forward(images)
        return features * (2 if swapped(images[:, 0, 0, 0]) else 1)


class _HiddenGradient(_Encoder):
    def mix(self, features: Tensor) -> Tensor:
        mean = features.mean(dim=0)
        return features + torch.where(mean.isfinite(), mean - mean.detach(), 0)


class _Counter(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def mix(self, features: Tensor) -> Tensor:
        self.get_buffer("calls").add_(1)
        return features


class _SavedBuffer(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))


class _BatchNorm(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)


class _FreeParameter(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def mix(self, features: Tensor) -> Tensor:
        return features * self.scale


class _SharedLookup(_Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Embedding(5, 4)

    def mix(self, features: Tensor) -> Tensor:
        scale: Tensor = self.scale(torch.arange(5)).sum(dim=0)  # 5 rows, however many records
        return features * scale


@pytest.mark.parametrize(
    ("encoder", "clause"),
    [
        (_NotAModule(), "an encoder is an nn.Module"),
        (nn.Identity(), "an encoder has embed_dim"),
        (_ZeroDim(), "embed_dim is a positive whole number"),
        (_WrongDim(), "features have shape [B, embed_dim]"),
        (_Infinite(), "features are finite"),
        (_Dropout(), "the same inputs give the same result"),
        (_Centred(), "row i stays when record j is replaced"),
        (_NaNLeak(), "row i stays when record j is replaced"),
        (_CountsRows(), "row i stays when other records are removed"),
        (_KnowsItsPlace(), "row i stays when other records are removed"),
        (_Order(), "rows are permuted as the records are"),
        (_HiddenGradient(), "row i stays when record j is replaced"),
        (_Counter(), "parameters, buffers and attributes stay as they were"),
        (_SavedBuffer(), "no batch statistics, no saved buffers"),
        (_BatchNorm(), "no batch statistics, no saved buffers"),
        (
            _FreeParameter(),
            "every parameter belongs to a layer; look a free-standing one up in an nn.Embedding",
        ),
        (_SharedLookup(), "every module is called with B rows"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_an_encoder_is_found(encoder: Encoder, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_encoder(encoder, BATCH)
    assert caught.value.clause == clause


def test_too_small_an_example_is_not_checked() -> None:
    with pytest.raises(ValueError, match="at least 4 records"):
        check_encoder(_Encoder(), BATCH[:2])


# --- objectives ------------------------------------------------------------------------


class _Objective:
    """A sound objective; faults are planted by overriding a part."""

    coupling = Coupling.NONE

    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Linear(encoder.embed_dim, 3)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch + torch.rand(batch.shape, generator=generator),)

    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return self.reduce(model.head(model.encoder(views[0])))

    def reduce(self, z: Tensor) -> Tensor:
        return z.square().mean(dim=1)


MASKED = MaskedPlan(kind="masked", mask_ratio=0.6, decoder_width=8)
SIMMIM = MASKED.model_copy(update={"style": "simmim"})
BANK = BankContrastPlan(kind="bank_contrast", bank_size=4, projection_dim=5)


@pytest.mark.parametrize(
    ("objective", "encoder"),
    [
        (MaskedModelling(MASKED), vit()),
        (MaskedModelling(MASKED.model_copy(update={"normalize_targets": True}), VIEWS), vit()),
        (MaskedModelling(SIMMIM), vit()),
        (MaskedModelling(SIMMIM, image_shape=(2, 6, 6)), _Encoder()),
        (BankContrast(BANK, VIEWS, image_shape=(2, 6, 6)), vit()),
        (SimCLR(SimCLRPlan(kind="simclr"), VIEWS), vit()),
        (_Objective(), _Encoder()),
    ],
    ids=["mae", "mae-normalised", "simmim", "simmim-whole", "bank", "simclr", "own"],
)
def test_sound_objectives_conform(objective: MaskedModelling, encoder: Encoder) -> None:
    check_objective(objective, encoder, BATCH)


class _StringCoupling(_Objective):
    coupling = "none"  # type: ignore[assignment]


class _NoHead(_Objective):
    def build_head(self, encoder: Encoder) -> nn.Module:
        return None  # type: ignore[return-value]


class _BatchNormHead(_Objective):
    def build_head(self, encoder: Encoder) -> nn.Module:
        return nn.Sequential(nn.Linear(encoder.embed_dim, 3), nn.BatchNorm1d(3))


class _ChangesTheBatch(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch.mul_(2),)


class _ListOfViews(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return [batch]  # type: ignore[return-value]


class _TwiceTheRows(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (torch.cat([batch, batch]),)


class _GlobalRandomness(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch + torch.rand_like(batch),)


class _MixUp(_Objective):
    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return ((batch + batch.roll(1, dims=0)) / 2,)


class _BatchMean(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return z.square().mean()


class _InfiniteLoss(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return z.sum(dim=1) / 0


class _InfiniteGradient(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return (0 * z.sum(dim=1)).sqrt()


class _LearnsNothing(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return 0 * z.sum(dim=1)


class _SimCLRInDisguise(SimCLR):
    coupling = Coupling.NONE


class _BatchCentred(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        return (z - z.mean(dim=0).detach()).square().mean(dim=1)


class _CountNormalised(_Objective):
    """The mean over all masked tokens of the batch: the count is of the batch."""

    def reduce(self, z: Tensor) -> Tensor:
        return z.square().sum(dim=1) / z.numel()


class _OrderOfViews(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        return super().loss(model, views) * (2 if swapped(views[0][:, 0, 0, 0]) else 1)

    def views(self, batch: Tensor, generator: torch.Generator) -> Views:
        return (batch.clone(),)


class _Queue(_Objective):
    """A queue of embeddings from earlier batches, as in MoCo."""

    def __init__(self) -> None:
        self.queue = torch.zeros((), dtype=torch.float64)

    def reduce(self, z: Tensor) -> Tensor:
        loss = (z - self.queue).square().mean(dim=1)
        self.queue = z.detach().mean()
        return loss


class _MovesTheModel(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1e-13)
        return super().loss(model, views)


class _ViewsTogether(_Objective):
    def loss(self, model: PretrainModel, views: Views) -> Tensor:
        both = torch.cat([views[0], views[0] / 2])
        one, two = self.reduce(model.head(model.encoder(both))).chunk(2)
        return one + two


class _GradientOnly(_Objective):
    def reduce(self, z: Tensor) -> Tensor:
        total = z.sum()
        bypass = torch.where(total.isfinite(), total - total.detach(), 0)
        return z.square().mean(dim=1) + bypass


@pytest.mark.parametrize(
    ("objective", "clause"),
    [
        (nn.Identity(), "an objective has coupling, build_head, views, loss"),
        (_StringCoupling(), "coupling is a Coupling"),
        (_NoHead(), "build_head returns an nn.Module"),
        (_BatchNormHead(), "no batch statistics, no saved buffers"),
        (_ChangesTheBatch(), "views leave the batch as it was"),
        (_ListOfViews(), "views are a tuple of tensors with B rows"),
        (_TwiceTheRows(), "views are a tuple of tensors with B rows"),
        (_GlobalRandomness(), "views draw all their randomness from the generator"),
        (_MixUp(), "view i is a view of record i alone"),
        (_BatchMean(), "the loss has shape [B]"),
        (_InfiniteLoss(), "the loss is finite"),
        (_InfiniteGradient(), "gradients are finite"),
        (_LearnsNothing(), "the loss depends on the parameters"),
        (
            _SimCLRInDisguise(SimCLRPlan(kind="simclr"), VIEWS),
            "row i stays when record j is replaced",
        ),
        (_BatchCentred(), "row i stays when record j is replaced"),
        (_CountNormalised(), "row i stays when other records are removed"),
        (_OrderOfViews(), "rows are permuted as the records are"),
        (_Queue(), "the same inputs give the same result"),
        (_MovesTheModel(), "parameters, buffers and attributes stay as they were"),
        (_ViewsTogether(), "every module is called with B rows"),
        (_GradientOnly(), "row i stays when record j is replaced"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_an_objective_is_found(objective: _Objective, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_objective(objective, _Encoder(), BATCH)
    assert caught.value.clause == clause


# --- data sources ----------------------------------------------------------------------


class _Source:
    """A sound source of 20 records; faults are planted by overriding a part."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Tensor:
        self.reads += 1
        return self.record(index)

    def record(self, index: int) -> Tensor:
        return torch.full((1, 2, 2), index / 20)

    def unit_of(self, index: int) -> Hashable:
        return ("subject", index // 2)


def unreadable() -> UnreadableRecordError:
    return UnreadableRecordError("record", why="test", fix="none")


class _SomeUnreadable(_Source):
    def record(self, index: int) -> Tensor:
        if index % 3 == 0:
            raise unreadable()
        return super().record(index)


@pytest.mark.parametrize(
    "source",
    [
        _Source(),
        _SomeUnreadable(),
        ArraySource(BATCH[:1]),
        LabeledArraySource(BATCH, np.arange(5)),
    ],
    ids=["own", "some-unreadable", "one-record", "labelled"],
)
def test_sound_data_sources_conform(source: _Source) -> None:
    check_data_source(source)


class _Empty(_Source):
    def __len__(self) -> int:
        return 0


class _AllUnreadable(_Source):
    def record(self, index: int) -> Tensor:
        raise unreadable()


class _Bytes(_Source):
    def record(self, index: int) -> Tensor:
        return torch.zeros(1, 2, 2, dtype=torch.uint8)


class _NotFinite(_Source):
    def record(self, index: int) -> Tensor:
        return torch.full((3,), math.nan)


class _RawPixels(_Source):
    def record(self, index: int) -> Tensor:
        return super().record(index) * 255


class _Shapes(_Source):
    def record(self, index: int) -> Tensor:
        return torch.zeros(1, 2 + index % 2, 2)


class _Sequential(_Source):
    def record(self, index: int) -> Tensor:
        return torch.full((1, 2, 2), min(self.reads / 100, 1))


class _Vanishing(_Source):
    def record(self, index: int) -> Tensor:
        if self.reads > 20:
            raise unreadable()
        return super().record(index)


class _ListUnit(_Source):
    def unit_of(self, index: int) -> Hashable:
        return [index]  # type: ignore[return-value]


class _NewUnit(_Source):
    def unit_of(self, index: int) -> Hashable:
        return object()


class _NegativeLabel(_Source):
    def label_of(self, index: int) -> int:
        return -1


@pytest.mark.parametrize(
    ("source", "clause"),
    [
        ([1, 2], "a data source has __len__, __getitem__, unit_of"),
        (_Empty(), "a data source to check has records"),
        (_AllUnreadable(), "some records can be decoded"),
        (_Bytes(), "a record is a float32 tensor"),
        (_NotFinite(), "a record is finite"),
        (_RawPixels(), "pixels of an image lie in [0, 1]"),
        (_Shapes(), "records have one shape"),
        (_Sequential(), "a record is the same each time it is read, in any order"),
        (_Vanishing(), "a record is the same each time it is read, in any order"),
        (_ListUnit(), "unit_of is hashable"),
        (_NewUnit(), "unit_of is stable"),
        (_NegativeLabel(), "label_of is a whole number from 0"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_data_source_is_found(source: _Source, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_data_source(source)
    assert caught.value.clause == clause


# --- mechanisms ------------------------------------------------------------------------


class _Gaussian:
    """A sound mechanism; faults are planted by overriding a part."""

    l2_sensitivity = 2.0
    noise_multiplier = 1.5

    def __init__(self) -> None:
        self.rng = np.random.default_rng()

    def noise(self, clipped_sum: Tensor) -> Tensor:
        draws = self.rng.normal(size=tuple(clipped_sum.shape))
        return torch.from_numpy(draws) * self.noise_multiplier * self.l2_sensitivity

    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum + self.noise(clipped_sum)

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return PoissonGaussianSteps(
            sampling_rate=sampling_rate, noise_multiplier=self.noise_multiplier, steps=steps
        )


class _NonPrivate(_Gaussian):
    l2_sensitivity = math.inf

    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum.clone()

    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return NonPrivateRelease()


class _OneRelease(_Gaussian):
    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return GaussianRelease(noise_multiplier=self.noise_multiplier)


@pytest.mark.parametrize(
    "mechanism",
    [
        _Gaussian(),
        _NonPrivate(),
        _OneRelease(),
        LatticeGaussian(
            l2_clip_norm=0.7, dimension=50, noise_multiplier=0.8, source=SecureRandom()
        ),
    ],
    ids=["own", "non-private", "one-release", "lattice"],
)
def test_sound_mechanisms_conform(mechanism: _Gaussian) -> None:
    check_mechanism(mechanism, 50)


class _UnknownEvent(_Gaussian):
    def event(self, *, sampling_rate: float, steps: int) -> PrivacyEvent:
        return {"kind": "new_kind"}  # type: ignore[return-value]


class _NoSensitivity(_Gaussian):
    l2_sensitivity = 0.0


class _InfiniteSensitivity(_Gaussian):
    l2_sensitivity = math.inf

    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.from_numpy(self.rng.normal(size=tuple(clipped_sum.shape)))


class _InPlace(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum.add_(self.noise(clipped_sum))


class _Float32(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(clipped_sum).float()


class _Shorter(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(clipped_sum)[1:]


class _NaN(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return clipped_sum * math.nan


class _NoNoise(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.zeros_like(clipped_sum)


class _TorchSeeded(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return torch.randn_like(clipped_sum) * 3


class _Biased(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return super().noise(clipped_sum) + 0.3


class _Shrinks(_Gaussian):
    def apply(self, clipped_sum: Tensor) -> Tensor:
        return super().apply(0.5 * clipped_sum)


class _Weak(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return 0.9 * super().noise(clipped_sum)


class _OneDraw(_Gaussian):
    def noise(self, clipped_sum: Tensor) -> Tensor:
        return super().noise(clipped_sum[:1]).expand_as(clipped_sum)


@pytest.mark.parametrize(
    ("mechanism", "clause"),
    [
        (object(), "a mechanism has l2_sensitivity, apply, event"),
        (_UnknownEvent(), "event is one of the events that accounting knows"),
        (_NoSensitivity(), "l2_sensitivity is positive"),
        (_InfiniteSensitivity(), "l2_sensitivity is finite"),
        (_InPlace(), "apply leaves its argument as it was"),
        (_Float32(), "apply keeps shape and dtype float64"),
        (_Shorter(), "apply keeps shape and dtype float64"),
        (_NaN(), "apply gives finite values"),
        (_NoNoise(), "two calls give different noise, whatever torch's seed"),
        (_TorchSeeded(), "two calls give different noise, whatever torch's seed"),
        (_OneDraw(), "coordinates have independent noise"),
        (_Biased(), "apply adds noise of mean zero"),
        (_Shrinks(), "the noise does not depend on the sum"),
        (_Weak(), "the noise is at least noise_multiplier × l2_sensitivity"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_mechanism_is_found(mechanism: _Gaussian, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_mechanism(mechanism, 50)
    assert caught.value.clause == clause


# --- strategies ------------------------------------------------------------------------


class _Average:
    """Federated averaging; faults are planted by overriding a part."""

    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), moments={"momentum": np.zeros_like(parameters)})

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        moved = state.parameters + private_mean
        return replace(state, parameters=moved, round=state.round + 1)


STRATEGIES: list[StrategyPlan] = [
    FedAvgPlan(kind="fedavg"),
    FedAvgMPlan(kind="fedavgm"),
    FedAdamPlan(kind="fedadam"),
    FedProxPlan(kind="fedprox", proximal_mu=0.1),
]


def test_a_sound_strategy_conforms() -> None:
    check_strategy(_Average(), 10)


@pytest.mark.parametrize("plan", STRATEGIES, ids=lambda plan: plan.kind)
def test_built_in_strategies_conform(plan: StrategyPlan) -> None:
    check_strategy(build_strategy(plan, PluginTable()), 10)


class _InitScales(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters * 2)


class _StartsLater(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), round=1)


class _Tuple(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return (parameters, 0)  # type: ignore[return-value]


class _ShortMoment(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        return StrategyState(parameters.copy(), moments={"m": parameters[:1].copy()})


class _Float64State(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        after = super().apply(state, private_mean)
        return replace(after, parameters=after.parameters.astype(np.float64))


class _StateInPlace(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        state.moments["momentum"] += private_mean
        return super().apply(state, private_mean)


class _MeanInPlace(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        after = super().apply(state, private_mean)
        private_mean *= 1 + 1e-6
        return replace(after, parameters=state.parameters.copy())


class _StartInPlace(_Average):
    def init(self, parameters: ParameterVector) -> StrategyState:
        self.start = parameters
        return super().init(parameters)

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        self.start[:] = 0
        return super().apply(state, private_mean)


class _Remembers(_Average):
    calls = 0

    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        self.calls += 1
        after = super().apply(state, private_mean)
        return replace(after, parameters=after.parameters + np.float32(self.calls))


class _SameRound(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        return replace(super().apply(state, private_mean), round=state.round)


class _Normalises(_Average):
    def apply(self, state: StrategyState, private_mean: ParameterVector) -> StrategyState:
        with np.errstate(invalid="ignore"):
            return super().apply(state, private_mean / np.linalg.norm(private_mean))


@pytest.mark.parametrize(
    ("strategy", "clause"),
    [
        (object(), "a strategy has init and apply"),
        (_InitScales(), "init keeps the parameters"),
        (_StartsLater(), "init starts at round 0 and apply adds one"),
        (_SameRound(), "init starts at round 0 and apply adds one"),
        (_Tuple(), "init and apply return a StrategyState"),
        (_ShortMoment(), "parameters and moments are float32 vectors [P]"),
        (_Float64State(), "parameters and moments are float32 vectors [P]"),
        (_StateInPlace(), "apply leaves the state as it was"),
        (_MeanInPlace(), "apply leaves the mean update as it was"),
        (_StartInPlace(), "init and apply leave the start as it was"),
        (_Remembers(), "apply is deterministic"),
        (_Normalises(), "parameters and moments are finite"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_strategy_is_found(strategy: _Average, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_strategy(strategy, 10)
    assert caught.value.clause == clause


# --- probes ----------------------------------------------------------------------------


class _Means:
    """A sound probe: sums of clipped features per class; faults override a part."""

    l2_sensitivity = 1.0

    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        reduced = (features - basis.mean) @ basis.components
        sums = np.zeros((3, basis.components.shape[1]))
        np.add.at(sums, labels, self.bound(reduced))
        return sums.ravel()

    def bound(self, features: FloatArray) -> FloatArray:
        norms: FloatArray = np.linalg.norm(features, axis=1, keepdims=True)
        bounded: FloatArray = features / np.maximum(norms, 1)
        return bounded

    def solve(self, statistics: FloatArray, basis: PublicBasis) -> "_Means":
        self.sums = statistics.reshape(3, -1)
        return self

    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        scores = features @ self.sums.T
        classes: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
        return classes


def projection() -> PublicBasis:
    rng = np.random.default_rng(0)
    return PublicBasis(rng.normal(size=6), np.linalg.qr(rng.normal(size=(6, 4)))[0])


def test_sound_probes_conform() -> None:
    check_probe(_Means(), 6, 3)
    check_probe(RidgeProbe(classes=3), 6, 3)
    check_probe(RidgeProbe(classes=3), 6, 3, basis=projection())
    check_probe(RidgeProbe(classes=60), 6, 60)


class _InfiniteBound(_Means):
    l2_sensitivity = math.inf


class _NotClipped(_Means):
    def bound(self, features: FloatArray) -> FloatArray:
        return features


class _Normalised(_Means):
    def bound(self, features: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            bounded: FloatArray = features / np.linalg.norm(features, axis=1, keepdims=True)
        return bounded


class _Prior(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        return super().statistics(features, labels, basis) + 0.01


class _Mean(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        return super().statistics(features, labels, basis) / max(len(features), 1)


class _ClassesSeen(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        sums = super().statistics(features, labels, basis).reshape(3, -1)
        return sums[np.unique(labels)].ravel() if len(labels) else sums.ravel()


class _CentresInPlace(_Means):
    def statistics(
        self, features: FloatArray, labels: NDArray[np.int64], basis: PublicBasis
    ) -> FloatArray:
        before = super().statistics(features, labels, basis)
        features *= 0.5
        return before


class _OneTooMany(_Means):
    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        return super().predict(features) + 1


class _Scores(_Means):
    def predict(self, features: FloatArray) -> NDArray[np.int64]:
        return super().predict(features).astype(np.float64)


@pytest.mark.parametrize(
    ("probe", "clause"),
    [
        (object(), "a probe has l2_sensitivity, statistics, solve"),
        (_InfiniteBound(), "l2_sensitivity is finite, positive"),
        (_NotClipped(), "one record adds at most l2_sensitivity"),
        (_Normalised(), "one record adds at most l2_sensitivity"),
        (_Prior(), "no records give a vector of zeros"),
        (_Mean(), "statistics are the sum over records"),
        (_ClassesSeen(), "statistics have one shape [S]"),
        (_CentresInPlace(), "statistics leave their arguments as they were"),
        (_OneTooMany(), "predictions are classes [N], from noisy statistics too"),
        (_Scores(), "predictions are classes [N], from noisy statistics too"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fault_planted_in_a_probe_is_found(probe: _Means, clause: str) -> None:
    with pytest.raises(ConformanceError) as caught:
        check_probe(probe, 6, 3)
    assert caught.value.clause == clause
