"""What leaves a site through Flower: the fields of the allow-list, and codes for failures."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto

from tacit_client.app import make_client_app
from tacit_client.data import LabeledArraySource
from tacit_client.policy import SitePolicy
from tacit_client.site import Site
from tacit_common.errors import (
    CheckpointError,
    DataError,
    IdentityError,
    LedgerError,
    LinkError,
    NonFiniteUpdateError,
    PluginError,
    PrivacyConfigError,
    QuorumError,
    RefusalCode,
    SiteRefusal,
    StudyError,
    TacitError,
    UnreadableRecordError,
    UsageError,
    WireError,
)
from tacit_common.ledger_chain import Atom, SignedHead
from tacit_common.messages import (
    DescribeRequest,
    ProbeReply,
    ProbeRequest,
    Refusal,
    Reply,
    Request,
    SiteDescription,
    TrainReply,
    TrainRequest,
    message_type,
)
from tacit_common.privacy.noise import InsecureSeededRandom
from tacit_common.study import Study
from tacit_common.wire import decode_head, decode_reply, encode

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Ask = Callable[..., TrainRequest]
AskProbe = Callable[..., ProbeRequest]

SECRET = "patient-4711"  # noqa: S105  # stands for anything that a record says

pytestmark = pytest.mark.usefixtures("flower_task")


def context() -> Context:
    return Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})


def asked(request: Request) -> Message:
    return Message(encode(request), dst_node_id=2, message_type=message_type(request))


def reply_to(message: Message, site_of: Callable[[Context], Site]) -> Message:
    return make_client_app(site_of)(message, context())


def reply_of(site: Site, message: Message) -> Message:
    return reply_to(message, lambda opened: site)


def decoded(reply: Message) -> Reply:
    return decode_reply(reply.content)


def serialised(reply: Message) -> bytes:
    """Everything of a reply that goes over the wire, metadata too."""
    return bytes(message_to_proto(reply).SerializeToString())


# --- failures become codes ---------------------------------------------------------------


def said(kind: Callable[..., TacitError]) -> TacitError:
    return kind(f"{SECRET} what", why=f"{SECRET} why", fix=f"{SECRET} fix")


EXPECTED: dict[Exception, RefusalCode] = {
    said(PluginError): RefusalCode.PLUGIN,
    said(PrivacyConfigError): RefusalCode.OBJECTIVE,
    said(LedgerError): RefusalCode.LEDGER,
    said(IdentityError): RefusalCode.LEDGER,
    said(DataError): RefusalCode.DATA,
    said(UnreadableRecordError): RefusalCode.DATA,
    said(WireError): RefusalCode.MESSAGE,
    said(LinkError): RefusalCode.INTERNAL,
    said(UsageError): RefusalCode.INTERNAL,
    said(StudyError): RefusalCode.INTERNAL,
    said(NonFiniteUpdateError): RefusalCode.DIVERGED,
    said(CheckpointError): RefusalCode.INTERNAL,
    said(QuorumError): RefusalCode.INTERNAL,
    ValueError(SECRET): RefusalCode.INTERNAL,
    KeyError(SECRET): RefusalCode.INTERNAL,
    RuntimeError(SECRET): RefusalCode.INTERNAL,
    OSError(5, SECRET, SECRET): RefusalCode.INTERNAL,
    UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET): RefusalCode.INTERNAL,
    MemoryError(SECRET): RefusalCode.INTERNAL,
    RecursionError(SECRET): RefusalCode.INTERNAL,
    AssertionError(SECRET): RefusalCode.INTERNAL,
    ExceptionGroup(SECRET, [ValueError(SECRET)]): RefusalCode.INTERNAL,
    StopIteration(SECRET): RefusalCode.INTERNAL,
    **{SiteRefusal(code, why=SECRET, fix=SECRET): code for code in RefusalCode},
}


class Failing:
    """A site whose work fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def answer(self, request: Request, *, witnessed: object) -> TrainReply:
        raise self._error

    @property
    def ledger(self) -> object:
        raise self._error


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The site's own log holds what happened; here it would only fill the screen."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def name_of(error: object) -> str:
    code = f"-{error.code.value}" if isinstance(error, SiteRefusal) else ""
    return f"{type(error).__name__}{code}"


@pytest.mark.parametrize(("error", "code"), EXPECTED.items(), ids=name_of)
@pytest.mark.parametrize("place", ["in the work", "on opening the site"])
def test_every_failure_leaves_as_a_fixed_code_and_nothing_else(
    make_study: MakeStudy, error: Exception, code: RefusalCode, place: str
) -> None:
    def site_of(opened: Context) -> Site:
        if place == "on opening the site":
            raise error
        return Failing(error)  # type: ignore[return-value]

    reply = reply_to(asked(DescribeRequest(make_study())), site_of)
    assert not reply.has_error()
    assert decoded(reply) == Refusal(code=code)
    assert SECRET.encode() not in serialised(reply)
    assert dict(reply.content["tacit"]) == {
        "kind": "refusal",
        "body": Refusal(code=code).model_dump_json(),
    }


