"""A run of the production gradient path with canaries beside a site's records.

    for each round:  local steps from the same start
    for each step:   Poisson sample → views → gradients → clip → sum → noise
                     and the attacker adds up what was released in each canary's coordinate

The attacker is the server of `local` mode: it chooses the parameters of every round, here
the same ones each time, and sees every noised gradient, which is more than the updates
that it is sent.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tacit_client.gradients import UnitGradients
from tacit_client.pretrain import (
    PrivateStepGradient,
    StepGradient,
    local_update,
    noise_of_step,
)
from tacit_client.records import required_image_shape
from tacit_client.resident import ResidentModel, gradient_path
from tacit_client.units import Units
from tacit_common.data import DataSource
from tacit_common.messages import RoundPlan, parameters_sha256
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.plugins import PluginTable
from tacit_common.privacy.noise import RandomSource
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import flatten_parameters
from tacit_simulations.attacks.canaries import CanaryHead, CanaryObjective, WithCanaries

GradientPath = Callable[[PretrainModel, Objective, LocalPrivacyPlan], UnitGradients]

_TIMES_THE_CLIP_NORM = 100.0
"""Norm of a canary's gradient over C: far above, so that clipping makes it exactly C."""

_SMALLEST_VARIANCE = 1e-30  # of a step that released nothing at all


@dataclass(frozen=True, kw_only=True)
class CanaryRun:
    """What is attacked: a study's whole training at one site, in the site's own code.

    Args:
        study: as it travels; all of its rounds and steps are run.
        privacy: its privacy plan.
        noise_multiplier: of training, calibrated by the caller to the ε that it claims.
        source: the site's records.
        random: where the site's samples, views and noise come from.
        gradients: how contributions are bounded. A test puts a faulty part in its place, and
            in that of `step`.
    """

    study: Study
    privacy: LocalPrivacyPlan
    noise_multiplier: float
    source: DataSource
    declared_units: int
    physical_batch: int
    plugins: PluginTable
    random: RandomSource
    device: torch.device
    gradients: GradientPath = gradient_path
    step: type[PrivateStepGradient] = PrivateStepGradient

    def scores(self, joined: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Run it with the canaries that `joined` [m]; what each coordinate summed up to, [m].

        Larger where a canary joined, if anything shows.

        Raises:
            PrivacyConfigError: the objective has no place for canaries.
            NonFiniteUpdateError: training diverged within a round.
        """
        privacy = self.privacy
        resident, spikes = self._with_canaries(len(joined))
        start = flatten_parameters(resident.model)
        source = WithCanaries(self.source, joined, required_image_shape(self.study.encoder))
        gradients = self.gradients(resident.model, resident.objective, privacy)
        plan = RoundPlan(
            run="audit",
            round=1,
            study=self.study,
            noise_multiplier=self.noise_multiplier,
            parameters_sha256=parameters_sha256(start),
        )
        step = self.step(
            gradients,
            resident.model,
            source,
            Units.of(source, privacy.unit, privacy.records_per_subject),
            plan,
            privacy,
            noise_of_step(gradients, privacy, self.noise_multiplier, self.random),
            self.random,
            declared_units=self.declared_units,
            physical_batch=self.physical_batch,
        )
        attacker = _Attacker(step, spikes)
        for _ in range(self.study.federation.rounds):
            local_update(resident, start, self.study.federation, attacker)
        return attacker.sums.numpy()

    def _with_canaries(self, canaries: int) -> tuple[ResidentModel, Tensor]:
        """The study's model with a parameter for every canary, and these parameters."""
        model, objective = build_model(self.study, self.plugins)
        with_canaries = CanaryObjective(
            objective,
            canaries=canaries,
            gradient_norm=_TIMES_THE_CLIP_NORM * self.privacy.l2_clip_norm,
        )
        head = CanaryHead(model.head, canaries)
        model = PretrainModel(model.encoder, head).to(self.device)
        return ResidentModel(self.study, model, with_canaries), head.spikes.weight


class _Attacker:
    """Passes every step on, and adds up what was released in the canaries' coordinates.

    A step counts by one over its variance over the canaries, so that one with too little
    noise is not drowned by the others.
    """

    def __init__(self, step: StepGradient, spikes: Tensor) -> None:
        self._step = step
        self._spikes = spikes
        self.sums = torch.zeros(len(spikes) - 1, dtype=torch.float64)  # [m]

    def fill(self) -> float | None:
        """The step as it is."""
        loss = self._step.fill()
        if self._spikes.grad is None:
            raise TypeError("a step fills the gradient of every parameter")
        released = self._spikes.grad[1:, 0].double().cpu()  # [m]; row 0 is nobody's
        # The best weight of a step: its signal is that of any other, its noise may not be.
        self.sums += released / released.var(correction=0).clamp(min=_SMALLEST_VARIANCE)
        return loss
