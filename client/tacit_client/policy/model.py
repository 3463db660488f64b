"""What a site allows: decided by its operator and read locally, never from the server.

Two questions are asked of a policy. `require_allowed`: may this study run here at all? The
answer depends on the study, the policy and the clock. `check`: may this be added to what
the ledger says is spent? The answer depends on the charge and the ledger. Neither depends
on data, so a refusal tells nothing of it.
"""

import math
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tacit_client.policy.hours import Hours
from tacit_client.policy.refusals import (
    above,
    not_listed,
    other_unit,
    too_little_noise,
    without_privacy,
)
from tacit_client.policy.sections import (
    ANY,
    PROBES,
    Allowed,
    Consent,
    Release,
    Resources,
    StudyLimits,
    allows,
    listed_as,
)
from tacit_common.architecture import encoder_sha256
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.ledger_chain import Cap, Charge
from tacit_common.model import memory_of
from tacit_common.privacy.accounting import REPORT_INTERVAL, epsilon
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.filter import events_of, releases_of
from tacit_common.privacy.plan import PrivacySchedule, calibrate
from tacit_common.privacy.spend import Spend
from tacit_common.study import LocalPrivacyPlan, Study

Unit = Literal["record", "subject"]

_UNBOUNDED = 1e9  # a finite number, so that every policy can be written to its file


