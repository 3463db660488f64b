"""What a study would do at this site, and cost it, in words for whoever has to agree to it.

Figures are in the site's own terms: ε is at the site's δ, whatever δ the study names.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from tacit_client.budget import budget_of
from tacit_client.policy.model import SitePolicy
from tacit_client.policy.sections import listed_as
from tacit_common.architecture import encoder_sha256
from tacit_common.ledger_chain import VerifiedLedger
from tacit_common.privacy.events import GaussianRelease, PoissonGaussianSteps
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.study import LocalPrivacyPlan, PluginPlan, Study

_NAME_WIDTH = 10
_LONGEST_OPTIONS = 400


@dataclass(frozen=True)
class Outline:
    """A study in words, and its ε at the site's δ (None without privacy)."""

    study: Study
    epsilon: float | None
    lines: tuple[tuple[str, str], ...]

    def text(self) -> str:
        """One line for each point."""
        return "\n".join(f"{name:<{_NAME_WIDTH}}{words}" for name, words in self.lines)


def outline(
    study: Study,
    policy: SitePolicy,
    ledger: VerifiedLedger | None,
    *,
    in_new_run: bool = False,
) -> Outline:
    """What `study` would do under `policy`, after what `ledger` says was spent.

    With `in_new_run` it would not go on with a run that the ledger knows. Nothing of the
    site's data is read.

    Raises:
        PrivacyConfigError: the study's own budget cannot be met by any noise.
    """
    schedule = calibrate(study)
    cost = policy.epsilon_of(schedule)
    lines = [
        ("study", f"{study.name}, {study.digest()}"),
        *(("trains", line) for line in _trains(study)),
        ("work", _work(study)),
        ("privacy", _privacy(study, policy, cost)),
        *(("noise", line) for line in _noise(schedule)),
        ("leaves", "; ".join(_leaves(study, policy))),
        *(("policy", line) for line in _policy(study, policy)),
        *(("ledger", line) for line in _ledger(study, policy, ledger, cost, in_new_run)),
    ]
    return Outline(study, None if math.isinf(cost) else cost, tuple(_without_repetition(lines)))


def _without_repetition(lines: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """A name stands before the first of its lines alone."""
    last = ""
    for name, words in lines:
        yield ("" if name == last else name), words
        last = name


def _trains(study: Study) -> Iterator[str]:
    yield f"encoder '{study.encoder.kind}', architecture {encoder_sha256(study.encoder)}"
    yield f"objective '{listed_as(study.objective)}'"
    for plan in (study.encoder, study.objective, *study.probes):
        if isinstance(plan, PluginPlan):
            # As JSON: a name or a value cannot move the cursor or forge another line.
            options = json.dumps(plan.options)
            shown = options[:_LONGEST_OPTIONS] + ("…" if len(options) > _LONGEST_OPTIONS else "")
            yield f"plug-in '{plan.name}' as this site installed it, with options {shown}"


def _work(study: Study) -> str:
    federation = study.federation
    return (
        f"{federation.rounds} rounds of {federation.local_steps} steps, each on about "
        f"{study.privacy.sampling_rate:.3g} of the {_units(study)}; one run of it"
    )


def _privacy(study: Study, policy: SitePolicy, cost: float) -> str:
    privacy = study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        return "NONE: no differential privacy; what leaves may reveal records"
    return (
        f"ε = {cost:.4g} at this site's δ = {policy.delta:g} for one {privacy.unit}, all rounds "
        "and probes of one run together (the study says "
        f"{privacy.epsilon:g} at δ = {privacy.delta:g})"
    )


def _noise(schedule: PrivacySchedule) -> Iterator[str]:
    for event in schedule.planned:
        match event:
            case PoissonGaussianSteps():
                yield f"multiplier {event.noise_multiplier:g} in each step of training"
            case GaussianRelease():
                yield f"multiplier {event.noise_multiplier:g} in a probe's release"


def _leaves(study: Study, policy: SitePolicy) -> Iterator[str]:
    private = isinstance(study.privacy, LocalPrivacyPlan)
    yield f"{study.federation.rounds} updates of the model{', noised here' if private else ''}"
    if not private and "train_loss" in policy.allow.releases:
        yield "the mean training loss of each round"
    for probe in study.probes:
        yield f"statistics of probe '{listed_as(probe)}', {' and '.join(probe.when)} training"
    if "account" in policy.allow.releases:
        yield "what was spent, for the coordinator's report"


def _policy(study: Study, policy: SitePolicy) -> Iterator[str]:
    objections = policy.objections(study)
    if not objections:
        yield "allows it" + ("" if policy.hours is None else f", from {policy.hours}")
    for objection in objections:
        yield f"REFUSES it: {objection.why}"


def _ledger(
    study: Study,
    policy: SitePolicy,
    ledger: VerifiedLedger | None,
    cost: float,
    in_new_run: bool,
) -> Iterator[str]:
    if not isinstance(study.privacy, LocalPrivacyPlan):
        yield "no cap bounds it, and afterwards none of the touched data admits a private study"
        return
    if ledger is None:
        admitted = cost <= policy.epsilon_cap
        yield (
            f"{'admits it' if admitted else 'REFUSES it'}: nothing is spent so far, and the cap "
            f"is ε = {policy.epsilon_cap:g}"
        )
        return
    for found in budget_of(ledger, policy.cap, study, in_new_run=in_new_run).proposals:
        if found.admitted and found.of_study > max(cost, policy.study.epsilon_cap):
            yield (
                f"REFUSES it on {found.atom}: all runs of the study would come to ε = "
                f"{found.of_study:.4g}, and the policy allows {policy.study.epsilon_cap:g}"
            )
            continue
        yield (
            f"admits it: with it ε = {found.held:.4g} of {policy.epsilon_cap:g} is held on "
            f"{found.atom}"
            if found.admitted
            else f"REFUSES it on {found.atom}: {found.why}"
        )


def _units(study: Study) -> str:
    privacy = study.privacy
    return f"{privacy.unit}s" if isinstance(privacy, LocalPrivacyPlan) else "records"
