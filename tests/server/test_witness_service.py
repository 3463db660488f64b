"""A witness serves the sites that it admitted, each with its own ledger, and nobody else."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from tacit_common.certificates import Issued, make_ca, make_client_certificate
from tacit_common.countersign import (
    GRPC_SERVICE,
    LONGEST_MESSAGE,
    CountersignRequest,
    NewestRequest,
    WitnessCard,
    WitnessClient,
    encoded,
    read_witness_card,
)
from tacit_common.enrolment import SiteCard
from tacit_common.errors import IdentityError, LedgerError, UsageError
from tacit_common.health import READY, HealthStatus, check_health
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Atom, Genesis, SignedHead, head_of, next_entry
from tacit_server.witness.account import account_of
from tacit_server.witness.admission import Admission
from tacit_server.witness.folder import WitnessConfig, WitnessFolder, init_witness
from tacit_server.witness.service import WitnessService

WAIT_S = 60.0
NEWEST = encoded(NewestRequest(nonce="0" * 64))


@dataclass
class Member:
    """A site as its witness meets it: a key, a certificate, and a ledger's heads."""

    name: str
    identity: Identity
    tls: Issued

    @classmethod
    def make(cls, name: str, *, identity: Identity | None = None, age_days: int = 0) -> "Member":
        made = datetime.now(UTC) - timedelta(days=age_days)
        tls = make_client_certificate(name, days=5, now=made)
        return cls(name, identity or Identity.create(), tls)

    def card(self, tls: Issued | None = None) -> SiteCard:
        return SiteCard.signed(
            self.identity,
            site=self.name,
            node_key="ecdsa-sha2-nistp384 AAAA",
            witness_certificate=(tls or self.tls).certificate.decode(),
        )

    def heads(self, rows: int, *, fork: str = "data") -> list[SignedHead]:
        genesis = Genesis(site=self.name, public_key=self.identity.public_key)
        signed = {"at": "2026-01-01", "site": self.name, "identity": self.identity}
        entry = next_entry(None, genesis, **signed)
        found = [head_of(entry, genesis)]
        for number in range(rows - 1):
            atom = Atom(atom=f"a{number}", lineage=fork, parents=(), tags_sha256="0" * 64)
            entry = next_entry(entry, atom, **signed)
            found.append(head_of(entry, genesis))
        return found


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Running:
    """A witness in a folder, which can be ended and begun again."""

    def __init__(self, path: Path) -> None:
        self.folder = WitnessFolder(path)
        self.port = free_port()
        self.health = f"127.0.0.1:{free_port()}"
        address = f"127.0.0.1:{self.port}"
        config = WitnessConfig(
            name="w", address=address, listen=address, health_address=self.health
        )
        self.card: WitnessCard = init_witness(path, config)
        self._stack = ExitStack()
        self.begin()

    def begin(self) -> None:
        self._stack.enter_context(WitnessService(self.folder))

    def end(self) -> None:
        self._stack.close()

    def admit(self, *members: Member) -> None:
        for member in members:
            Admission(self.folder.admitted).admit(member.card())

    def client(self, member: Member, *, timeout_s: float = WAIT_S) -> WitnessClient:
        return WitnessClient(
            f"127.0.0.1:{self.port}",
            self.card.ca_certificate.encode(),
            member.tls.certificate,
            member.tls.key,
            self.card.public_key,
            timeout_s,
        )

    def refusal(
        self, credentials: grpc.ChannelCredentials | None, method: str = "Newest", *, said: bytes
    ) -> tuple[grpc.StatusCode, str]:
        """How a single call ends that should not succeed."""
        address = f"127.0.0.1:{self.port}"
        channel = (
            grpc.insecure_channel(address)
            if credentials is None
            else grpc.secure_channel(address, credentials)
        )
        with channel, pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary(f"/{GRPC_SERVICE}/{method}")(said, timeout=WAIT_S)
        return raised.value.code(), raised.value.details()

    def credentials(self, member: Member | None) -> grpc.ChannelCredentials:
        ca = self.card.ca_certificate.encode()
        if member is None:
            return grpc.ssl_channel_credentials(ca)
        return grpc.ssl_channel_credentials(ca, member.tls.key, member.tls.certificate)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "witness")
    yield running
    running.end()


