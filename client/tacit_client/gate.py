"""The gate: a study's objective is checked on the path that clips, before anything is paid."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tacit_client.dp_sgd import PerUnitGradients
from tacit_client.in_unit import InUnitGradients
from tacit_client.logit_dp import LogitGradients
from tacit_client.records import required_image_shape
from tacit_client.resident import no_bound
from tacit_common.model import build_model
from tacit_common.objectives.contract import Coupling, Objective, PretrainModel
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.plugins import PluginTable
from tacit_common.privacy.separability import (
    Certificates,
    certificate_key,
    check_separable,
    check_units_separate,
    require_legal,
)
from tacit_common.procedural import strokes
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import seeded_generator

_RECORDS = 16
_UNITS, _RECORDS_OF_UNIT = 3, 3

_passed: set[tuple[str, tuple[tuple[str, str], ...]]] = set()  # in this process


def require_separable(study: Study, plugins: PluginTable, certificates: Certificates) -> None:
    """Refuse a private study whose units cannot be clipped one by one.

    Public procedural images stand in for records: nothing of the site's data is read, so
    the check may come before the ledger is charged. What has passed is not checked again.

    Raises:
        PrivacyConfigError: the objective is not legal under the plan, or not separable on
            the encoder and the gradient path that would be used.
    """
    known = study.digest(), tuple(sorted(plugins.targets.items()))
    if not isinstance(study.privacy, LocalPrivacyPlan) or known in _passed:
        return
    model, objective = build_model(study, plugins)
    require_legal(objective.coupling, study.objective.kind, study.privacy)
    path, check = _check_of(model, objective, study.privacy, _public_records(study))
    certificates.require(certificate_key(study, model, objective, path), check)
    _passed.add(known)


def _check_of(
    model: PretrainModel, objective: Objective, privacy: LocalPrivacyPlan, records: Tensor
) -> tuple[Callable[..., object], Callable[[], None]]:
    """The gradient path that the site will take, and the check that it has to pass."""
    match objective.coupling:
        case Coupling.NONE:
            rows = partial(PerUnitGradients, records_per_unit=privacy.records_per_subject or 1)
            return rows, partial(check_separable, model, objective, records, gradient_path=rows)
        case Coupling.BATCH:
            units = torch.split(records[: _UNITS * _RECORDS_OF_UNIT], _RECORDS_OF_UNIT)
            sums = InUnitGradients
            return sums, partial(check_units_separate, model, objective, units, gradient_path=sums)
        case Coupling.LOGITS:
            if not isinstance(objective, LogitDP):
                raise no_bound(objective)
            # What is clipped is the gradient of a pair's similarity: its rows must be separate.
            return LogitGradients, partial(
                check_separable, model, objective.pairs, records, gradient_path=PerUnitGradients
            )


def _public_records(study: Study) -> Tensor:
    """Images [B, C, H, W] of the study's size, which nobody has to protect."""
    channels, size, _ = required_image_shape(study.encoder)
    return strokes(
        _RECORDS,
        image_size=size,
        channels=channels,
        generator=seeded_generator("separability"),
    )
