"""What is learned without labels, and what it couples (docs/privacy.md 3)."""

from tacit_common.objectives.contract import Coupling, Objective, PretrainModel, Views
from tacit_common.objectives.contrastive import BankContrast, SimCLR
from tacit_common.objectives.factory import build_objective
from tacit_common.objectives.logit_dp import LogitDP, PairSimilarity, logit_dp_sensitivity
from tacit_common.objectives.masked import MaskedModelling

__all__ = [
    "BankContrast",
    "Coupling",
    "LogitDP",
    "MaskedModelling",
    "Objective",
    "PairSimilarity",
    "PretrainModel",
    "SimCLR",
    "Views",
    "build_objective",
    "logit_dp_sensitivity",
]
