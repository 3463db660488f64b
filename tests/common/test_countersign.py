"""A witness is believed for what its key signed, in answer to what was asked, and no more."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tacit_common.certificates import Issued, make_ca, make_client_certificate
from tacit_common.certificates import make_server_certificate as make_server
from tacit_common.countersign import (
    GRPC_SERVICE,
    Countersignature,
    CountersignRequest,
    NewestRequest,
    Objection,
    Statement,
    WitnessCard,
    WitnessClient,
    decoded,
    encoded,
    read_witness_card,
)
from tacit_common.errors import LedgerError, UsageError, WireError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import SignedHead

HeadsOf = Callable[..., list[SignedHead]]
Answer = Callable[[bytes], bytes]
Ask = Callable[[Answer], WitnessClient]

CA = make_ca("witness")
SITE = make_client_certificate("a")
WITNESS, THIEF = Identity.create(), Identity.create()
WAIT_S = 60.0


def client(port: int, *, ca: Issued = CA, timeout_s: float = WAIT_S) -> WitnessClient:
    return WitnessClient(
        f"127.0.0.1:{port}",
        ca.certificate,
        SITE.certificate,
        SITE.key,
        WITNESS.public_key,
        timeout_s,
    )


@pytest.fixture
def ask() -> Iterator[Ask]:
    """`ask(answer)`: a client of a witness that gives whatever `answer` makes of a request."""
    servers: list[grpc.Server] = []

    def make(answer: Answer) -> WitnessClient:
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda content, _: answer(content))
        methods = {"Newest": handler, "Countersign": handler}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(GRPC_SERVICE, methods),)
        )
        issued = make_server(CA.certificate, CA.key, ["127.0.0.1"], days=1)
        credentials = grpc.ssl_server_credentials([(issued.key, issued.certificate)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        servers.append(server)
        return client(port)

    yield make
    for server in servers:
        server.stop(None).wait()


def nonce_of(content: bytes) -> str:
    return decoded(NewestRequest, content).nonce


def test_an_honest_witness_is_believed(ask: Ask, heads_of: HeadsOf) -> None:
    head = heads_of("a", 2)[1]
    for known in (None, head):
        says = ask(lambda c, known=known: encoded(Statement.signed(WITNESS, nonce_of(c), known)))
        assert says.newest() == known
    signs = ask(lambda c: encoded(Countersignature.signed(WITNESS, _head(c))))
    assert signs.countersign(head).is_of(head, witness=WITNESS.public_key)


def _head(content: bytes) -> SignedHead:
    return decoded(CountersignRequest, content).head


@pytest.mark.parametrize(
    "attack",
    ["another key", "a stolen name", "an older answer", "an older head", "nothing ever seen"],
)
def test_a_forged_statement_is_not_believed(ask: Ask, heads_of: HeadsOf, attack: str) -> None:
    older, newest = heads_of("a", 2)

    def answer(content: bytes) -> bytes:
        nonce = nonce_of(content)
        honest = Statement.signed(WITNESS, nonce, newest)
        stolen = Statement.signed(THIEF, nonce, older)
        forged = {
            "another key": stolen,
            "a stolen name": stolen.model_copy(update={"witness": WITNESS.public_key}),
            "an older answer": Statement.signed(WITNESS, "0" * 64, older),
            "an older head": honest.model_copy(update={"head": older}),
            "nothing ever seen": honest.model_copy(update={"head": None}),
        }
        return encoded(forged[attack])

    with pytest.raises(LedgerError, match="statement is not signed by the key on its card"):
        ask(answer).newest()


@pytest.mark.parametrize("attack", ["another key", "a stolen name", "another head", "statement"])
def test_a_forged_countersignature_is_not_believed(
    ask: Ask, heads_of: HeadsOf, attack: str
) -> None:
    older, head = heads_of("a", 2)
    stolen = Countersignature.signed(THIEF, head)
    statement = Statement.signed(WITNESS, "0" * 64, head)
    honest = Countersignature.signed(WITNESS, head)
    forged = {
        "another key": stolen,
        "a stolen name": stolen.model_copy(update={"witness": WITNESS.public_key}),
        "another head": Countersignature.signed(WITNESS, older),
        "statement": honest.model_copy(update={"signature": statement.signature}),
    }[attack]
    with pytest.raises(LedgerError, match="countersignature is not that of the key on its card"):
        ask(lambda _: encoded(forged)).countersign(head)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"null", b'{"format":2}'])
def test_an_answer_that_is_none_is_not_believed(ask: Ask, content: bytes) -> None:
    with pytest.raises(LedgerError, match="is no Statement of this version"):
        ask(lambda _: content).newest()


def test_an_endless_answer_is_cut_off(ask: Ask) -> None:
    with pytest.raises(LedgerError, match="the witness failed"):
        ask(lambda _: b"x" * 2**20).newest()


def test_a_witness_that_is_not_there_is_a_ledger_error() -> None:
    with pytest.raises(LedgerError, match="cannot be asked"):
        client(9, timeout_s=0.5).newest()


def test_a_witness_under_another_authority_is_never_asked(ask: Ask) -> None:
    asked: list[bytes] = []
    honest = ask(lambda c: asked.append(c) or encoded(Statement.signed(WITNESS, nonce_of(c), None)))
    port = int(honest._address.rpartition(":")[2])
    with pytest.raises(LedgerError, match="cannot be asked"):
        client(port, ca=make_ca("witness"), timeout_s=1.0).newest()
    assert asked == []
    assert honest.newest() is None


def test_a_proxy_from_the_environment_is_not_used(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert ask(lambda c: encoded(Statement.signed(WITNESS, nonce_of(c), None))).newest() is None


@pytest.mark.parametrize("objection", list(Objection))
def test_every_objection_says_why_and_what_to_do(objection: Objection) -> None:
    refusal = client(9)._refusal(grpc.StatusCode.PERMISSION_DENIED, objection.value)
    others = {
        client(9)._refusal(grpc.StatusCode.PERMISSION_DENIED, other.value).why
        for other in Objection
        if other is not objection
    }
    assert refusal.why not in others
    assert refusal.fix


def test_what_a_witness_writes_into_an_error_is_not_repeated() -> None:
    refusal = client(9)._refusal(grpc.StatusCode.PERMISSION_DENIED, "send me your data")
    assert "send me your data" not in str(refusal)


@pytest.mark.parametrize(
    "change",
    [{"seq": 2**53 + 1}, {"seq": -1}, {"hash": "x"}, {"more": 1}, {"public_key": None}],
)
def test_a_request_outside_the_schema_is_not_understood(
    heads_of: HeadsOf, change: dict[str, object]
) -> None:
    good = heads_of("a", 1)[0]
    content = CountersignRequest.model_construct(head=good.model_dump() | change)
    with pytest.raises(WireError, match="is no CountersignRequest of this version"):
        decoded(CountersignRequest, content.model_dump_json(warnings=False).encode())
    assert decoded(CountersignRequest, encoded(CountersignRequest(head=good))).head == good


def test_a_card_is_read_back_and_its_fingerprint_covers_all_of_it(tmp_path: Path) -> None:
    card = WitnessCard(
        witness="w",
        address="w.example.org:9446",
        public_key=WITNESS.public_key,
        ca_certificate=CA.certificate.decode(),
    )
    card.write(tmp_path / "witness.json")
    assert read_witness_card(tmp_path / "witness.json") == card
    changes: list[dict[str, str]] = [
        {"address": "x.example.org:9446"},
        {"public_key": THIEF.public_key},
        {"ca_certificate": SITE.certificate.decode()},
    ]
    fingerprints = {card.model_copy(update=change).fingerprint for change in changes}
    assert len(fingerprints | {card.fingerprint}) == 4


def test_what_is_no_card_is_a_request_that_has_to_change(tmp_path: Path) -> None:
    (tmp_path / "witness.json").write_text("{}")
    with pytest.raises(UsageError, match="is not a witness's card"):
        read_witness_card(tmp_path / "witness.json")
