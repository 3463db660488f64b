"""The gate: a study's objective is checked on the path that clips, before anything is paid."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.gradients import UnitGradients
from tacit_client.in_unit import InUnitGradients
from tacit_client.logit_dp import LogitGradients
from tacit_client.records import required_image_shape
from tacit_client.resident import no_bound, separable_path
from tacit_common.model import build_model
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import (
    Certificates,
    certificate_key,
    check_bounded,
    check_same_sums,
    check_separable,
    check_units_separate,
    require_legal,
)
from tacit_common.procedural import strokes
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import seeded_generator

_LEAST_RECORDS = 16
_UNITS, _RECORDS_OF_UNIT = 3, 3

_passed: set[tuple[str, tuple[tuple[str, str], ...], int, str]] = set()  # in this process


def require_separable(
    study: Study,
    plugins: PluginTable,
    certificates: Certificates,
    *,
    physical_batch: int,
    device: torch.device,
) -> None:
    """Refuse a private study whose units cannot be clipped one by one.

    Rows are checked in float64, and then the clipped sum as it would be formed here: with
    `physical_batch` records a pass, in float32, on `device`. Public procedural images stand
    in for records: nothing of the site's data is read, so the check may come before the
    ledger is charged. What has passed is not checked again.

    Raises:
        PrivacyConfigError: the objective is not legal under the plan, or not separable on
            the encoder and the gradient path that would be used.
    """
    plugin_targets = tuple(sorted(plugins.targets.items()))
    known = study.digest(), plugin_targets, physical_batch, device.type
    if not isinstance(study.privacy, LocalPrivacyPlan) or known in _passed:
        return
    model, objective = build_model(study, plugins)
    require_legal(objective.coupling, study.objective.kind, study.privacy)
    records = _public_records(study, max(_LEAST_RECORDS, physical_batch))
    gate = _gate_of(model, objective, study.privacy, records)
    key = certificate_key(study, model, objective, gate.path)

    def check() -> None:
        gate.check_rows()
        check_bounded(
            study.objective.kind,
            path := gate.path(copy.deepcopy(model).to(device), copy.deepcopy(objective)),
            gate.units,
            sensitivity=path.l2_sensitivity(1.0),
            physical_batch=physical_batch,
        )

    shape = f"{len(records)}-{physical_batch}-{device.type}"
    certificates.require(key and f"{key}-{shape}", check)
    _passed.add(known)


@dataclass(frozen=True)
class _Gate:
    """What a study of one kind of coupling has to pass."""

    path: Callable[..., UnitGradients]
    check_rows: Callable[[], None]
    units: Sequence[Tensor]


def _gate_of(
    model: PretrainModel, objective: Objective, privacy: LocalPrivacyPlan, records: Tensor
) -> _Gate:
    match objective.coupling:
        case Coupling.NONE:
            size = privacy.records_per_subject or 1
            rows = partial(PerUnitGradients, records_per_unit=size)
            path = partial(separable_path(model), records_per_unit=size)
            units = torch.split(records, size)

            def check_both() -> None:
                check_separable(model, objective, records, gradient_path=rows)
                check_same_sums(model, objective, units[:_UNITS], (rows, path))

            return _Gate(path, check_both, units)
        case Coupling.BATCH:
            units = torch.split(records[: _UNITS * _RECORDS_OF_UNIT], _RECORDS_OF_UNIT)
            check = partial(
                check_units_separate, model, objective, units, gradient_path=InUnitGradients
            )
            return _Gate(InUnitGradients, check, units)
        case Coupling.LOGITS:
            if not isinstance(objective, LogitDP):
                raise no_bound(objective)
            # What is clipped is the gradient of a pair's similarity: its rows must be separate.
            few = records[:_LEAST_RECORDS]
            check = partial(
                check_separable, model, objective.pairs, few, gradient_path=PerUnitGradients
            )
            return _Gate(LogitGradients, check, torch.split(few, 1))


def _public_records(study: Study, count: int) -> Tensor:
    """Images [B, C, H, W] of the study's size, which nobody has to protect."""
    channels, size, _ = required_image_shape(study.encoder)
    return strokes(
        count, image_size=size, channels=channels, generator=seeded_generator("separability")
    )
