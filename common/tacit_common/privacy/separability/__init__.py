"""Whether a loss may be clipped unit by unit: the rule, the start-up check, its certificates."""

from tacit_common.privacy.separability.agreement import check_same_sums
from tacit_common.privacy.separability.bounded import check_bounded
from tacit_common.privacy.separability.certificate import Certificates, certificate_key
from tacit_common.privacy.separability.rows import (
    RowGradientPath,
    RowGradients,
    check_separable,
    require_legal,
)
from tacit_common.privacy.separability.units import (
    ClippedSumPath,
    ClippedSums,
    check_units_separate,
)

__all__ = [
    "Certificates",
    "ClippedSumPath",
    "ClippedSums",
    "RowGradientPath",
    "RowGradients",
    "certificate_key",
    "check_bounded",
    "check_same_sums",
    "check_separable",
    "check_units_separate",
    "require_legal",
]
