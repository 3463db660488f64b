"""Checks of a report: each mechanism against the study's plan, and its noise.

The formulas stand here a second time on purpose: the code that adds the noise is not used.
"""

import math

from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.privacy.plan import probe_noise_multiplier
from tacit_common.report import statements
from tacit_common.report.claims import LocalPrivacy, Release
from tacit_common.report.schema import Report
from tacit_common.report.verify.claims import study_of
from tacit_common.report.verify.findings import ARITHMETIC, GRID, Check, Comparison
from tacit_common.study import (
    LocalPrivacyPlan,
    LogitDPPlan,
    PluginPlan,
    ProbePlan,
    RidgeProbePlan,
    Study,
)

LATTICE_FACTOR = (1 + 1 / 64) * (1 + 2**-20)
"""What the rounding to the lattice, and that of 64-bit sums, add to a sensitivity."""


def check_releases(report: Report) -> Check:
    """Each mechanism against the study's plan, and its noise against its sensitivity."""
    found = Comparison()
    study, privacy = study_of(report), report.privacy
    if not isinstance(privacy, LocalPrivacy):
        return found.check("releases", "Without differential privacy, no noise is stated.")
    claim = "Every mechanism is one that the study plans, with the noise that its ε needs."
    plan = None if study is None else study.privacy
    if study is None or not isinstance(plan, LocalPrivacyPlan):
        found.differs("privacy.releases", "mechanisms", "a study with privacy to compare them with")
        return found.check("releases", claim)
    probes = _planned_probes(study)
    names = [release.name for release in privacy.releases]
    found.sequences("privacy.releases", names, ["training", *probes])
    for i, release in enumerate(privacy.releases):
        path = f"privacy.releases[{i}]"
        if release.name == "training":
            _check_training(found, path, release, study, plan)
        elif release.name in probes:
            _check_probe(found, path, release, probes[release.name], plan)
        noise = getattr(release.event, "noise_multiplier", math.inf)
        stddev = noise * release.l2_sensitivity
        found.near(f"{path}.noise_stddev", release.noise_stddev, stddev, ARITHMETIC)
    cost = epsilon(
        [release.event for release in privacy.releases], privacy.delta, interval=REPORT_INTERVAL
    )
    found.at_least("privacy.epsilon_target", privacy.epsilon_target, cost, GRID)
    return found.check("releases", claim)


def _planned_probes(study: Study) -> dict[str, ProbePlan]:
    """Each probe release by its name, in order of time."""
    return {
        f"probe {index} {moment}": probe
        for moment in ("before", "after")
        for index, probe in enumerate(study.probes)
        if moment in probe.when
    }


def _check_training(
    found: Comparison, path: str, release: Release, study: Study, plan: LocalPrivacyPlan
) -> None:
    event = release.event
    if not isinstance(event, PoissonGaussianSteps):
        found.differs(f"{path}.event.kind", event.kind, "poisson_gaussian_steps")
        return
    steps = study.federation.rounds * study.federation.local_steps
    found.same(f"{path}.event.sampling_rate", event.sampling_rate, plan.sampling_rate)
    found.same(f"{path}.event.steps", event.steps, steps)
    mechanism = statements.training_mechanism(
        unit=plan.unit, records_per_subject=plan.records_per_subject
    )
    found.same(f"{path}.mechanism", release.mechanism, mechanism)
    found.near(f"{path}.l2_clip_norm", release.l2_clip_norm, plan.l2_clip_norm, ARITHMETIC)
    sensitivity = LATTICE_FACTOR * _bound_of_one_unit(study, plan)
    if isinstance(study.objective, PluginPlan):  # it may couple similarities, and bound them
        found.at_least(f"{path}.l2_sensitivity", release.l2_sensitivity, sensitivity, ARITHMETIC)
    else:
        found.near(f"{path}.l2_sensitivity", release.l2_sensitivity, sensitivity, ARITHMETIC)


def _bound_of_one_unit(study: Study, plan: LocalPrivacyPlan) -> float:
    """What one unit changes in the sum, before rounding."""
    if isinstance(study.objective, LogitDPPlan):
        # (2B/τ)(1 + e^{2/τ}): docs/privacy.md 3.
        temperature = study.objective.temperature
        return 2 * plan.l2_clip_norm / temperature * (1 + math.exp(2 / temperature))
    return plan.l2_clip_norm


def _check_probe(
    found: Comparison, path: str, release: Release, probe: ProbePlan, plan: LocalPrivacyPlan
) -> None:
    event = release.event
    if not isinstance(event, GaussianRelease) or probe.epsilon is None:
        found.differs(f"{path}.event.kind", event.kind, "gaussian_release")
        return
    noise = probe_noise_multiplier(probe.epsilon, plan.delta)
    found.near(f"{path}.event.noise_multiplier", event.noise_multiplier, noise, ARITHMETIC)
    if isinstance(probe, RidgeProbePlan):  # the norm of a record's statistics: docs/privacy.md 6
        found.near(f"{path}.l2_clip_norm", release.l2_clip_norm, math.sqrt(3), ARITHMETIC)
    sensitivity = LATTICE_FACTOR * release.l2_clip_norm
    found.near(f"{path}.l2_sensitivity", release.l2_sensitivity, sensitivity, ARITHMETIC)
    found.same(f"{path}.mechanism", release.mechanism, statements.PROBE_MECHANISM)
