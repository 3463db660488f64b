"""What a training run may reveal: events, accounting, schedules, clipping and noise."""

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
from tacit_common.privacy.clipping import clip_factors, clip_rows, clipped_sum
from tacit_common.privacy.events import (
    PRIVACY_EVENT,
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.mechanism import PrivacyMechanism
from tacit_common.privacy.noise import (
    InsecureSeededRandom,
    LatticeGaussian,
    RandomSource,
    SecureRandom,
)
from tacit_common.privacy.plan import PrivacySchedule, ProbeRelease, calibrate, expected_batch
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
