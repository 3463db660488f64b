"""The model that stays in memory between rounds, so that a round only writes parameters."""

from dataclasses import dataclass
from functools import cached_property

import torch

from tacit_client.dp_sgd import PerUnitGradients
from tacit_common.model import build_model
from tacit_common.objectives.contract import Objective, PretrainModel
from tacit_common.plugins import PluginTable
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.study import Study


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
    def per_unit_gradients(self) -> PerUnitGradients:
        """The private gradient path; hooks are attached on first use."""
        return PerUnitGradients(self.model, self.objective)


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
