"""Which objectives are legal under which privacy: separability (docs/privacy.md 3).

Differential privacy for records clips the gradient of each record. If the loss of one
record depends on others, no such gradient exists, and clipping what looks like one does
not bound what a record changes.
"""

from tacit_common.errors import PrivacyConfigError
from tacit_common.objectives.contract import Coupling
from tacit_common.study import NoPrivacyPlan, PrivacyPlan


def require_legal(coupling: Coupling, objective_name: str, privacy: PrivacyPlan) -> None:
    """Refuse an objective that couples the records of a batch where records are protected.

    Guarantees: returns only if `coupling` is none, or the mode is `none`.

    Raises:
        PrivacyConfigError: the objective has no per-example gradient to clip.
    """
    if coupling is Coupling.NONE or isinstance(privacy, NoPrivacyPlan):
        return
    raise PrivacyConfigError(
        f"objective '{objective_name}' couples the examples of a batch",
        why=f"{privacy.unit}-level DP has no per-example gradient to clip",
        fix="use objective 'masked' or 'bank_contrast', whose loss of a record is its own, "
        "or mode 'none' where nothing has to be protected",
    )
