"""What a training run may reveal: events, accounting, schedules, clipping and noise.

What needs torch is imported when it is first asked for, so that commands which only count
(`tacit plan`, `tacit site budget`, `tacit report verify`) answer at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from tacit_common.privacy.accounting import (
    PLANNING_INTERVAL,
    REPORT_INTERVAL,
    Accountant,
    Epsilons,
    NeighboringRelation,
    cross_check,
    curve,
    delta,
    epsilon,
    gaussian_epsilon,
    gaussian_noise_multiplier,
)
from tacit_common.privacy.events import (
    PRIVACY_EVENT,
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.plan import PrivacySchedule, ProbeRelease, calibrate, expected_batch

if TYPE_CHECKING:
    from tacit_common.privacy.clipping import clip_factors, clip_rows, clipped_sum
    from tacit_common.privacy.mechanism import PrivacyMechanism
    from tacit_common.privacy.noise import (
        InsecureSeededRandom,
        LatticeGaussian,
        RandomSource,
        SecureRandom,
    )
    from tacit_common.privacy.separability import require_legal

__all__ = [
    "PLANNING_INTERVAL",
    "PRIVACY_EVENT",
    "REPORT_INTERVAL",
    "Accountant",
    "Epsilons",
    "GaussianRelease",
    "InsecureSeededRandom",
    "LatticeGaussian",
    "NeighboringRelation",
    "NonPrivateRelease",
    "PoissonGaussianSteps",
    "PrivacyEvent",
    "PrivacyMechanism",
    "PrivacySchedule",
    "ProbeRelease",
    "RandomSource",
    "SecureRandom",
    "calibrate",
    "clip_factors",
    "clip_rows",
    "clipped_sum",
    "cross_check",
    "curve",
    "delta",
    "epsilon",
    "expected_batch",
    "gaussian_epsilon",
    "gaussian_noise_multiplier",
    "require_legal",
]

_NEEDS_TORCH = {
    "clipping": ("clip_factors", "clip_rows", "clipped_sum"),
    "mechanism": ("PrivacyMechanism",),
    "noise": ("InsecureSeededRandom", "LatticeGaussian", "RandomSource", "SecureRandom"),
    "separability": ("require_legal",),
}
_MODULE_OF = {name: module for module, names in _NEEDS_TORCH.items() for name in names}

if not TYPE_CHECKING:  # a type checker shall know the names above, and no others

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
