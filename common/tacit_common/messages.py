"""Every message between server and site: what may be asked, and what may be answered.

Messages are data: a JSON plan that pydantic checks against a fixed schema, and float32
vectors. A reply holds the fields listed here and no others, which is the allow-list of
what may leave a site (docs/privacy.md 2): adding a field means adding it here, in view.

    request           reply
    DescribeRequest   SiteDescription
    TrainRequest      TrainReply
    ProbeRequest      ProbeReply
    AccountRequest    SiteAccountReply
    any               Refusal: a code, nothing else
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tacit_common.errors import RefusalCode
from tacit_common.remembered import remembered
from tacit_common.report.account import SiteAccount
from tacit_common.strategy import ParameterVector
from tacit_common.study import Study

DESCRIBE = "query.describe"
TRAIN = "train"
PROBE = "query.probe"
ACCOUNT = "query.account"


RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""A run as requests name it. Ledgers and logs keep it, so it holds nothing that a terminal or a
table could take for more than a name."""


class MessageBody(BaseModel):
    """The part of a message that is JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    protocol: Literal[1] = 1  # the version of this schema; raise it when a field changes


class RoundPlan(MessageBody):
    """What a site is asked to do in one round, in full: data, never code.

    `noise_multiplier` is the server's proposal; the site charges and applies it only
    if its own policy and ledger allow. It is None under mode `none`.
    """

    run: RunId
    round: int = Field(ge=1)
    study: Study
    noise_multiplier: float | None = Field(gt=0)
    parameters_sha256: str = Field(min_length=64, max_length=64)

    def key(self) -> str:
        """Identity of this request: a site answers it once, and repeats that answer."""
        return _key_of(self)

    def label(self) -> str:
        """What a ledger or a log calls this request."""
        return f"round {self.round}"


class ProbePlan(MessageBody):
    """One probe release: the statistics of probe number `probe` of the study."""

    run: RunId
    when: Literal["before", "after"]
    probe: int = Field(ge=0)
    study: Study
    noise_multiplier: float | None = Field(gt=0)
    parameters_sha256: str = Field(min_length=64, max_length=64)
    basis_sha256: str = Field(min_length=64, max_length=64)

    def key(self) -> str:
        """Identity of this request: a site answers it once, and repeats that answer."""
        return _key_of(self)

    def label(self) -> str:
        """What a ledger or a log calls this request."""
        return f"probe {self.probe} {self.when}"


@dataclass(frozen=True)
class DescribeRequest:
    """Who are you, what do you declare, and would you take part in a run of `study`?

    `run` is the one that goes on; None if it is yet to begin.
    """

    study: Study
    run: str | None = None


@dataclass(frozen=True)
class TrainRequest:
    """Pretrain from `parameters` [P] as `plan` says."""

    plan: RoundPlan
    parameters: ParameterVector


@dataclass(frozen=True)
class ProbeRequest:
    """Release probe statistics of the encoder in `parameters` [P].

    `basis_mean` [D] and `basis_components` [D, K] are public constants.
    """

    plan: ProbePlan
    parameters: ParameterVector
    basis_mean: NDArray[np.float64]
    basis_components: NDArray[np.float64]


class AccountRequest(MessageBody):
    """What did `run` of `study` cost your data, by your ledger? Asked after its last round."""

    run: RunId
    study: Study


class SiteDescription(MessageBody):
    """What a site says of itself: constants that its operator declared."""

    site: str = Field(max_length=64)
    declared_units: int = Field(ge=1, le=2**53)  # a weight: a float holds it exactly
    tacit_version: str = Field(max_length=32)


@dataclass(frozen=True)
class TrainReply:
    """The site's update (local minus global) [P], private under every mode but `none`.

    It travels as float32 or float16, and is float32 where it arrives. `train_loss` is the
    mean loss of the round's steps; mode `none` only.
    """

    update: ParameterVector
    train_loss: float | None = None


@dataclass(frozen=True)
class ProbeReply:
    """The probe's statistics [S], private under every mode but `none`."""

    statistics: NDArray[np.float64]


class SiteAccountReply(MessageBody):
    """What the site's ledger says of a run, for the report (see `SiteAccount`).

    It follows from the ledger's rows alone. Of the site's data it tells no more than they do:
    which parts of it a run touched, and whether paid work failed.
    """

    account: SiteAccount


class Refusal(MessageBody):
    """The site did nothing, or nothing that it will show: a fixed code says why."""

    code: RefusalCode


Request = DescribeRequest | TrainRequest | ProbeRequest | AccountRequest
Reply = SiteDescription | TrainReply | ProbeReply | SiteAccountReply | Refusal


def parameters_sha256(parameters: ParameterVector) -> str:
    """SHA-256 of the bytes of a parameter vector, hexadecimal."""
    whole: object = parameters
    while isinstance(whole, np.ndarray):
        whole = whole.base
    # What came in a message stands on bytes, which cannot change: simulated sites share them.
    in_order = parameters.flags.c_contiguous
    if in_order and isinstance(whole, bytes) and len(whole) == parameters.nbytes:
        return _sha256_of(whole)
    return hashlib.sha256(np.ascontiguousarray(parameters).data).hexdigest()


def basis_sha256(mean: NDArray[np.float64], components: NDArray[np.float64]) -> str:
    """SHA-256 of a probe's basis, shape and bytes, hexadecimal."""
    digest = hashlib.sha256(repr(components.shape).encode())
    digest.update(np.ascontiguousarray(mean).data)
    digest.update(np.ascontiguousarray(components).data)
    return digest.hexdigest()


def message_type(request: Request) -> str:
    """Flower's message type for a request."""
    match request:
        case DescribeRequest():
            return DESCRIBE
        case TrainRequest():
            return TRAIN
        case ProbeRequest():
            return PROBE
        case AccountRequest():
            return ACCOUNT


@remembered(kept=2)
def _key_of(plan: RoundPlan | ProbePlan) -> str:
    action = "train" if isinstance(plan, RoundPlan) else "probe"
    return hashlib.sha256(f"{action}\n{plan.model_dump_json()}".encode()).hexdigest()


@remembered(kept=1)
def _sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
