"""The model that stays in memory between rounds, so that a round only writes parameters."""

from dataclasses import dataclass
from functools import cached_property

import torch

from tacit_client.book_keeping import BookKeepingGradients
from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.gradients import UnitGradients
from tacit_client.in_unit import InUnitGradients
from tacit_client.logit_dp import LogitGradients
from tacit_client.tape import refusal_of
from tacit_common.errors import PrivacyConfigError
from tacit_common.model import build_model
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.privacy.separability import require_legal
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import trained_size


@dataclass(frozen=True)
class ResidentModel:
    """A study's model and objective; its parameters are those of the request in work."""

    study: Study
    model: PretrainModel
    objective: Objective

    @cached_property
    def schedule(self) -> PrivacySchedule:
        """What the study itself plans to release, and with how much noise."""
        return calibrate(self.study)

    @cached_property
    def size(self) -> int:
        """Number of trained parameters, P."""
        return trained_size(self.model)

    @cached_property
    def gradients(self) -> UnitGradients:
        """The private gradient path that fits the objective; hooks are attached on first use."""
        if not isinstance(self.study.privacy, LocalPrivacyPlan):
            raise TypeError("without privacy there is no private gradient path")
        require_legal(self.objective.coupling, self.study.objective.kind, self.study.privacy)
        return gradient_path(self.model, self.objective, self.study.privacy)


def gradient_path(
    model: PretrainModel, objective: Objective, privacy: LocalPrivacyPlan
) -> UnitGradients:
    """How the contribution of a unit is bounded, by what the objective couples."""
    match objective.coupling:
        case Coupling.NONE:
            path = separable_path(model)
            return path(model, objective, records_per_unit=privacy.records_per_subject or 1)
        case Coupling.BATCH:
            return InUnitGradients(model, objective)
        case Coupling.LOGITS:
            if not isinstance(objective, LogitDP):
                raise no_bound(objective)
            return LogitGradients(model, objective)


def separable_path(model: PretrainModel) -> type[BookKeepingGradients] | type[PerUnitGradients]:
    """Clipping without forming gradients where the model's layers allow it."""
    return BookKeepingGradients if refusal_of(model) is None else PerUnitGradients


def no_bound(objective: Objective) -> PrivacyConfigError:
    """What is wrong with a plug-in that couples its records through similarities."""
    return PrivacyConfigError(
        f"objective '{type(objective).__name__}' has no bound that could be accounted for",
        why="Logit-DP is proven for the built-in objective's loss and for no other",
        fix="use objective 'logit_dp', or declare Coupling.NONE where each loss is a record's own",
    )


_Key = tuple[str, tuple[tuple[str, str], ...], str]
_resident: dict[_Key, ResidentModel] = {}


def resident_model(study: Study, plugins: PluginTable, device: torch.device) -> ResidentModel:
    """The model of `study` under the site's own plug-ins, built once a process.

    Only the newest study stays: a site works on one at a time.
    """
    key = (study.digest(), tuple(sorted(plugins.targets.items())), str(device))
    if key not in _resident:
        model, objective = build_model(study, plugins)
        built = ResidentModel(study, model.to(device), objective)
        _resident.clear()
        _resident[key] = built
    return _resident[key]
