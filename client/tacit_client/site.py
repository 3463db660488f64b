"""A data site: everything that happens between a request and the reply that leaves.

The order is the guarantee: check the plan against the policy and the ledger, reserve
its cost, only then read a record, store the private answer, commit, and release.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TypeVar

import numpy as np
import torch

from tacit_client import probe
from tacit_client.book_keeping import MOST_UNITS
from tacit_client.gate import require_separable
from tacit_client.ledger import Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.policy.approvals import NEW_RUN, Approvals
from tacit_client.pretrain import (
    PlainStepGradient,
    PrivateStepGradient,
    local_update,
    noise_of_step,
)
from tacit_client.records import required_image_shape
from tacit_client.resident import ResidentModel, resident_model
from tacit_client.units import Units
from tacit_common import __version__
from tacit_common.data import DataSource
from tacit_common.errors import (
    DataError,
    PrivacyConfigError,
    RefusalCode,
    SiteRefusal,
    refusal_code,
)
from tacit_common.ledger_chain import Charge, SignedHead, verify_rows
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    ProbePlan,
    ProbeReply,
    ProbeRequest,
    Refusal,
    Reply,
    Request,
    RoundPlan,
    SiteAccountReply,
    SiteDescription,
    TrainReply,
    TrainRequest,
    basis_sha256,
    parameters_sha256,
)
from tacit_common.plugins import PluginTable
from tacit_common.privacy.clipping import MOST_ROWS
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.noise import RandomSource
from tacit_common.privacy.plan import PrivacySchedule, expected_batch
from tacit_common.privacy.separability import Certificates
from tacit_common.privacy.spend import Spend
from tacit_common.report.account import site_account
from tacit_common.strategy import ParameterVector
from tacit_common.study import FederationPlan, LocalPrivacyPlan, PrivacyPlan, Study

_log = logging.getLogger(__name__)
_CPU = torch.device("cpu")
ReplyT = TypeVar("ReplyT", TrainReply, ProbeReply)


@dataclass(frozen=True)
class Site:
    """One data site.

    `declared_units` is a public constant that the operator chose, rounded down from
    what the site holds; `len(source)` never enters a plan or a reply. `atoms` are the parts
    of its data that the ledger charges (see `atoms.bind`).
    """

    name: str
    source: DataSource
    declared_units: int
    policy: SitePolicy
    ledger: Ledger
    atoms: tuple[str, ...]
    certificates: Certificates
    outbox: Outbox
    plugins: PluginTable
    random: RandomSource
    device: torch.device = _CPU
    physical_batch: int = 64
    approvals: Approvals | None = None  # where the policy asks for a person's consent
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    _units: dict[tuple[str, int | None], Units] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.source) * self.physical_batch > MOST_ROWS:
            raise DataError(
                "the site holds more records than a sum is proven for",
                why=f"records times physical_batch may be {MOST_ROWS} at most, so that rounding "
                "stays below what the noise allows for",
                fix="lower physical_batch, or make two sites of it",
            )

    def answer(self, request: Request, *, witnessed: SignedHead | None = None) -> Reply:
        """Do what the server asks, if the policy and the ledger allow it.

        `witnessed` is the newest head of this site's ledger that the server has seen.

        Raises:
            SiteRefusal: they do not, and nothing was read; or the private work failed, and
                its code is the answer.
            LedgerError: the ledger is behind `witnessed`; nothing was read.
            TacitError: work without privacy failed; nothing leaves.
        """
        if witnessed is not None:
            self.ledger.require_not_behind(witnessed)
        match request:
            case DescribeRequest():
                self.require_allowed(request.study, run=request.run or NEW_RUN)
                return SiteDescription(
                    site=self.name,
                    declared_units=self.declared_units,
                    tacit_version=__version__,
                )
            case TrainRequest():
                self.require_allowed(request.plan.study, run=request.plan.run)
                return self._once(request, TrainReply, lambda: self._train(request))
            case ProbeRequest():
                self.require_allowed(request.plan.study, run=request.plan.run)
                return self._once(request, ProbeReply, lambda: self._probe(request))
            case AccountRequest():
                return self._account(request)

    def require_allowed(self, study: Study, *, run: str | None = None) -> None:
        """Refuse a study, or this run of it, that the policy or a person here is against.

        Asked before anything is built, read or paid, and again with every request: what the
        policy says today counts, for a study that has begun too. What is cheap comes first:
        no accounting is done for a study that nobody here has agreed to.

        Raises:
            SiteRefusal: with the code POLICY, HOURS or APPROVAL.
            PrivacyConfigError: the study's own budget cannot be met by any noise.
        """
        self.policy.require_terms(study, now=self.clock())
        consent = self._consent()
        if consent is not None:
            consent.require_approved(study, run=run)
        self.policy.require_cost(study)

    def _consent(self) -> Approvals | None:
        """What a person here agreed to; None where the policy asks nobody.

        Raises:
            SiteRefusal: the policy asks for consent, and none can be kept.
        """
        if self.policy.consent.approval == "none":
            return None
        if self.approvals is None:
            raise SiteRefusal(
                RefusalCode.APPROVAL,
                why="the policy asks for a person's consent, and this site keeps none",
                fix="give the site its approvals, or set consent.approval in its policy",
            )
        return self.approvals

    def _once(
        self,
        request: TrainRequest | ProbeRequest,
        reply_type: type[ReplyT],
        work: Callable[[], ReplyT],
    ) -> ReplyT:
        """Pay for a request once, do it once, and give the same answer ever after.

        One request at a time: two that race for one key would both find it unanswered.
        """
        plan = request.plan
        with self.ledger.exclusive():
            if not isinstance(plan.study.privacy, LocalPrivacyPlan):
                self._pay(request)
                return work()  # nothing is noised, so a repeated request repeats itself
            key = plan.key()
            stored = self.outbox.find(key)
            if isinstance(stored, reply_type):
                self.ledger.commit(key)
                return stored
            if isinstance(stored, Refusal):
                self.ledger.void(key)
                raise _failed(stored.code)
            if self.ledger.is_committed(key) or self.ledger.is_voided(key):
                raise SiteRefusal(
                    RefusalCode.REPLAY,
                    why=f"{plan.label()} was answered, and the answer is no longer kept",
                    fix="ask for the round that follows; a new answer would be a second release",
                )
            self._pay(request)
            try:
                reply = work()
            except Exception as error:
                # A failure may tell of the data, so it is the answer that was paid for:
                # asked again, the site fails again, and does not try its luck anew.
                _log.exception("%s failed", plan.label())
                refusal = Refusal(code=refusal_code(error))
                self.outbox.store(key, refusal)
                self.ledger.void(key)
                raise _failed(refusal.code) from error
            self.outbox.store(key, reply)
            self.ledger.commit(key)
            return reply

    def _pay(self, request: TrainRequest | ProbeRequest) -> None:
        """Reserve the plan's cost, or refuse.

        A key that is reserved already was interrupted before its answer was stored, so
        nothing left: the work is done anew under the reserve that was paid.
        """
        plan = request.plan
        key = plan.key()
        resident = self._resident(plan.study)
        _check_fits(request, resident)
        _check_noise(plan, resident.schedule)
        _check_batch(plan.study.privacy, self.declared_units)
        if isinstance(plan.study.privacy, LocalPrivacyPlan):
            required_image_shape(plan.study.encoder)
        if isinstance(request, ProbeRequest):
            probe.require_labels(self.source)
        require_separable(
            plan.study,
            self.plugins,
            self.certificates,
            physical_batch=self.physical_batch,
            device=self.device,
        )
        if self.ledger.is_reserved(key):
            self._require_paid_for(key)
            return
        self.ledger.reserve(self._charge(plan, key, resident.schedule), self._admit)

    def _admit(self, spend: Spend, charge: Charge) -> None:
        """Whether policy and person let a charge be added; asked while nobody else can append."""
        self.policy.check(spend, charge)
        consent = self._consent()
        if consent is not None:
            consent.admit(spend, charge)

    def _require_paid_for(self, key: str) -> None:
        """Refuse to take up a request whose reserve is not for the data that is here now.

        Raises:
            SiteRefusal: the site's data has changed since the request was paid for.
        """
        spend = self.ledger.spend
        paid = next(charge for charge in self.ledger.charges if charge.key == key)
        here = paid.model_copy(update={"atoms": self.atoms})
        if not set(spend.touched(here)) <= set(spend.touched(paid)):
            raise SiteRefusal(
                RefusalCode.REPLAY,
                why="the request was paid for with other data than the site holds now",
                fix="ask for it in a new run: what it was paid is spent, and nothing was released",
            )

    def _charge(self, plan: RoundPlan | ProbePlan, key: str, schedule: PrivacySchedule) -> Charge:
        privacy = plan.study.privacy
        return Charge(
            key=key,
            run=plan.run,
            study=plan.study.name,
            study_digest=plan.study.digest(),
            action="train" if isinstance(plan, RoundPlan) else "probe",
            label=plan.label(),
            unit=privacy.unit if isinstance(privacy, LocalPrivacyPlan) else None,
            event=charged_event(plan),
            planned=schedule.planned,
            atoms=self.atoms,
            cap=self.policy.cap if isinstance(privacy, LocalPrivacyPlan) else None,
        )

    def _resident(self, study: Study) -> ResidentModel:
        return resident_model(study, self.plugins, self.device)

    def units(self, privacy: PrivacyPlan) -> Units:
        """The units of privacy that a plan protects, grouped once."""
        key = (
            (privacy.unit, privacy.records_per_subject)
            if isinstance(privacy, LocalPrivacyPlan)
            else ("record", None)
        )
        if key not in self._units:
            self._units[key] = Units.of(self.source, *key)
        return self._units[key]

    def _train(self, request: TrainRequest) -> TrainReply:
        plan, privacy = request.plan, request.plan.study.privacy
        resident = self._resident(plan.study)
        gradient: PrivateStepGradient | PlainStepGradient
        if isinstance(privacy, LocalPrivacyPlan):
            gradients = resident.gradients
            gradient = PrivateStepGradient(
                gradients,
                resident.model,
                self.source,
                self.units(privacy),
                plan,
                privacy,
                noise_of_step(gradients, privacy, required_noise(plan), self.random),
                self.random,
                declared_units=self.declared_units,
                physical_batch=self.physical_batch,
            )
        else:
            gradient = PlainStepGradient(resident, self.source, plan, privacy, site=self.name)
        reply = local_update(resident, request.parameters, plan.study.federation, gradient)
        return replace(
            reply,
            update=_as_travelling(reply.update, plan.study.federation),
            train_loss=reply.train_loss if "train_loss" in self.policy.allow.releases else None,
        )

    def _probe(self, request: ProbeRequest) -> ProbeReply:
        return probe.statistics(
            request,
            probe.require_labels(self.source),
            self.units(request.plan.study.privacy),
            self._resident(request.plan.study),
            self.plugins,
            self.random,
        )

    def _account(self, request: AccountRequest) -> SiteAccountReply:
        """What the ledger says of a run that is over. No record is read, and nothing is paid.

        Given for a run of this very study that was charged here and agreed to, at any hour.
        """
        self.policy.require_release("account")
        privacy, digest = request.study.privacy, request.study.digest()
        with self.ledger.exclusive():  # a late round may still be at work
            rows = self.ledger.entries()
        ledger = verify_rows(rows)
        if not any(charge.block == (request.run, digest) for charge in ledger.charges):
            raise SiteRefusal(
                RefusalCode.POLICY,
                why="an account was asked of a run that this study has not had here",
                fix="ask for that of a run in which the site has trained",
            )
        consent = self._consent()
        if consent is not None:
            consent.require_approved(request.study, run=request.run)
        try:
            account = site_account(
                ledger,
                run=request.run,
                rounds_done=request.study.federation.rounds,
                delta=privacy.delta if isinstance(privacy, LocalPrivacyPlan) else None,
            )
        except PrivacyConfigError as error:
            raise SiteRefusal(RefusalCode.BUDGET, why=error.why, fix=error.fix) from None
        return SiteAccountReply(account=account)


def _as_travelling(update: ParameterVector, federation: FederationPlan) -> ParameterVector:
    """The update rounded to the type in which it travels: after the noise, so it is free."""
    with np.errstate(over="ignore"):  # infinity is refused where it arrives
        return update.astype(federation.update_dtype, copy=False)


def charged_event(plan: RoundPlan | ProbePlan) -> PrivacyEvent:
    """What the site's ledger is charged for a plan.

    Raises:
        SiteRefusal: the plan's noise does not fit its mode.
    """
    privacy = plan.study.privacy
    if not isinstance(privacy, LocalPrivacyPlan):
        if plan.noise_multiplier is not None:
            raise _unfit("the plan names noise under mode 'none'")
        return NonPrivateRelease()
    noise_multiplier = required_noise(plan)
    if isinstance(plan, ProbePlan):
        return GaussianRelease(noise_multiplier=noise_multiplier)
    return PoissonGaussianSteps(
        sampling_rate=privacy.sampling_rate,
        noise_multiplier=noise_multiplier,
        steps=plan.study.federation.local_steps,
    )


def required_noise(plan: RoundPlan | ProbePlan) -> float:
    """The plan's noise multiplier, which differential privacy cannot do without.

    Raises:
        SiteRefusal: the plan names none.
    """
    if plan.noise_multiplier is None:
        raise _unfit("the plan names no noise under differential privacy")
    return plan.noise_multiplier


def _check_fits(request: TrainRequest | ProbeRequest, resident: ResidentModel) -> None:
    """Refuse what could not be done, before it is paid for.

    Raises:
        SiteRefusal: parts of the request contradict each other or the study's model.
    """
    size = resident.size
    if len(request.parameters) != size:
        raise _unfit(f"{len(request.parameters)} parameters are sent for a model of {size}")
    if parameters_sha256(request.parameters) != request.plan.parameters_sha256:
        raise _unfit("the parameters are not those that the plan names")
    if isinstance(request, ProbeRequest):
        if request.plan.probe >= len(request.plan.study.probes):
            raise _unfit(f"the study has no probe {request.plan.probe}")
        plan = request.plan.study.probes[request.plan.probe]
        embed_dim = resident.model.encoder.embed_dim
        if not len(request.basis_mean) == len(request.basis_components) == embed_dim:
            raise _unfit("the probe's basis is not of the encoder's width")
        if request.basis_components.shape[1] > plan.project_dim:
            raise _unfit("the probe's basis has more components than its plan")
        if basis_sha256(request.basis_mean, request.basis_components) != request.plan.basis_sha256:
            raise _unfit("the probe's basis is not the one that the plan names")
        if (
            not np.isfinite(request.basis_mean).all()
            or not np.isfinite(request.basis_components).all()
        ):
            raise _unfit("the probe's basis is not finite")


def _check_noise(plan: RoundPlan | ProbePlan, schedule: PrivacySchedule) -> None:
    """Refuse less noise, or other releases, than the study itself plans.

    The cap composes what is reserved as a plan that was fixed in advance. A server that
    chose noise after seeing answers could get more out of the same sum; a study that is
    calibrated before the first round, and only ever noised more, cannot.

    Raises:
        SiteRefusal: the plan is not one of the study's own, or has too little noise.
    """
    if isinstance(plan, RoundPlan):
        planned, wanted = schedule.noise_multiplier, plan.round <= schedule.rounds
    else:
        planned = schedule.probe_noise_multipliers[plan.probe]
        wanted = plan.when in plan.study.probes[plan.probe].when
    if not wanted:
        raise _unfit(f"the study plans no {plan.label()}")
    if planned is not None and required_noise(plan) < planned:
        raise SiteRefusal(
            RefusalCode.POLICY,
            why=f"{plan.label()} has less noise than the study's own budget asks for",
            fix="send the noise multiplier that the study is calibrated to, or a larger one",
        )


def _check_batch(privacy: PrivacyPlan, declared_units: int) -> None:
    """Refuse steps of more units than a sum is proven for, before they are paid for.

    By the declared number of units, which is public. Half is kept for what the site holds
    beyond it, and for chance; a step that is larger all the same fails, and stays paid.

    Raises:
        SiteRefusal: the expected batch is too large.
    """
    if not isinstance(privacy, LocalPrivacyPlan):
        return
    if expected_batch(declared_units, privacy.sampling_rate) > MOST_UNITS / 2:
        raise _unfit(
            f"a step would draw more than {MOST_UNITS // 2:,} units: lower the sampling rate"
        )


def _failed(code: RefusalCode) -> SiteRefusal:
    return SiteRefusal(
        code,
        why="the work failed after it was paid for, and that is the answer to this request",
        fix="look at the site's log, mend the cause, and start a new run",
    )


def _unfit(why: str) -> SiteRefusal:
    return SiteRefusal(
        RefusalCode.MESSAGE, why=why, fix="send what the study calls for, calibrated from it"
    )
