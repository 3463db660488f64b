"""A site between machines: only its coordinator's own new words count, and its answers are signed.

Each attack ends in a code, and the site goes on: after it the honest question is answered.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from tacit_client.deployment.correspondence import Correspondence
from tacit_client.deployment.journal import (
    Handled,
    HandledLine,
    Journal,
    JournalLine,
    read_journal,
)
from tacit_client.deployment.journal_view import account, sentence
from tacit_client.deployment.open_site import OpenSite, open_site
from tacit_client.deployment.signed_app import LedgerWitness, SignedApp
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Prepared
from tacit_common.envelope import AnswerEnvelope, RequestEnvelope, RequestSeal, require_answer
from tacit_common.errors import IdentityError, LedgerError, RefusalCode, UsageError
from tacit_common.flower.fleet import Delivery
from tacit_common.identity import Identity
from tacit_common.ledger_chain import SignedHead
from tacit_common.messages import (
    DescribeRequest,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    TrainReply,
    TrainRequest,
    message_type,
)
from tacit_common.study import Study
from tacit_common.wire import (
    content_sha256,
    decode_envelope,
    decode_head,
    decode_reply,
    encode,
    with_envelope,
)

pytestmark = pytest.mark.usefixtures("flower_task")

MakeStudy = Callable[..., Study]
Ask = Callable[..., TrainRequest]

COORDINATOR, STRANGER = Identity.create(), Identity.create()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The site's own log holds what happened; here it would only fill the screen."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Witness:
    """A witness in this process."""

    def __init__(self, *, known: SignedHead | None = None, fails: str = "") -> None:
        self.known = known
        self.fails = fails
        self.signed: list[SignedHead] = []

    def newest(self) -> SignedHead | None:
        if self.fails == "newest":
            raise LedgerError("no witness", why="it is away", fix="wait")
        return self.known

    def countersign(self, head: SignedHead) -> object:
        if self.fails == "countersign":
            raise LedgerError("no witness", why="it objects", fix="wait")
        self.signed.append(head)
        self.known = head
        return None


class Site:
    """A site at work, and a coordinator that speaks to it."""

    def __init__(self, folder: SiteFolder, opened: OpenSite, app: SignedApp) -> None:
        self.folder = folder
        self.opened = opened
        self._app = app
        self.seal = RequestSeal(COORDINATOR)

    @property
    def key(self) -> str:
        return self.opened.identity.public_key

    def sealed(
        self, request: Request, *, to: str = "", by: RequestSeal | None = None
    ) -> RecordDict:
        content = encode(request)
        seal = by or self.seal
        return with_envelope(content, seal.seal(content_sha256(content), recipient=to or self.key))

    def hears(self, records: RecordDict, kind: str = "query.describe") -> RecordDict:
        message = Message(records, dst_node_id=2, message_type=kind)
        return self._app.answer(Delivery(message, message, 100)).content

    def hears_nothing_understandable(self) -> RecordDict:
        message = Message(RecordDict(), dst_node_id=2, message_type="train")
        return self._app.answer(Delivery(message, None, 0)).content

    def asked(self, request: Request) -> Reply:
        """The answer, which the coordinator believes."""
        return believed(self.sealed(request), self.hears, message_type(request))

    def journal(self) -> list[HandledLine]:
        lines = read_journal(self.folder.journal, self.key)
        handled = [line.entry for line in lines if isinstance(line.entry, HandledLine)]
        return [line for line in handled if line.outcome != "received"]

    def spent(self) -> list[str]:
        return [entry.kind for entry in self.opened.ledger.entries()][2:]


def believed(
    sent: RecordDict, hears: Callable[..., RecordDict], kind: str = "query.describe"
) -> Reply:
    answer = hears(sent, kind)
    envelope = decode_envelope(answer, AnswerEnvelope)
    request = decode_envelope(sent, RequestEnvelope)
    require_answer(envelope, content_sha256(answer), request=request)
    return decode_reply(answer)


def unsigned(answer: RecordDict) -> Reply:
    """A code that nobody signed."""
    assert set(answer) == {"tacit"}
    return decode_reply(answer)


@contextmanager
def working(
    folder: SiteFolder, *, witness: LedgerWitness | None = None, journal: Journal | None = None
) -> Iterator[Site]:
    """One life of a site."""
    with (
        open_site(folder, folder.read_policy()) as opened,
        closing(Correspondence(folder.sessions)) as heard,
    ):
        app = SignedApp(
            lambda: opened,
            coordinator=COORDINATOR.public_key,
            correspondence=heard,
            journal=journal or Journal(folder.journal, opened.identity),
            witness=witness,
        )
        yield Site(folder, opened, app)


@pytest.fixture
def folder(new_site: Callable[..., Prepared]) -> SiteFolder:
    """A new site's folder."""
    return new_site().folder


