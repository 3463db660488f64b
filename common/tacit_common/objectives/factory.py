"""From a study to its objective."""

from tacit_common.encoders import image_shape
from tacit_common.errors import StudyError
from tacit_common.objectives.contract import Objective
from tacit_common.objectives.contrastive import BankContrast, SimCLR
from tacit_common.objectives.logit_dp import LogitDP
from tacit_common.objectives.masked import MaskedModelling
from tacit_common.plugins import PluginTable, require
from tacit_common.study import (
    BankContrastPlan,
    LogitDPPlan,
    MaskedPlan,
    SimCLRPlan,
    Study,
    ViewsPlan,
)


def build_objective(study: Study, plugins: PluginTable) -> Objective:
    """The objective that `study` names.

    Raises:
        StudyError: the objective does not fit the study's encoder or views.
        PluginError: the plug-in is not configured here, or is no `Objective`.
    """
    plan = study.objective
    match plan:
        case MaskedPlan():
            return MaskedModelling(plan, study.views, image_shape=image_shape(study.encoder))
        case BankContrastPlan():
            _require_views(study.views, plan.kind)
            shape = image_shape(study.encoder)
            if shape is None:
                raise StudyError(
                    "objective 'bank_contrast' does not know the size of the images",
                    why="its public bank has images of the records' size, and the encoder is a "
                    "plug-in",
                    fix="give the plug-in the options image_size and channels under "
                    "[encoder.options]",
                )
            return BankContrast(plan, study.views, image_shape=shape)
        case SimCLRPlan():
            _require_views(study.views, plan.kind)
            return SimCLR(plan, study.views)
        case LogitDPPlan():
            _require_views(study.views, plan.kind)
            return LogitDP(plan, study.views)
        case _:
            candidate = plugins.create(plan, "objective")
            return require(candidate, Objective, plan.name)


def _require_views(plan: ViewsPlan, objective: str) -> None:
    if plan == ViewsPlan():
        raise StudyError(
            f"objective '{objective}' has nothing to learn from",
            why="it contrasts two random views of a record, and [views] changes nothing",
            fix="set for example views.max_shift = 0.1 and views.max_rotation_deg = 15",
        )
