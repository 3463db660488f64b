"""What a privacy budget buys, before a study is written."""

from tacit_common.privacy.planner.alternatives import plan
from tacit_common.privacy.planner.figures import PlanFigures, PlanRequest

__all__ = ["PlanFigures", "PlanRequest", "plan"]