@pytest.fixture
def site(witness: Running) -> Member:
    """A site that is admitted."""
    member = Member.make("a")
    witness.admit(member)
    return member


def test_a_head_is_countersigned_and_is_the_newest_from_then_on(
    witness: Running, site: Member
) -> None:
    client = witness.client(site)
    assert client.newest() is None
    for head in site.heads(3):
        said = client.countersign(head)
        assert said.is_of(head, witness=witness.card.public_key)
        assert client.countersign(head) == said
        assert client.newest() == head


def test_a_site_that_is_admitted_meanwhile_needs_no_restart(witness: Running, site: Member) -> None:
    assert witness.client(site).newest() is None
    late = Member.make("b")
    code, _ = witness.refusal(witness.credentials(late), said=NEWEST)
    assert code is grpc.StatusCode.UNAVAILABLE
    witness.admit(late)
    head = late.heads(1)[0]
    assert witness.client(late).countersign(head).head == head
    assert witness.client(site).newest() is None


@pytest.mark.parametrize("admitted", [False, True])
def test_a_plain_text_client_is_refused(witness: Running, admitted: bool) -> None:
    if admitted:
        witness.admit(Member.make("a"))
    assert witness.refusal(None, said=NEWEST)[0] is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("attack", ["none", "unknown", "same name", "expired", "of the server"])
def test_a_client_without_an_admitted_certificate_that_counts_gets_no_connection(
    witness: Running, site: Member, attack: str
) -> None:
    expired = Member.make("old", age_days=9)
    path = witness.folder.admitted / "old.site.json"
    expired.card().write(path)  # `admit` would not take it; it got old in the folder
    authority = Issued(
        witness.folder.ca_certificate.read_bytes(), witness.folder.ca_key.read_bytes()
    )
    shown = {
        "none": None,
        "unknown": Member.make("b"),
        "same name": Member.make("a"),
        "expired": expired,
        "of the server": Member("w", Identity.create(), authority),
    }[attack]
    code, _ = witness.refusal(witness.credentials(shown), said=NEWEST)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert witness.client(site).newest() is None


def test_an_open_connection_ends_with_the_admission(witness: Running, site: Member) -> None:
    address = f"127.0.0.1:{witness.port}"
    with grpc.secure_channel(address, witness.credentials(site)) as channel:
        newest = channel.unary_unary(f"/{GRPC_SERVICE}/Newest")
        assert newest(NEWEST, timeout=WAIT_S)
        (witness.folder.admitted / "a.site.json").unlink()
        with pytest.raises(grpc.RpcError) as raised:
            newest(NEWEST, timeout=WAIT_S)
    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert raised.value.details() == "stranger"