class SitePolicy(BaseModel):
    """The site's own bounds on studies, and on what all of them together may cost its data.

    What the cap guarantees: as long as it stands, everything that this site ever released
    of one unit, over all rounds, runs, studies and coordinators, each chosen with all
    earlier answers in view, is (`epsilon_cap`, `delta`)-DP for that unit (zero-out). The
    δ of a study is its own affair: the caps are held at the policy's δ. Its unit is not: a
    bound for one record says nothing of a person with many, and one for a person nothing
    that is as sharp of one record, so a site admits studies of its own unit alone.

    What it does not: nothing bounds a unit that an operator gives a new lineage and a new
    form, units that the site's tags cannot link, what other sites release of the same
    person, or releases without privacy, which `allow_non_private` permits. After one of
    those the touched data admits no private study any more, because no cap could be kept.

    A policy may be changed at any time. The one that counts is that of today.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    unit: Unit = Field(
        description="What the caps protect: a record, or a subject with all of its records."
    )
    epsilon_cap: float = Field(
        gt=0, description="Largest ε of everything that is ever released of the data."
    )
    delta: float = Field(gt=0, lt=1, description="δ at which both caps are stated.")
    allow_non_private: bool = Field(
        description="Whether a study without differential privacy (mode `none`) may touch this "
        "data. Nothing bounds what such a study reveals."
    )
    study: StudyLimits
    allow: Allowed
    consent: Consent = Consent()
    hours: Hours | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if "none" in self.allow.modes and not self.allow_non_private:
            raise ValueError("allow.modes lists 'none', and allow_non_private is false")
        return self

    @classmethod
    def to_begin_with(cls, *, unit: Unit, epsilon_cap: float, delta: float) -> Self:
        """The policy of a new site, for its operator to read and change.

        Differential privacy alone, the built-in objectives that do not couple records, and a
        person's consent to each study.
        """
        return cls(
            unit=unit,
            epsilon_cap=epsilon_cap,
            delta=delta,
            allow_non_private=False,
            study=StudyLimits(
                epsilon_cap=epsilon_cap,
                smallest_noise_multiplier=0.5,
                largest_l2_clip_norm=10.0,
                largest_sampling_rate=0.5,
            ),
            allow=Allowed(
                modes=("local",),
                objectives=("masked", "bank_contrast", "logit_dp"),
                encoders=(ANY,),
                probes=tuple(PROBES),
                releases=("update", "probe", "account"),
            ),
        )

    @classmethod
    def rehearsal(
        cls, *, unit: Unit, epsilon_cap: float, delta: float, allow_non_private: bool
    ) -> Self:
        """A policy that bounds nothing but the cap: for simulated sites, which have no operator."""
        return cls(
            unit=unit,
            epsilon_cap=epsilon_cap,
            delta=delta,
            allow_non_private=allow_non_private,
            study=StudyLimits(
                epsilon_cap=_UNBOUNDED,
                smallest_noise_multiplier=0.0,
                largest_l2_clip_norm=_UNBOUNDED,
                largest_sampling_rate=1.0,
                largest_rounds=int(_UNBOUNDED),
                largest_local_steps=int(_UNBOUNDED),
            ),
            allow=Allowed(
                modes=("local", "none") if allow_non_private else ("local",),
                objectives=(ANY,),
                encoders=(ANY,),
                probes=(ANY,),
                releases=("update", "train_loss", "probe", "account"),
            ),
            consent=Consent(approval="none"),
        )

    @property
    def cap(self) -> Cap:
        """What a charge that asks for this policy's consent has to name."""
        return Cap(epsilon=self.epsilon_cap, delta=self.delta)

    # --- may this study run here? ------------------------------------------------------

    def require_allowed(self, study: Study, *, now: datetime) -> None:
        """Refuse a study that asks for more than the site allows, or at another hour.

        Raises:
            SiteRefusal: with the code POLICY or HOURS.
            PrivacyConfigError: the study's own budget cannot be met by any noise.
        """
        self.require_terms(study, now=now)
        self.require_cost(study)

    def require_terms(self, study: Study, *, now: datetime) -> None:
        """The part of `require_allowed` that needs no accounting, so that it is cheap.

        Raises:
            SiteRefusal: with the code POLICY or HOURS.
        """
        for objection in self._to_its_terms(study):
            raise objection
        if self.hours is not None and not self.hours.include(now):
            raise SiteRefusal(
                RefusalCode.HOURS,
                why=f"the site works from {self.hours}",
                fix="ask again when it does, or change [hours] in the site's policy",
            )

    def require_cost(self, study: Study) -> None:
        """The rest of it: its noise and its ε, which may take a minute to compute.

        Raises:
            SiteRefusal: with the code POLICY.
            PrivacyConfigError: the study's own budget cannot be met by any noise.
        """
        for objection in self._to_its_cost(calibrate(study)):
            raise objection

    def objections(self, study: Study) -> list[SiteRefusal]:
        """Everything that the policy has against a study, whatever the hour.

        Its cost is looked at only where there is nothing else.

        Raises:
            PrivacyConfigError: the study's own budget cannot be met by any noise.
        """
        return list(self._to_its_terms(study)) or list(self._to_its_cost(calibrate(study)))

    def require_release(self, kind: Release) -> None:
        """Refuse to let something leave that the policy does not list.

        Raises:
            SiteRefusal: with the code POLICY.
        """
        for objection in self._to_releasing(kind):
            raise objection

    def epsilon_of(self, schedule: PrivacySchedule) -> float:
        """ε of a whole study by PLD, at the site's δ and not at the study's."""
        return self._epsilon(schedule.planned)

    def _epsilon(self, events: Iterable[PrivacyEvent]) -> float:
        return epsilon(events, self.delta, interval=REPORT_INTERVAL)

    def _to_its_terms(self, study: Study) -> Iterator[SiteRefusal]:
        privacy, limits, allow = study.privacy, self.study, self.allow
        if isinstance(privacy, LocalPrivacyPlan):
            if "local" not in allow.modes:
                yield not_listed("privacy.mode 'local'", allow.modes, "allow.modes")
            if privacy.unit != self.unit:
                yield other_unit(privacy.unit, self.unit)
            clip, most = privacy.l2_clip_norm, limits.largest_l2_clip_norm
            yield from above("privacy.l2_clip_norm", clip, most, "study.largest_l2_clip_norm")
        elif not self.allow_non_private:
            yield without_privacy()
        elif "none" not in allow.modes:
            yield not_listed("privacy.mode 'none'", allow.modes, "allow.modes")
        rate, most = privacy.sampling_rate, limits.largest_sampling_rate
        yield from above("privacy.sampling_rate", rate, most, "study.largest_sampling_rate")
        rounds, most = study.federation.rounds, limits.largest_rounds
        yield from above("federation.rounds", rounds, most, "study.largest_rounds")
        steps, most = study.federation.local_steps, limits.largest_local_steps
        yield from above("federation.local_steps", steps, most, "study.largest_local_steps")
        objective, architecture = listed_as(study.objective), encoder_sha256(study.encoder)
        if not allows(allow.objectives, objective):
            yield not_listed(f"objective '{objective}'", allow.objectives, "allow.objectives")
        if not allows(allow.encoders, architecture):
            yield not_listed(f"encoder {architecture}", allow.encoders, "allow.encoders")
        for probe in map(listed_as, study.probes):
            if not allows(allow.probes, probe):
                yield not_listed(f"probe '{probe}'", allow.probes, "allow.probes")
        yield from self._to_releasing("update")
        if study.probes:
            yield from self._to_releasing("probe")
        # Known before anything of that size is built.
        size, most = math.ceil(memory_of(study) / 2**20), self.resources.largest_model_mb
        yield from above("a model's size in 2²⁰ bytes", size, most, "resources.largest_model_mb")

    def _to_releasing(self, kind: Release) -> Iterator[SiteRefusal]:
        if kind not in self.allow.releases:
            yield not_listed(f"release '{kind}'", self.allow.releases, "allow.releases")

    def _to_its_cost(self, schedule: PrivacySchedule) -> Iterator[SiteRefusal]:
        if schedule.delta is None:
            return
        least = self.study.smallest_noise_multiplier
        for event in schedule.planned:
            match event:
                case PoissonGaussianSteps() | GaussianRelease() if event.noise_multiplier >= least:
                    pass
                case PoissonGaussianSteps():
                    yield too_little_noise("training", event.noise_multiplier, least)
                case GaussianRelease():
                    yield too_little_noise("a probe", event.noise_multiplier, least)
                case NonPrivateRelease():
                    yield without_privacy()
        cap = self.study.epsilon_cap
        # ε falls as δ rises: what the study's own, smaller δ admits need not be computed anew.
        if schedule.delta <= self.delta and schedule.planned_epsilon <= cap:
            return
        cost = self.epsilon_of(schedule)
        if cost > cap:
            yield SiteRefusal(
                RefusalCode.POLICY,
                why=f"the whole study costs ε = {cost:.4g} at the site's δ = {self.delta:g}, and "
                f"the site allows {cap:g} for one study",
                fix="propose fewer rounds, more noise or a smaller sampling rate, or raise "
                "study.epsilon_cap in the site's policy",
            )

    # --- may this be added to what is spent? -------------------------------------------

    def check(self, spend: Spend, charge: Charge) -> None:
        """Whether `charge` may be added to what the ledger says is spent.

        The answer depends on the charge and the ledger alone, never on data. `Ledger.reserve`
        takes this method and asks it while nobody else can append.

        Raises:
            SiteRefusal: it would pass the cap of an atom that it touches or the bound of its
                study, names another cap, or has no differential privacy at all.
        """
        if isinstance(charge.event, NonPrivateRelease):
            if not self.allow_non_private:
                raise without_privacy()
            return
        if charge.unit != self.unit:
            raise other_unit(charge.unit, self.unit)
        if charge.cap != self.cap:
            raise SiteRefusal(
                RefusalCode.POLICY,
                why="the charge was made for another cap than the site's",
                fix="report this: it is a fault in the site's software",
            )
        for verdict in spend.verdicts(charge):
            if not verdict.admitted:
                raise SiteRefusal(
                    RefusalCode.BUDGET,
                    why=f"the request would pass the site's cap of ε = {self.epsilon_cap:g}: "
                    f"{verdict.why}",
                    fix="ask for fewer rounds, more noise or a smaller sampling rate",
                )
        self._require_within_study(spend, charge)

    def _require_within_study(self, spend: Spend, charge: Charge) -> None:
        """Hold all runs of one study, and what they were asked twice, to the study's bound."""
        cap = self.study.epsilon_cap
        if cap >= self.epsilon_cap:
            return  # the data set's own cap is the smaller bound of all releases
        plan = releases_of(charge.planned)
        for held in spend.of_study(charge):
            if held == plan:
                continue  # one run as planned, whose cost is asked with the study itself
            cost = self._epsilon(events_of(held))
            if cost > cap:
                raise SiteRefusal(
                    RefusalCode.BUDGET,
                    why=f"all that runs of study '{charge.study}' hold would come to ε = "
                    f"{cost:.4g}, and the site allows {cap:g} for one study",
                    fix="finish a run as it was planned, give up another with "
                    "`tacit site close`, or raise study.epsilon_cap in the site's policy",
                )
