"""`tacit audit`: how much of the claim can be refuted by looking at what is released.

    calibrate the study to the claimed ε → pay at the site → plant canaries by coin flips →
    run all rounds in the site's own code → guess who joined → a lower bound on ε

The bound is a measurement, never a guarantee: a fault that no canary touches stays unseen
(docs/audit.md says which). Above the claim it proves a fault.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from tacit_client.gate import require_separable
from tacit_client.site import Site
from tacit_common.errors import PrivacyConfigError, UsageError
from tacit_common.ledger_chain import Charge
from tacit_common.model import build_model
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import PoissonGaussianSteps
from tacit_common.privacy.noise import SecureRandom
from tacit_common.privacy.plan import calibrate
from tacit_common.report.claims import Audit
from tacit_common.study import LocalPrivacyPlan, Study, StudyFile
from tacit_simulations.attacks.canaries import CanaryObjective
from tacit_simulations.attacks.canary_run import CanaryRun
from tacit_simulations.attacks.one_run import epsilon_lower_bound, right_guesses
from tacit_simulations.audit_record import write_audit
from tacit_simulations.simulate import check
from tacit_simulations.sites import SimulatedSites

CANARIES = 1000
CONFIDENCE = 0.95
_CANARIES_A_GUESS = 5
"""The attacker guesses for one canary in five. Fixed in advance: to choose it by the result
would void the confidence."""


@dataclass(frozen=True, kw_only=True)
class AuditPlan:
    """What an audit does and what it claims, known before any record is read."""

    study: Study  # calibrated to the claim, without probes
    privacy: LocalPrivacyPlan
    event: PoissonGaussianSteps
    canaries: int

    @property
    def guesses(self) -> int:
        """r."""
        return max(1, self.canaries // _CANARIES_A_GUESS)

    @property
    def largest_bound(self) -> float:
        """What the audit would find if every guess were right: it can see no larger ε."""
        return self.bound(self.guesses)

    def bound(self, right: int) -> float:
        """The lower bound on ε at the study's δ after so many right guesses."""
        return epsilon_lower_bound(
            delta=self.privacy.delta,
            canaries=self.canaries,
            guesses=self.guesses,
            right=right,
            confidence=CONFIDENCE,
        )


def plan_audit(
    study: StudyFile, *, claimed_epsilon: float = 1.0, canaries: int = CANARIES
) -> AuditPlan:
    """The study's own training, with the noise that `claimed_epsilon` asks for.

    Raises:
        UsageError: the study cannot be simulated, has no privacy to audit or no place for
            canaries, or the claim cannot be met.
    """
    check(study)
    if not isinstance(study.privacy, LocalPrivacyPlan):
        raise PrivacyConfigError(
            "there is nothing to audit",
            why="the study's mode is 'none': it claims no differential privacy",
            fix="audit a study with privacy.mode = 'local'",
        )
    if not claimed_epsilon > 0:
        raise UsageError(
            f"ε = {claimed_epsilon:g} cannot be claimed",
            why="a claim is a positive number",
            fix="give --claimed-epsilon 1, or another positive number",
        )
    privacy = study.privacy.model_copy(update={"epsilon": claimed_epsilon})
    claimed = study.travelling().model_copy(update={"privacy": privacy, "probes": []})
    _, objective = build_model(claimed, PluginTable(study.plugins))
    CanaryObjective(objective, canaries=canaries, gradient_norm=1.0)  # raises if it has no place
    schedule = calibrate(claimed)
    if schedule.noise_multiplier is None:
        raise TypeError("a private study has noise")
    federation = claimed.federation
    event = PoissonGaussianSteps(
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=schedule.noise_multiplier,
        steps=federation.rounds * federation.local_steps,
    )
    planned = AuditPlan(study=claimed, privacy=privacy, event=event, canaries=canaries)
    if planned.largest_bound <= claimed_epsilon:
        raise UsageError(
            f"{canaries} canaries could not find a fault",
            why=f"if every guess were right, the bound would be ε ≥ {planned.largest_bound:.2f}, "
            f"and ε = {claimed_epsilon:g} is claimed",
            fix="give more --canaries, or a smaller --claimed-epsilon",
        )
    return planned


def audit(study: StudyFile, folder: Path, plan: AuditPlan) -> Audit:
    """Audit the first simulated site in `folder`, charge it, and write `audit.json` there.

    Which canaries join, the sample and the noise come from the operating system: no seed
    repeats an audit.

    Raises:
        SiteRefusal: the site's cap has no room for the audit; nothing was read.
        TacitError: the study, the data or the ledger is at fault.
    """
    sites = SimulatedSites(study, check(study), folder)
    sites.prepare()
    try:
        return _audit(sites.open(0), plan, PluginTable(study.plugins), folder)
    finally:
        sites.close()


def _audit(site: Site, plan: AuditPlan, plugins: PluginTable, folder: Path) -> Audit:
    require_separable(
        plan.study,
        plugins,
        site.certificates,
        physical_batch=site.physical_batch,
        device=site.device,
    )
    key = _pay(site, plan)
    run = CanaryRun(
        study=plan.study,
        privacy=plan.privacy,
        noise_multiplier=plan.event.noise_multiplier,
        source=site.source,
        declared_units=site.declared_units,
        physical_batch=site.physical_batch,
        plugins=plugins,
        random=site.random,
        device=site.device,
    )
    joined = SecureRandom().bernoulli(plan.canaries, 0.5)
    try:
        scores = run.scores(joined)
    except Exception:
        site.ledger.void(key)  # nothing is refunded
        raise
    right = right_guesses(scores, joined, guesses=plan.guesses)
    found = Audit(
        claimed_epsilon=plan.privacy.epsilon,
        epsilon_lower_bound=plan.bound(right),
        confidence=CONFIDENCE,
        canaries=plan.canaries,
        guesses=plan.guesses,
        right_guesses=right,
        gradient_path=_described(plan, site.name),
    )
    write_audit(folder, found)
    site.ledger.commit(key)
    return found


def _pay(site: Site, plan: AuditPlan) -> str:
    """Reserve the audit's cost before any record is read; every audit pays anew."""
    key = f"audit-{secrets.token_hex(16)}"
    charge = Charge(
        key=key,
        run=key,
        study=plan.study.name,
        study_digest=plan.study.digest(),
        action="audit",
        label="audit",
        unit=plan.privacy.unit,
        event=plan.event,
        planned=(plan.event,),
        atoms=site.atoms,
        cap=site.policy.cap,
    )
    with site.ledger.exclusive():
        site.ledger.reserve(charge, site.policy.check)
    return key


def _described(plan: AuditPlan, site: str) -> str:
    return (
        f"study '{plan.study.name}', beside the records of {site}: {plan.event.steps} steps, "
        f"Poisson rate {plan.privacy.sampling_rate:g}, gradients of a {plan.privacy.unit} "
        f"clipped to {plan.privacy.l2_clip_norm:g}, lattice Gaussian noise with multiplier "
        f"{plan.event.noise_multiplier:g}, δ = {plan.privacy.delta:g}"
    )