def test_an_open_connection_ends_with_the_certificate(
    witness: Running, site: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{witness.port}"
    with grpc.secure_channel(address, witness.credentials(site)) as channel:
        newest = channel.unary_unary(f"/{GRPC_SERVICE}/Newest")
        assert newest(NEWEST, timeout=WAIT_S)
        monkeypatch.setattr(
            "tacit_server.witness.admission.expires_at", lambda _: datetime.now(UTC)
        )
        with pytest.raises(grpc.RpcError) as raised:
            newest(NEWEST, timeout=WAIT_S)
    assert raised.value.details() == "stranger"


@pytest.mark.parametrize("attack", ["name and key", "name", "key", "forged"])
def test_another_site_s_head_is_refused_and_not_kept(
    witness: Running, site: Member, attack: str
) -> None:
    other = Member.make("b")
    witness.admit(other)
    head = site.heads(2)[1]
    shown = {
        "name and key": other.heads(2)[1],
        "name": Member.make("b", identity=site.identity).heads(2)[1],
        "key": Member.make("a").heads(2)[1],
        "forged": head.model_copy(update={"seq": 5}),
    }[attack]
    with pytest.raises(LedgerError, match="knows this site by another name or key"):
        witness.client(site).countersign(shown)
    assert witness.client(site).newest() is None
    assert witness.client(other).newest() is None


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("attack", ["rollback", "fork"])
def test_a_rollback_and_a_fork_are_refused_also_after_a_restart(
    witness: Running, site: Member, attack: str, restarted: bool
) -> None:
    honest = site.heads(3)
    for head in honest:
        witness.client(site).countersign(head)
    if restarted:
        witness.end()
        witness.begin()
    shown = {"rollback": honest[1], "fork": site.heads(3, fork="x")[2]}[attack]
    with pytest.raises(LedgerError, match="rolled back or forked"):
        witness.client(site).countersign(shown)
    assert witness.client(site).newest() == honest[2]
    account = account_of(witness.folder)
    assert [fork.second for fork in account.forks] == ([shown] if attack == "fork" else [])
    assert ("FORK  a signed two rows 2" in account.as_text()) == (attack == "fork")


def test_eight_sites_at_once_each_get_their_own_answer(witness: Running) -> None:
    members = [Member.make(f"site-{number}") for number in range(8)]
    witness.admit(*members)

    def life(member: Member) -> list[SignedHead | None]:
        client = witness.client(member)
        return [client.countersign(head) and client.newest() for head in member.heads(5)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(life, members)) == [member.heads(5) for member in members]


def test_of_eight_forks_at_once_one_is_countersigned(witness: Running, site: Member) -> None:
    forks = [site.heads(2, fork=f"history {number}")[1] for number in range(8)]

    def signed(head: SignedHead) -> bool:
        try:
            witness.client(site).countersign(head)
        except LedgerError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(signed, forks))
    assert sum(results) == 1
    assert witness.client(site).newest() == forks[results.index(True)]
    assert len(account_of(witness.folder).forks) == 1


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"format":2}', b"[" * 2000])
@pytest.mark.parametrize("method", ["Newest", "Countersign"])
def test_what_is_not_understood_gets_a_code_and_the_next_call_an_answer(
    witness: Running, site: Member, method: str, content: bytes
) -> None:
    refused = witness.refusal(witness.credentials(site), method, said=content)
    assert refused == (grpc.StatusCode.INVALID_ARGUMENT, "message")
    assert witness.client(site).newest() is None


def test_a_message_that_is_too_long_is_refused_unread(witness: Running, site: Member) -> None:
    content = b" " * LONGEST_MESSAGE + encoded(CountersignRequest(head=site.heads(1)[0]))
    code, _ = witness.refusal(witness.credentials(site), "Countersign", said=content)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_book_that_fails_gives_a_code_no_signature_and_is_not_ready(
    witness: Running, site: Member
) -> None:
    assert check_health(witness.health, READY, timeout_s=WAIT_S) is HealthStatus.SERVING
    witness.folder.heads.write_bytes(b"damaged" * 4096)
    with pytest.raises(LedgerError, match="the witness failed"):
        witness.client(site).countersign(site.heads(1)[0])
    assert check_health(witness.health, READY, timeout_s=WAIT_S) is HealthStatus.NOT_SERVING


def test_a_certificate_of_the_server_that_grows_old_is_made_anew(
    witness: Running, site: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tacit_server.witness import service

    made: list[int] = []
    issue = service.make_server_certificate
    monkeypatch.setattr(
        service, "make_server_certificate", lambda *args: made.append(1) or issue(*args)
    )
    client = witness.client(site)
    assert client.newest() is None
    assert made == []
    monkeypatch.setattr(service, "_RENEWED_BEFORE", timedelta(days=91))
    assert client.newest() is None
    assert made != []


def test_a_call_waits_for_a_witness_that_is_started_again(witness: Running, site: Member) -> None:
    witness.end()
    client = witness.client(site)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.countersign, site.heads(1)[0])
        time.sleep(0.3)  # long enough for a first attempt to fail; nothing depends on it
        assert not answer.done()
        witness.begin()
        assert answer.result(timeout=WAIT_S).head == site.heads(1)[0]


