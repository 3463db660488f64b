"""A data site: everything that happens between a request and the reply that leaves.

The order is the guarantee: check the plan against the policy and the ledger, reserve
its cost, only then read a record, store the private answer, commit, and release.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from tacit_client import probe
from tacit_client.ledger import Charge, Ledger
from tacit_client.outbox import Outbox
from tacit_client.policy import SitePolicy
from tacit_client.pretrain import PlainStepGradient, PrivateStepGradient, local_update
from tacit_client.resident import ResidentModel, resident_model
from tacit_common import __version__
from tacit_common.data import DataSource
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.plugins import PluginTable
from tacit_common.privacy.events import (
    GaussianRelease,
    NonPrivateRelease,
    PoissonGaussianSteps,
    PrivacyEvent,
)
from tacit_common.privacy.noise import LatticeGaussian, RandomSource
from tacit_common.privacy.separability import require_legal
from tacit_common.study import LocalPrivacyPlan, Study
from tacit_common.training import trained_parameters
from tacit_common.wire import (
    DescribeRequest,
    ProbePlan,
    ProbeReply,
    ProbeRequest,
    Reply,
    Request,
    RoundPlan,
    SiteDescription,
    TrainReply,
    TrainRequest,
    parameters_sha256,
)

_CPU = torch.device("cpu")
ReplyT = TypeVar("ReplyT", TrainReply, ProbeReply)


@dataclass(frozen=True)
class Site:
    """One data site.

    `declared_records` is a public constant that the operator chose, rounded down from
    what the site holds; `len(source)` never enters a plan or a reply.
    """

    name: str
    source: DataSource
    declared_records: int
    policy: SitePolicy
    ledger: Ledger
    outbox: Outbox
    plugins: PluginTable
    random: RandomSource
    device: torch.device = _CPU

    def answer(self, request: Request) -> Reply:
        """Do what the server asks, if the policy and the ledger allow it.

        Raises:
            SiteRefusal: they do not; nothing was read.
            TacitError: the work failed; nothing leaves.
        """
        match request:
            case DescribeRequest():
                return SiteDescription(
                    site=self.name,
                    declared_records=self.declared_records,
                    tacit_version=__version__,
                )
            case TrainRequest():
                return self._once(request, TrainReply, lambda: self._train(request))
            case ProbeRequest():
                return self._once(request, ProbeReply, lambda: self._probe(request))

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
            if self.ledger.is_committed(key):
                raise SiteRefusal(
                    RefusalCode.REPLAY,
                    why=f"{plan.label()} was answered, and the answer is no longer kept",
                    fix="ask for the round that follows; a new answer would be a second release",
                )
            self._pay(request)
            reply = work()
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
        if isinstance(request, ProbeRequest):
            probe.require_labels(self.source)
        if self.ledger.is_reserved(key):
            return
        require_legal(resident.objective.coupling, plan.study.objective.kind, plan.study.privacy)
        event = charged_event(plan)
        self.policy.check(self.ledger.events, event)
        self.ledger.reserve(_charge(plan, key, event))

    def _resident(self, study: Study) -> ResidentModel:
        return resident_model(study, self.plugins, self.device)

    def _train(self, request: TrainRequest) -> TrainReply:
        plan, privacy = request.plan, request.plan.study.privacy
        resident = self._resident(plan.study)
        gradient: PrivateStepGradient | PlainStepGradient
        if isinstance(privacy, LocalPrivacyPlan):
            mechanism = LatticeGaussian(
                l2_clip_norm=privacy.l2_clip_norm,
                noise_multiplier=required_noise(plan),
                dimension=len(request.parameters),
                source=self.random,
            )
            gradient = PrivateStepGradient(
                resident,
                self.source,
                plan,
                privacy,
                mechanism,
                self.random,
                site=self.name,
                declared_records=self.declared_records,
            )
        else:
            gradient = PlainStepGradient(resident, self.source, plan, privacy, site=self.name)
        return local_update(resident, request.parameters, plan.study.federation, gradient)

    def _probe(self, request: ProbeRequest) -> ProbeReply:
        return probe.statistics(
            request,
            probe.require_labels(self.source),
            self._resident(request.plan.study),
            self.plugins,
            self.random,
        )


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
    size = sum(parameter.numel() for _, parameter in trained_parameters(resident.model))
    if len(request.parameters) != size:
        raise _unfit(f"{len(request.parameters)} parameters are sent for a model of {size}")
    if parameters_sha256(request.parameters) != request.plan.parameters_sha256:
        raise _unfit("the parameters are not those that the plan names")
    if isinstance(request, ProbeRequest):
        if request.plan.probe >= len(request.plan.study.probes):
            raise _unfit(f"the study has no probe {request.plan.probe}")
        embed_dim = resident.model.encoder.embed_dim
        if not len(request.basis_mean) == len(request.basis_components) == embed_dim:
            raise _unfit("the probe's basis is not of the encoder's width")
        if (
            not np.isfinite(request.basis_mean).all()
            or not np.isfinite(request.basis_components).all()
        ):
            raise _unfit("the probe's basis is not finite")


def _unfit(why: str) -> SiteRefusal:
    return SiteRefusal(
        RefusalCode.MESSAGE, why=why, fix="send what the study calls for, calibrated from it"
    )


def _charge(plan: RoundPlan | ProbePlan, key: str, event: PrivacyEvent) -> Charge:
    return Charge(
        key=key,
        run=plan.run,
        study_digest=plan.study.digest(),
        action="train" if isinstance(plan, RoundPlan) else "probe",
        label=plan.label(),
        event=event,
    )