def test_every_error_of_ours_was_tried() -> None:
    def below(kind: type[TacitError]) -> set[type[TacitError]]:
        return {kind}.union(*(below(child) for child in kind.__subclasses__()))

    assert below(TacitError) - {type(error) for error in EXPECTED} == {TacitError}


def test_what_happened_stays_in_the_sites_own_log(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    logging.disable(logging.NOTSET)

    def broken(opened: Context) -> Site:
        raise ValueError(SECRET)

    with caplog.at_level(logging.WARNING, logger="tacit_client.app"):
        reply_to(asked(DescribeRequest(make_study())), broken)
    assert SECRET in caplog.text


# --- messages that are none ----------------------------------------------------------------


MALFORMED: dict[str, RecordDict] = {
    "empty": RecordDict(),
    "of another record": RecordDict({"other": ConfigRecord({"kind": "describe", "body": "{}"})}),
    "metrics": RecordDict({"tacit": MetricRecord({"kind": 1})}),
    "no body": RecordDict({"tacit": ConfigRecord({"kind": "describe"})}),
    "one more field": RecordDict(
        {"tacit": ConfigRecord({"kind": "describe", "body": "{}", "code": "import os"})}
    ),
    "kind is no text": RecordDict({"tacit": ConfigRecord({"kind": 7, "body": "{}"})}),
    "body is no JSON": RecordDict({"tacit": ConfigRecord({"kind": "train", "body": "{"})}),
    "unknown kind": RecordDict({"tacit": ConfigRecord({"kind": "exec", "body": "{}"})}),
    "a reply": encode(SiteDescription(site="x", declared_units=1, tacit_version="0")),
    "another protocol": RecordDict(
        {"tacit": ConfigRecord({"kind": "describe", "body": '{"protocol":2}'})}
    ),
    "train without a plan": RecordDict(
        {
            "tacit": ConfigRecord({"kind": "train", "body": '{"protocol":1}'}),
            "arrays": ArrayRecord({"parameters": Array("<f4", (3,), "tacit.raw", bytes(12))}),
        }
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("kind", ["train", "query.describe", "query.probe"])
def test_a_malformed_message_is_answered_with_the_code_message(
    make_site: MakeSite, name: str, kind: str
) -> None:
    site = make_site()
    message = Message(MALFORMED[name], dst_node_id=2, message_type=kind)
    reply = reply_of(site, message)
    assert decoded(reply) == Refusal(code=RefusalCode.MESSAGE)
    assert [entry.kind for entry in site.ledger.entries()] == ["GENESIS", "ATOM"]


def test_a_shape_whose_size_overflows_is_a_malformed_message(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    request = encode(probe_request(make_study(with_probe)))
    arrays = request.array_records["arrays"]
    arrays["basis_components"] = Array("<f8", (2**32, 2**32), "tacit.raw", b"")
    message = Message(request, dst_node_id=2, message_type="query.probe")
    reply = reply_of(make_site(), message)
    assert decoded(reply) == Refusal(code=RefusalCode.MESSAGE)


# --- the allow-list ------------------------------------------------------------------------


def shape_of(reply: Message) -> dict[str, object]:
    """Names, types and sizes of everything in a reply, without the values."""
    assert set(reply.content) <= {"tacit", "arrays", "ledger"}
    assert set(reply.content["ledger"]) == {"head"}
    config = dict(reply.content["tacit"])
    assert set(config) == {"kind", "body"}
    arrays = reply.content.array_records.get("arrays", ArrayRecord())
    head = decode_head(reply.content)
    assert head is not None
    assert head.is_genuine()
    return {
        "kind": config["kind"],
        "body": config["body"],
        **{name: (a.dtype, tuple(a.shape), a.stype) for name, a in arrays.items()},
    }


def said_in(reply: Message) -> list[object]:
    """A reply without the head of the ledger, which differs by key and time."""
    return [reply.content.get(name) for name in ("tacit", "arrays")]


def test_a_reply_shows_where_the_ledger_stands_after_it_was_paid(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    site = make_site()
    before = site.ledger.head
    head = decode_head(reply_of(site, asked(train_request(make_study()))).content)
    assert head == site.ledger.head
    assert head is not None
    assert head.seq == before.seq + 2  # RESERVE, COMMIT


def test_a_head_says_nothing_but_its_fields() -> None:
    """The hash covers rows that hold a keyed digest of the data, and no count."""
    assert SignedHead.model_fields.keys() == {"site", "public_key", "seq", "hash", "signature"}
    assert Atom.model_fields.keys() == {"atom", "lineage", "parents", "tags_sha256"}


def test_replies_hold_the_fields_of_the_allow_list_and_no_others(
    make_site: MakeSite,
    make_study: MakeStudy,
    with_probe: str,
    train_request: Ask,
    probe_request: AskProbe,
) -> None:
    """PRIVACY.md 2: an update, statistics, declared constants. Whoever adds one, adds it here."""
    study, site = make_study(with_probe), make_site()
    request = train_request(study)

    def ask(request: Request) -> dict[str, object]:
        return shape_of(reply_of(site, asked(request)))

    size = len(request.parameters)
    assert ask(request) == {
        "kind": "update",
        "body": '{"protocol":1,"train_loss":null}',
        "update": ("<f4", (size,), "tacit.raw"),
    }
    features, classes = 5, 10  # four directions and the constant
    statistics = features * (features + 1) // 2 + features * classes + classes
    assert ask(probe_request(study)) == {
        "kind": "statistics",
        "body": '{"protocol":1}',
        "statistics": ("<f8", (statistics,), "tacit.raw"),
    }
    described = ask(DescribeRequest(study))
    assert described["kind"] == "description"
    assert described.keys() == {"kind", "body"}
    assert SiteDescription.model_fields.keys() == {
        "protocol",
        "site",
        "declared_units",
        "tacit_version",
    }


def test_a_reply_carries_no_metadata_of_the_sites_own(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    request = asked(train_request(make_study()))
    sent = reply_of(make_site(), request).metadata
    # Flower adds the time of the answer (created_at, and what is left of the ttl): nothing else.
    assert {name: value for name, value in vars(sent).items() if value} == {
        "_run_id": 1,
        "_src_node_id": 2,
        "_dst_node_id": 1,
        "_dst_task_id": 1,
        "_created_at": sent.created_at,
        "_ttl": sent.ttl,
        "_message_type": "train",
    }


# --- two data sets that differ in one record -------------------------------------------------


def site_with(make_site: MakeSite, folder: str, images: torch.Tensor, seed: int) -> Site:
    """A new site-0 over these images, which draws the noise and the sample of this seed."""
    source = LabeledArraySource(images, np.arange(len(images)) % 10)
    return make_site(
        folder=folder, source=source, random=InsecureSeededRandom(seed, insecure_rng=True)
    )


@pytest.mark.parametrize("change", ["replaced", "zeroed", "one more record"])
def test_a_record_that_was_not_sampled_changes_no_byte_of_a_reply(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, change: str
) -> None:
    """With the noise fixed, D and D′ differ by the sampled records' gradients alone."""
    study = make_study("privacy.sampling_rate=0.25", "federation.local_steps=1")
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = images.clone()
    if change == "one more record":
        other = torch.cat([images, torch.ones(1, 1, 8, 8)])
    else:
        other[-1] = 0.0 if change == "zeroed" else 1.0
    equal, unequal = 0, 0
    for seed in range(8):
        joins = InsecureSeededRandom(seed, insecure_rng=True).bernoulli(len(other), 0.25)[-1]
        request = asked(train_request(study, run=f"seed-{seed}"))
        replies: list[list[object]] = []
        for data in (images, other):
            site = site_with(make_site, f"{seed}-{len(replies)}", data, seed)
            replies.append(said_in(reply_of(site, request)))
        same = replies[0] == replies[1]
        assert same == (not joins)
        equal, unequal = equal + same, unequal + (not same)
    assert equal > 0
    assert unequal > 0


@pytest.mark.parametrize("brightness", [1.0, 0.0])
def test_a_sampled_record_moves_the_sum_by_no_more_than_its_clip_norm(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask, brightness: float
) -> None:
    study = make_study("privacy.sampling_rate=1.0", "federation.local_steps=1")
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = torch.cat([images, torch.full((1, 1, 8, 8), brightness)])
    updates = []
    for folder, data in (("a", images), ("b", other)):
        site = site_with(make_site, folder, data, seed=1)
        reply = decoded(reply_of(site, asked(train_request(study))))
        assert isinstance(reply, TrainReply)
        updates.append(reply.update.astype(np.float64))
    client_lr, batch, norm = 0.1, 30 * 1.0, 0.5
    moved = np.linalg.norm(updates[0] - updates[1]) * batch / client_lr
    assert 0 < moved <= norm * (1 + 1 / 64) * (1 + 1e-3)  # rounding to the lattice is in it


def test_probes_move_by_no_more_than_their_sensitivity(
    make_site: MakeSite, make_study: MakeStudy, with_probe: str, probe_request: AskProbe
) -> None:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    request = asked(probe_request(make_study(with_probe)))
    sums = []
    for folder, data in (("a", images), ("b", images[:-1])):
        site = site_with(make_site, folder, data, seed=1)
        reply = decoded(reply_of(site, request))
        assert isinstance(reply, ProbeReply)
        sums.append(reply.statistics)
    assert 0 < np.linalg.norm(sums[0] - sums[1]) <= np.sqrt(3) * (1 + 1 / 64)


def test_a_refusal_over_budget_is_the_same_whatever_the_data(
    make_site: MakeSite, make_study: MakeStudy, train_request: Ask
) -> None:
    policy = SitePolicy.rehearsal(
        unit="record", epsilon_cap=0.1, delta=1e-5, allow_non_private=False
    )
    request = asked(train_request(make_study()))
    replies = [
        reply_of(make_site(folder=f"{n}", records=n, policy=policy), request) for n in (1, 40)
    ]
    assert said_in(replies[0]) == said_in(replies[1])
    assert decoded(replies[0]) == Refusal(code=RefusalCode.BUDGET)