# --- admission -----------------------------------------------------------------------------


def test_a_new_card_of_a_site_takes_the_place_of_the_old_one(
    witness: Running, site: Member
) -> None:
    witness.client(site).countersign(site.heads(2)[1])
    renewed = Member.make("a", identity=site.identity)
    witness.admit(renewed)
    assert witness.client(renewed).newest() == site.heads(2)[1]
    assert witness.refusal(witness.credentials(site), said=NEWEST)[0] is (
        grpc.StatusCode.UNAVAILABLE
    )


@pytest.mark.parametrize("attack", ["same name", "same key"])
def test_a_name_and_a_key_belong_together_for_ever(
    witness: Running, site: Member, attack: str
) -> None:
    other = {
        "same name": Member.make("a"),
        "same key": Member.make("b", identity=site.identity),
    }[attack]
    with pytest.raises(IdentityError, match="its name or its key is that of 'a'"):
        witness.admit(other)


@pytest.mark.parametrize("attack", ["changed", "another's certificate", "an authority", "expired"])
def test_a_card_that_cannot_be_trusted_is_not_admitted(
    witness: Running, site: Member, attack: str
) -> None:
    member = Member.make("b")
    card = {
        "changed": member.card().model_copy(update={"site": "c"}),
        "another's certificate": member.card(site.tls),
        "an authority": member.card(make_ca("b")),
        "expired": Member.make("b", age_days=9).card(),
    }[attack]
    with pytest.raises(IdentityError):
        Admission(witness.folder.admitted).admit(card)
    assert [known.site for known in Admission(witness.folder.admitted).cards()] == ["a"]


def test_while_a_card_in_the_folder_is_not_genuine_nobody_is_served(
    witness: Running, site: Member
) -> None:
    assert witness.client(site).newest() is None
    path = witness.folder.admitted / "b.site.json"
    card = Member.make("b").card()
    card.model_copy(update={"public_key": site.identity.public_key}).write(path)
    with pytest.raises(LedgerError, match="the witness failed"):
        witness.client(site).newest()
    assert check_health(witness.health, READY, timeout_s=WAIT_S) is HealthStatus.NOT_SERVING
    card.write(path)
    assert witness.client(site).newest() is None
    assert check_health(witness.health, READY, timeout_s=WAIT_S) is HealthStatus.SERVING


# --- the folder ----------------------------------------------------------------------------


def test_what_init_makes_is_its_owner_s_alone_and_the_card_is_the_witness_s(
    witness: Running,
) -> None:
    folder = witness.folder
    paths = [folder.path, *folder.path.rglob("*")]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []
    assert read_witness_card(folder.card_file) == witness.card
    assert witness.card.public_key == folder.identity().public_key
    assert (folder.service / "tacit-witness.service").is_file()


def test_init_overwrites_nothing(witness: Running) -> None:
    config = witness.folder.config_file.read_bytes()
    again = WitnessConfig(name="w", address="127.0.0.1:1", listen="127.0.0.1:1")
    with pytest.raises(UsageError, match="is not empty"):
        init_witness(witness.folder.path, again)
    assert witness.folder.config_file.read_bytes() == config


@pytest.mark.parametrize("name", ["identity.key", "tls/ca.key"])
def test_a_folder_whose_secret_is_missing_or_open_to_others_is_not_used(
    witness: Running, name: str
) -> None:
    secret = witness.folder.path / name
    secret.chmod(0o640)
    with pytest.raises(IdentityError, match="is not secret"):
        WitnessFolder.open(witness.folder.path)
    secret.unlink()
    with pytest.raises(IdentityError, match="is missing"):
        WitnessFolder.open(witness.folder.path)
    assert not secret.exists()


def test_a_witness_whose_book_is_gone_does_not_start(witness: Running) -> None:
    witness.end()
    witness.folder.heads.unlink()
    with pytest.raises(LedgerError, match="rollbacks go unnoticed"):
        WitnessService(witness.folder)