@pytest.fixture
def site(folder: SiteFolder) -> Iterator[Site]:
    """A site at work without a witness."""
    with working(folder) as at_work:
        yield at_work


@pytest.fixture
def lives(folder: SiteFolder) -> Iterator[Callable[..., Site]]:
    """`lives(witness=…)`: a site at work with what differs."""
    with ExitStack() as stack:
        yield lambda **different: stack.enter_context(working(folder, **different))


# --- honest questions ----------------------------------------------------------------------


def test_a_site_answers_its_coordinator_and_signs_what_it_says(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study()
    described = site.asked(DescribeRequest(study))
    assert isinstance(described, SiteDescription)
    assert described.site == "clinic"
    assert isinstance(site.asked(train_request(study)), TrainReply)
    assert site.spent() == ["RESERVE", "COMMIT"]


def test_the_journal_names_what_was_asked_and_how_much_left(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    study = make_study()
    request = train_request(study)
    site.asked(request)
    (line,) = site.journal()
    assert (line.action, line.run, line.label) == ("train", "run", "round 1")
    assert (line.study, line.study_digest) == ("tiny", study.digest())
    assert (line.outcome, line.code, line.bytes_in) == ("answered", None, 100)
    assert 4 * len(request.parameters) < line.bytes_out < 4 * len(request.parameters) + 2000


def test_an_answer_shows_where_the_ledger_stands_and_the_site_s_key_signs_both(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    request = train_request(make_study())
    answer = site.hears(site.sealed(request), "train")
    head = decode_head(answer)
    assert head == site.opened.head
    assert head is not None
    assert head.public_key == decode_envelope(answer, AnswerEnvelope).sender == site.key


# --- requests that are not the coordinator's own new words -----------------------------------


def changed_array(records: RecordDict) -> RecordDict:
    arrays = dict(records.array_records["arrays"])
    first = arrays["parameters"]
    data = bytearray(first.data)
    data[0] ^= 1
    arrays["parameters"] = Array(first.dtype, tuple(first.shape), first.stype, bytes(data))
    return RecordDict({**records, "arrays": ArrayRecord(arrays)})


def changed_study(records: RecordDict) -> RecordDict:
    config = dict(records.config_records["tacit"])
    body = str(config["body"])
    assert '"l2_clip_norm":0.5' in body
    config["body"] = body.replace('"l2_clip_norm":0.5', '"l2_clip_norm":0.6')
    return RecordDict({**records, "tacit": ConfigRecord(config)})


def changed_envelope(records: RecordDict) -> RecordDict:
    envelope = decode_envelope(records, RequestEnvelope)
    later = envelope.model_copy(update={"sequence": envelope.sequence + 1})
    return with_envelope(records, later)


def one_record_more(records: RecordDict) -> RecordDict:
    return RecordDict({**records, "more": ConfigRecord({"x": "y"})})


CHANGES = {
    "a bit of the parameters": changed_array,
    "the study": changed_study,
    "the envelope": changed_envelope,
    "a record more": one_record_more,
    "a kind of record that none of ours is": lambda records: RecordDict(
        {**records, "more": MetricRecord({"x": 1.0})}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_request_that_was_changed_on_the_way_is_refused_and_nothing_is_spent(
    site: Site, make_study: MakeStudy, train_request: Ask, change: str
) -> None:
    request = train_request(make_study())
    reply = decode_reply(site.hears(CHANGES[change](site.sealed(request)), "train"))
    assert isinstance(reply, Refusal)
    assert reply.code in (RefusalCode.SIGNATURE, RefusalCode.MESSAGE)
    assert site.spent() == []
    assert isinstance(site.asked(request), TrainReply)


def test_a_request_of_another_key_is_refused(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    forged = site.sealed(train_request(make_study()), by=RequestSeal(STRANGER))
    assert decode_reply(site.hears(forged, "train")) == Refusal(code=RefusalCode.SIGNATURE)
    assert site.spent() == []


def test_a_request_that_was_made_for_another_site_is_refused(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    theirs = site.sealed(train_request(make_study()), to=STRANGER.public_key)
    assert decode_reply(site.hears(theirs, "train")) == Refusal(code=RefusalCode.SIGNATURE)
    assert site.spent() == []


def test_a_request_that_is_delivered_twice_is_answered_once(
    site: Site, make_study: MakeStudy, train_request: Ask
) -> None:
    sent = site.sealed(train_request(make_study()))
    assert isinstance(believed(sent, site.hears, "train"), TrainReply)
    spent = site.spent()
    assert unsigned(site.hears(sent, "train")) == Refusal(code=RefusalCode.REPLAY)
    assert site.spent() == spent


def test_requests_that_are_delivered_in_another_order_are_refused(
    site: Site, make_study: MakeStudy
) -> None:
    first, second = (site.sealed(DescribeRequest(make_study())) for _ in range(2))
    assert isinstance(believed(second, site.hears), SiteDescription)
    assert unsigned(site.hears(first)) == Refusal(code=RefusalCode.REPLAY)


def test_a_request_that_is_delivered_again_after_a_restart_is_refused(
    folder: SiteFolder, make_study: MakeStudy, train_request: Ask
) -> None:
    with working(folder) as before:
        sent = before.sealed(train_request(make_study()))
        assert isinstance(believed(sent, before.hears, "train"), TrainReply)
    with working(folder) as after:
        assert unsigned(after.hears(sent, "train")) == Refusal(code=RefusalCode.REPLAY)
        assert after.spent() == ["RESERVE", "COMMIT"]


def test_a_forged_request_uses_up_no_number(site: Site, make_study: MakeStudy) -> None:
    """Else a stranger could make a site deaf to its coordinator."""
    sent = site.sealed(DescribeRequest(make_study()))
    real = decode_envelope(sent, RequestEnvelope)
    forged = with_envelope(sent, real.model_copy(update={"sequence": 2**53}))
    assert decode_reply(site.hears(forged)) == Refusal(code=RefusalCode.SIGNATURE)
    assert isinstance(believed(sent, site.hears), SiteDescription)


def test_a_stranger_who_asks_has_no_word_of_the_site_signed(
    site: Site, make_study: MakeStudy
) -> None:
    """Else whoever sits between chose what the site's key signs, and over which request."""
    sent = site.sealed(DescribeRequest(make_study()))
    theirs = site.sealed(DescribeRequest(make_study()), by=RequestSeal(STRANGER))
    for forged in (one_record_more(sent), changed_envelope(sent), theirs):
        assert unsigned(site.hears(forged)) == Refusal(code=RefusalCode.SIGNATURE)


GARBAGE: dict[str, RecordDict] = {
    "nothing": RecordDict(),
    "an unsigned request": RecordDict(
        {"tacit": ConfigRecord({"kind": "train", "body": "{}"}), "arrays": ArrayRecord()}
    ),
    "an envelope of garbage": RecordDict({"envelope": ConfigRecord({"envelope": "garbage"})}),
    "an envelope of numbers": RecordDict({"envelope": ConfigRecord({"envelope": 7})}),
    "metrics": RecordDict({"tacit": MetricRecord({"x": 1.0})}),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_answered_with_a_code_that_nobody_signed_and_the_site_goes_on(
    site: Site, make_study: MakeStudy, name: str
) -> None:
    answer = site.hears(GARBAGE[name])
    assert set(answer) == {"tacit"}
    assert decode_reply(answer) == Refusal(code=RefusalCode.MESSAGE)
    assert isinstance(site.asked(DescribeRequest(make_study())), SiteDescription)


def test_a_message_that_cannot_be_put_together_is_answered_with_a_code(
    site: Site, make_study: MakeStudy
) -> None:
    answer = site.hears_nothing_understandable()
    assert decode_reply(answer) == Refusal(code=RefusalCode.MESSAGE)
    assert isinstance(site.asked(DescribeRequest(make_study())), SiteDescription)


def test_a_signed_message_that_is_no_request_is_answered_with_a_signed_code(site: Site) -> None:
    content = RecordDict({"tacit": ConfigRecord({"kind": "exec", "body": "import os"})})
    sent = with_envelope(content, site.seal.seal(content_sha256(content), recipient=site.key))
    assert believed(sent, site.hears) == Refusal(code=RefusalCode.MESSAGE)


@pytest.mark.parametrize(
    "metadata", [{"_ttl": -5.0}, {"_ttl": float("nan")}, {"_created_at": 1e18}]
)
def test_odd_times_in_a_message_do_not_end_the_site(
    site: Site, make_study: MakeStudy, metadata: dict[str, float]
) -> None:
    message = Message(
        site.sealed(DescribeRequest(make_study())), dst_node_id=2, message_type="query.describe"
    )
    message.metadata.__dict__.update(metadata)
    answer = site._app.answer(Delivery(message, message, 1)).content
    assert isinstance(decode_reply(answer), SiteDescription)


def test_of_what_the_coordinator_did_not_sign_the_journal_says_only_its_size(
    site: Site, make_study: MakeStudy
) -> None:
    site.hears(site.sealed(DescribeRequest(make_study()), by=RequestSeal(STRANGER)))
    site.hears(RecordDict())
    for line, code in zip(
        site.journal(), (RefusalCode.SIGNATURE, RefusalCode.MESSAGE), strict=True
    ):
        assert (line.action, line.outcome, line.code) == ("unknown", "refused", code)
        assert (line.run, line.study, line.study_digest, line.label) == (None, None, None, None)
        assert line.bytes_in == 100


# --- the journal -----------------------------------------------------------------------------


class FullDisk(Journal):
    """A journal on a disk that is full, or is so after `room` more lines."""

    def __init__(self, folder: SiteFolder, *, room: int = 0) -> None:
        super().__init__(folder.journal, folder.read_identity())
        self._room = room

    def append(self, handled: Handled) -> JournalLine:
        self._room -= 1
        if self._room < 0:
            raise LedgerError("the journal", why="No space left on device", fix="make space")
        return super().append(handled)


def test_a_journal_that_cannot_be_written_does_not_drain_the_budget(
    folder: SiteFolder, lives: Callable[..., Site], make_study: MakeStudy, train_request: Ask
) -> None:
    site = lives(journal=FullDisk(folder))
    for number in (1, 2):
        request = train_request(make_study(), round=number)
        assert site.asked(request) == Refusal(code=RefusalCode.INTERNAL)
    assert site.spent() == []


def test_a_request_that_kills_the_site_is_in_its_journal(
    folder: SiteFolder, make_study: MakeStudy, train_request: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with working(folder) as site:
        monkeypatch.setattr(site.opened, "site_for", killed)
        with pytest.raises(Killed):
            site.asked(train_request(make_study()))
    with working(folder) as site:
        site.asked(train_request(make_study(), round=2))
    shown = [sentence(line) for line in account(folder, last=None)]
    assert len(shown) == 2  # that a request was received is left out where its answer follows
    assert "round 1 of tiny" in shown[0]
    assert shown[0].endswith("in run run: received")
    assert "in run run: answered; " in shown[1]


def test_a_site_whose_journal_cannot_be_written_sends_no_content(
    folder: SiteFolder, lives: Callable[..., Site], make_study: MakeStudy, train_request: Ask
) -> None:
    site = lives(journal=FullDisk(folder, room=1))
    request = train_request(make_study())
    answer = site.hears(site.sealed(request), "train")
    assert decode_reply(answer) == Refusal(code=RefusalCode.INTERNAL)
    assert set(answer) == {"tacit", "envelope"}
    assert site.spent() == ["RESERVE", "COMMIT"]  # spent stays spent


def test_what_was_paid_for_and_could_not_be_noted_is_answered_later_at_no_cost(
    folder: SiteFolder, make_study: MakeStudy, train_request: Ask
) -> None:
    request = train_request(make_study())
    with working(folder, journal=FullDisk(folder, room=1)) as before:
        before.asked(request)
    with working(folder) as after:
        assert isinstance(after.asked(request), TrainReply)
        assert after.spent() == ["RESERVE", "COMMIT"]


# --- the witness -----------------------------------------------------------------------------


def test_the_witness_signs_where_the_ledger_stands_before_an_answer_leaves(
    lives: Callable[..., Site], make_study: MakeStudy, train_request: Ask
) -> None:
    witness = Witness()
    site = lives(witness=witness)
    answer = site.hears(site.sealed(train_request(make_study())), "train")
    assert witness.signed == [site.opened.head]
    assert decode_head(answer) == witness.signed[0]


def test_a_ledger_that_is_behind_its_witness_is_not_trained_with(
    lives: Callable[..., Site],
    folder: SiteFolder,
    make_study: MakeStudy,
    train_request: Ask,
) -> None:
    """The folder was restored from yesterday's backup."""
    witness = Witness()
    site = lives(witness=witness)
    head = site.opened.head
    witness.known = head.model_copy(update={"seq": head.seq + 1})
    before = site.spent()
    assert site.asked(train_request(make_study())) == Refusal(code=RefusalCode.LEDGER)
    assert site.spent() == before == []
    assert witness.signed == []


def test_without_an_answer_of_its_witness_a_site_does_nothing(
    lives: Callable[..., Site], make_study: MakeStudy, train_request: Ask
) -> None:
    site = lives(witness=Witness(fails="newest"))
    for request in (DescribeRequest(make_study()), train_request(make_study())):
        assert site.asked(request) == Refusal(code=RefusalCode.WITNESS)
    assert site.spent() == []


def test_what_the_witness_does_not_sign_does_not_leave(
    lives: Callable[..., Site], make_study: MakeStudy, train_request: Ask
) -> None:
    witness = Witness(fails="countersign")
    site = lives(witness=witness)
    request = train_request(make_study())
    answer = site.hears(site.sealed(request), "train")
    assert decode_reply(answer) == Refusal(code=RefusalCode.WITNESS)
    assert set(answer) == {"tacit", "envelope"}
    witness.fails = ""
    assert isinstance(site.asked(request), TrainReply)
    assert site.spent() == ["RESERVE", "COMMIT"]  # paid once


# --- what fails at the site ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("patient-4711", why="", fix=""), RefusalCode.INTERNAL),
        (IdentityError("patient-4711", why="", fix=""), RefusalCode.LEDGER),
        (LedgerError("patient-4711", why="", fix=""), RefusalCode.LEDGER),
        (OSError(5, "patient-4711"), RefusalCode.INTERNAL),
    ],
    ids=lambda case: type(case).__name__,
)
def test_a_site_that_cannot_work_says_a_code_and_nothing_of_what_happened(
    folder: SiteFolder, make_study: MakeStudy, error: Exception, code: RefusalCode
) -> None:
    with working(folder) as site:
        work = site._app._current

        def broken() -> OpenSite:
            raise error

        site._app._current = broken
        answer = site.hears(site.sealed(DescribeRequest(make_study())))
        assert decode_reply(answer) == Refusal(code=code)
        assert "4711" not in str(answer)
        site._app._current = work
        assert isinstance(site.asked(DescribeRequest(make_study())), SiteDescription)


def test_a_list_of_sessions_that_cannot_be_written_lets_no_request_through(
    folder: SiteFolder, make_study: MakeStudy, train_request: Ask
) -> None:
    with working(folder) as site:
        site._app._correspondence.close()
        answer = site.hears(site.sealed(train_request(make_study())), "train")
        assert unsigned(answer) == Refusal(code=RefusalCode.LEDGER)
        assert site.spent() == []
