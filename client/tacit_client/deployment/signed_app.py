"""A site's answers between machines: the request verified, the answer witnessed and signed.

    is it the coordinator's own request, to this site, and new?  → else a code, unsigned
    the journal notes what was asked                             → it cannot: no work
    what does the witness of the ledger say?                     → behind it: no work
    the ClientApp answers                                        (see `app`, `site`)
    the witness countersigns where the ledger stands now
    the journal notes what was asked, answered, and how much leaves
    the site signs

Nothing here raises: whatever fails becomes a code, and what happened stays in the site's
own log.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from flwr.app import Message, RecordDict

from tacit_client.app import make_client_app
from tacit_client.deployment.correspondence import Correspondence
from tacit_client.deployment.journal import Action, Handled, Journal, Outcome
from tacit_client.deployment.open_site import OpenSite
from tacit_common.envelope import RequestEnvelope, require_request, seal_answer
from tacit_common.errors import (
    IdentityError,
    RefusalCode,
    SiteRefusal,
    TacitError,
    WireError,
    refusal_code,
)
from tacit_common.flower.apps import make_context
from tacit_common.flower.fleet import Delivery
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import (
    AccountRequest,
    DescribeRequest,
    ProbeRequest,
    Refusal,
    Request,
    TrainRequest,
)
from tacit_common.study import Study
from tacit_common.wire import (
    content_sha256,
    content_size,
    decode_envelope,
    decode_reply,
    decode_request,
    encode,
    with_envelope,
)

_log = logging.getLogger(__name__)


class LedgerWitness(Protocol):
    """An independent party that remembers where the site's ledger stood."""

    def newest(self) -> SignedHead | None:
        """The newest head that it has seen; None if none."""
        ...

    def countersign(self, head: SignedHead) -> object:
        """Let it remember `head`. Raises LedgerError if it objects or cannot be asked."""
        ...


class SignedApp:
    """Answers a coordinator's signed requests for one site."""

    def __init__(
        self,
        current: Callable[[], OpenSite],
        *,
        coordinator: str,
        correspondence: Correspondence,
        journal: Journal,
        witness: LedgerWitness | None,
    ) -> None:
        self._current = current
        self._identity = current().identity
        self._coordinator = coordinator
        self._correspondence = correspondence
        self._journal = journal
        self._witness = witness

    def answer(self, delivery: Delivery) -> Message:
        """The answer to a message, ready to be sent and noted in the journal."""
        trusted: tuple[RequestEnvelope, RecordDict] | None = None
        try:
            message = _understood(delivery)
            request = decode_envelope(message.content, RequestEnvelope)
            self._require_trusted(request, message.content)
            trusted = request, message.content
            self._journal.append(_received(message.content, delivery.size))
            reply = self._witnessed(message)
        except TacitError as error:
            _log.warning("refused: %s", error)
            reply = encode(Refusal(code=refusal_code(error)))
        except Exception as error:
            _log.exception("a request failed")
            reply = encode(Refusal(code=refusal_code(error)))
        try:
            asked = None if trusted is None else trusted[1]
            self._journal.append(_handled(asked, reply, delivery.size))
        except Exception:
            # What cannot be noted does not leave; what was spent stays spent.
            _log.exception("the journal cannot be written")
            reply = encode(Refusal(code=RefusalCode.INTERNAL))
        if trusted is not None:  # a stranger has no word of this site's signed
            seal = seal_answer(self._identity, content_sha256(reply), trusted[0])
            reply = with_envelope(reply, seal)
        return Message(reply, reply_to=delivery.envelope)

    def _require_trusted(self, envelope: RequestEnvelope, content: RecordDict) -> None:
        """Refuse what is not the coordinator's own word to this site, heard for the first time."""
        try:
            require_request(
                envelope,
                content_sha256(content),
                coordinator=self._coordinator,
                site=self._identity.public_key,
            )
        except IdentityError as error:
            raise SiteRefusal(RefusalCode.SIGNATURE, why=error.why, fix=error.fix) from error
        self._correspondence.take(envelope.session, envelope.sequence)

    def _witnessed(self, message: Message) -> RecordDict:
        """The ClientApp's answer, between two questions to the witness."""
        at_work = self._current()
        if self._witness is not None:
            newest = _asked(self._witness.newest)
            if newest is not None:
                at_work.ledger.require_not_behind(newest)
        request = decode_request(message.content)
        # An account is of the ledger alone: no record is opened for it, at whatever hour.
        ledger_alone = isinstance(request, AccountRequest)
        site = at_work.without_records if ledger_alone else at_work.site_for(_study_of(request))
        metadata = message.metadata
        context = make_context(run_id=metadata.run_id, node_id=metadata.dst_node_id, node_config={})
        reply = make_client_app(lambda _: site)(message, context).content
        if self._witness is not None:
            witness, head = self._witness, at_work.head
            _asked(lambda: witness.countersign(head))
        return reply


def _understood(delivery: Delivery) -> Message:
    if delivery.message is None:
        raise WireError(
            "a message cannot be understood",
            why="its parts cannot be fetched or put together within its bounds",
            fix="look whether the coordinator runs the same version, and sends what it says",
        )
    return delivery.message


AnsweredT = TypeVar("AnsweredT")


def _asked(question: Callable[[], AnsweredT]) -> AnsweredT:
    """What the witness says.

    Raises:
        SiteRefusal: it objects, or cannot be asked. Without it a site does not work.
    """
    try:
        return question()
    except TacitError as error:
        raise SiteRefusal(RefusalCode.WITNESS, why=error.why, fix=error.fix) from error


def _study_of(request: Request) -> Study:
    match request:
        case DescribeRequest(study=study) | AccountRequest(study=study):
            return study
        case TrainRequest(plan=plan) | ProbeRequest(plan=plan):
            return plan.study


def _handled(content: RecordDict | None, reply: RecordDict, size: int) -> Handled:
    """What the journal says: of a request that the coordinator did not sign, only its size."""
    answer = decode_reply(reply)
    code = answer.code if isinstance(answer, Refusal) else None
    outcome: Outcome = "answered" if code is None else "refused"
    return replace(
        _received(content, size), outcome=outcome, code=code, bytes_out=content_size(reply)
    )


def _received(content: RecordDict | None, size: int) -> Handled:
    try:
        request = None if content is None else decode_request(content)
    except WireError:
        request = None
    study = None if request is None else _study_of(request)
    action, run, label = _asked_for(request)
    return Handled(
        action=action,
        run=run,
        study=None if study is None else study.name,
        study_digest=None if study is None else study.digest(),
        label=label,
        outcome="received",
        code=None,
        bytes_in=size,
        bytes_out=0,
    )


def _asked_for(request: Request | None) -> tuple[Action, str | None, str | None]:
    match request:
        case None:
            return "unknown", None, None
        case DescribeRequest():
            return "describe", None, None
        case AccountRequest(run=run):
            return "account", run, None
        case TrainRequest(plan=plan):
            return "train", plan.run, plan.label()
        case ProbeRequest(plan=plan):
            return "probe", plan.run, plan.label()
