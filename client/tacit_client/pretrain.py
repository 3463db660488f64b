"""One site's share of a round: local steps of self-supervised training.

    for each step:  Poisson sample → views → loss per unit → clip → noise → optimiser

Under mode `none` the clip and the noise fall away and the sample is seeded.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tacit_client.dp_sgd import private_mean_gradient
from tacit_client.gradients import UnitGradients
from tacit_client.records import read_records, readable_records, required_image_shape
from tacit_client.resident import ResidentModel
from tacit_client.sampling import (
    Indices,
    secret_generator,
    secret_poisson_sample,
    seeded_poisson_sample,
)
from tacit_client.units import Units
from tacit_common.data import DataSource
from tacit_common.errors import NonFiniteUpdateError
from tacit_common.messages import RoundPlan, TrainReply
from tacit_common.objectives.contract import PretrainModel
from tacit_common.privacy.mechanism import PrivacyMechanism
from tacit_common.privacy.noise import LatticeGaussian, RandomSource
from tacit_common.privacy.plan import expected_batch
from tacit_common.strategy import ParameterVector
from tacit_common.study import FederationPlan, FedProxPlan, LocalPrivacyPlan, NoPrivacyPlan
from tacit_common.training import (
    change_since,
    load_parameters,
    mean_gradient,
    seeded_generator,
    trained_parameters,
)


class StepGradient(Protocol):
    """Fills the model's `.grad` for one step."""

    def fill(self) -> float | None:
        """Returns the step's mean loss where it may be shown, else None."""
        ...


def noise_of_step(
    gradients: UnitGradients,
    privacy: LocalPrivacyPlan,
    noise_multiplier: float,
    random: RandomSource,
) -> LatticeGaussian:
    """The noise that hides what one unit changes in the sum of a step."""
    return LatticeGaussian(
        l2_clip_norm=gradients.l2_sensitivity(privacy.l2_clip_norm),
        noise_multiplier=noise_multiplier,
        dimension=gradients.size,
        source=random,
    )


class PrivateStepGradient:
    """The DP-SGD gradient (Abadi et al. 2016, algorithm 1) of one site and round."""

    def __init__(
        self,
        gradients: UnitGradients,
        model: PretrainModel,
        source: DataSource,
        units: Units,
        plan: RoundPlan,
        privacy: LocalPrivacyPlan,
        mechanism: PrivacyMechanism,
        random: RandomSource,
        *,
        declared_units: int,
        physical_batch: int,
    ) -> None:
        self._gradients = gradients
        self._model = model
        self._source = source
        self._units = units
        self._federation = plan.study.federation
        self._privacy = privacy
        self._mechanism = mechanism
        self._random = random
        self._shape = required_image_shape(plan.study.encoder)
        self._physical_batch = physical_batch
        self._expected_batch = expected_batch(declared_units, privacy.sampling_rate)

    def fill(self) -> None:
        """Sample, clip, sum, noise, divide by the expected batch.

        An empty sample gives noise alone and steps like any other: skipping it would
        tell that it was empty.
        """
        sample = secret_poisson_sample(len(self._units), self._privacy.sampling_rate, self._random)
        clipped = self._gradients.clipped_sum(
            self._read(sample),
            secret_generator(self._random),
            l2_clip_norm=self._privacy.l2_clip_norm,
            augmentations=self._federation.augmentations,
            physical_batch=self._physical_batch,
        )
        gradient = private_mean_gradient(
            clipped, self._mechanism, expected_batch=self._expected_batch
        )
        _write_gradient(self._model, gradient)

    def _read(self, sample: Indices) -> Iterator[Tensor]:
        """The records of each unit in the sample, [n, ...]; a unit with none to read is left out.

        One unit at a time, so that a large sample is never in memory whole.
        """
        for unit in sample:
            drawn = self._units.records(int(unit), self._random)
            records, _ = readable_records(self._source, drawn, self._shape)
            if len(records):
                yield records


class PlainStepGradient:
    """The gradient of the mean loss over a seeded Poisson sample: no privacy."""

    def __init__(
        self,
        resident: ResidentModel,
        source: DataSource,
        plan: RoundPlan,
        privacy: NoPrivacyPlan,
        *,
        site: str,
    ) -> None:
        self._resident = resident
        self._source = source
        self._federation = plan.study.federation
        self._sampling_rate = privacy.sampling_rate
        self._views = seeded_generator(plan.study.seed, "views", site, plan.round)
        self._sampling = seeded_generator(plan.study.seed, "sampling", site, plan.round)

    def fill(self) -> float | None:
        """Sample and differentiate; an empty sample gives a zero gradient and no loss."""
        model = self._resident.model
        sample = seeded_poisson_sample(len(self._source), self._sampling_rate, self._sampling)
        if len(sample) == 0:
            model.zero_grad(set_to_none=False)
            return None
        return mean_gradient(
            model,
            self._resident.objective,
            read_records(self._source, sample),
            self._views,
            augmentations=self._federation.augmentations,
        )


def local_update(
    resident: ResidentModel,
    parameters: ParameterVector,
    federation: FederationPlan,
    gradient: StepGradient,
) -> TrainReply:
    """Take the round's local steps from `parameters` [P]; the update is local minus global.

    Raises:
        NonFiniteUpdateError: training diverged.
    """
    model = resident.model
    load_parameters(model, parameters)
    optimizer = _optimizer(model, federation)
    proximal = federation.strategy if isinstance(federation.strategy, FedProxPlan) else None
    start = [p.detach().clone() for _, p in trained_parameters(model)] if proximal else []
    losses = []
    for _ in range(federation.local_steps):
        loss = gradient.fill()
        if proximal is not None:
            _pull_towards(model, start, proximal.proximal_mu)
        optimizer.step()
        if loss is not None:
            losses.append(loss)
    update = change_since(model, parameters)
    if not np.isfinite(update).all():
        raise NonFiniteUpdateError(
            "local training diverged",
            why="a parameter is NaN or infinite after the round's steps",
            fix="lower federation.client_lr",
        )
    return TrainReply(update, float(np.mean(losses)) if losses else None)


def _optimizer(model: PretrainModel, federation: FederationPlan) -> torch.optim.Optimizer:
    parameters = [p for _, p in trained_parameters(model)]
    if federation.client_optimizer == "adam":
        return torch.optim.Adam(parameters, lr=federation.client_lr)
    return torch.optim.SGD(parameters, lr=federation.client_lr)


@torch.no_grad()
def _pull_towards(model: PretrainModel, start: list[Tensor], mu: float) -> None:
    """FedProx (Li et al. 2020, eq. 2): the gradient of μ/2·‖w − w₀‖².

    Added after the noise: it is a function of what was released already.
    """
    for (_, parameter), origin in zip(trained_parameters(model), start, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter - origin, alpha=mu)


@torch.no_grad()
def _write_gradient(model: PretrainModel, gradient: Tensor) -> None:
    offset = 0
    for _, parameter in trained_parameters(model):
        part = gradient[offset : offset + parameter.numel()]
        parameter.grad = part.view_as(parameter).to(parameter.device)
        offset += parameter.numel()
