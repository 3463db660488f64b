"""`tacit site doctor`: what is wrong is found, named, and comes with a way to mend it."""

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tacit_client.budget import load
from tacit_client.cli import site_app
from tacit_client.deployment import doctor_local
from tacit_client.deployment.doctor import Diagnosis, examine
from tacit_client.deployment.findings import Finding
from tacit_client.deployment.journal import Handled, Journal
from tacit_client.deployment.open_site import open_ledger
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.deployment.site_init import Prepared
from tacit_client.policy import SitePolicy
from tacit_common.certificates import make_ca, make_server_certificate
from tacit_common.errors import RefusalCode, SiteRefusal
from tacit_common.ledger_chain import Atom, SignedHead
from tacit_common.study import Study

NewSite = Callable[..., Prepared]

CA = make_ca("hub")
DAY = timedelta(days=1)


def worst(diagnosis: Diagnosis, check: str) -> Finding:
    """The worst finding of a check."""
    found = [one for one in diagnosis.findings if one.check == check]
    assert found, [one.check for one in diagnosis.findings]
    return max(found, key=lambda one: ("ok", "warn", "fail").index(one.level))


# --- on the site's own machine -----------------------------------------------------------


@pytest.fixture
def folder(new_site: NewSite) -> SiteFolder:
    return new_site().folder


LOCAL = ("configuration", "policy", "keys", "disk", "card", "device", "data", "ledger", "journal")


def test_a_new_site_lacks_nothing_of_its_own(new_site: NewSite) -> None:
    strict = SitePolicy.to_begin_with(unit="record", epsilon_cap=1.0, delta=1e-5)
    found = examine(new_site(policy=strict).folder)
    levels = {check: worst(found, check).level for check in (*LOCAL, "budget", "approvals")}
    assert set(levels.values()) == {"ok"}, levels


def contents(folder: SiteFolder) -> dict[Path, bytes]:
    """Every file in a folder but locks, which are empty."""
    files = (path for path in folder.path.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.suffix != ".lock"}


def test_looking_changes_nothing_in_the_folder(folder: SiteFolder) -> None:
    before = contents(folder)
    examine(folder)
    assert contents(folder) == before


def test_every_problem_comes_with_a_way_to_mend_it(folder: SiteFolder, data_file: Path) -> None:
    data_file.unlink()
    folder.node_key.unlink()
    found = examine(folder)
    problems = [one for one in found.findings if one.level != "ok"]
    assert {"data", "keys", "coordinator"} <= {one.check for one in problems}
    assert all(one.fix for one in problems)


def test_a_broken_configuration_is_the_one_thing_said_of_it(folder: SiteFolder) -> None:
    folder.site_toml.write_text("site = 3", encoding="utf-8")
    found = examine(folder)
    assert worst(found, "configuration").level == "fail"
    assert "data" not in {one.check for one in found.findings}


def test_a_broken_policy_is_found(folder: SiteFolder) -> None:
    folder.policy_toml.write_text("", encoding="utf-8")
    assert worst(examine(folder), "policy").level == "fail"


def test_a_policy_that_admits_studies_without_privacy_is_remarked(folder: SiteFolder) -> None:
    assert worst(examine(folder), "policy").level == "warn"


@pytest.mark.parametrize("name", ["identity.key", "node.key", "ledger.db", "witness/client.key"])
def test_a_key_that_others_may_read_is_found(folder: SiteFolder, name: str) -> None:
    (folder.path / name).chmod(0o640)
    finding = worst(examine(folder), "keys")
    assert finding.level == "fail"
    assert finding.fix == f"chmod 600 '{folder.path / name}'"


def test_a_card_of_other_keys_is_found(folder: SiteFolder, new_site: NewSite) -> None:
    other = new_site("other").folder
    folder.card("clinic").write_bytes(other.card("other").read_bytes())
    assert worst(examine(folder), "card").level == "fail"


def test_data_with_fewer_units_than_declared_is_found(folder: SiteFolder) -> None:
    text = folder.site_toml.read_text(encoding="utf-8")
    folder.site_toml.write_text(
        text.replace("declared_units = 50", "declared_units = 61"), encoding="utf-8"
    )
    finding = worst(examine(folder), "data")
    assert finding.level == "fail"
    assert "fewer records than the 61 declared" in finding.what


def test_records_that_cannot_be_decoded_are_counted(new_site: NewSite, tmp_path: Path) -> None:
    import numpy as np

    images = np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)
    images[::2, 0, 0] = np.nan
    np.save(tmp_path / "half.npy", images)
    finding = worst(examine(new_site(data=str(tmp_path / "half.npy")).folder), "data")
    assert finding.level == "warn"
    assert "of 32 sampled records cannot be decoded" in finding.what


def test_a_ledger_of_another_site_is_found(folder: SiteFolder, new_site: NewSite) -> None:
    new_site("other").folder.ledger.rename(folder.ledger)
    assert worst(examine(folder), "ledger").level == "fail"


def test_a_changed_journal_is_found(folder: SiteFolder) -> None:
    folder.journal.write_text("{}\n", encoding="utf-8")
    assert worst(examine(folder), "journal").level == "fail"


class Installed:
    """A distribution of Tacit that asks for certain versions."""

    def __init__(self, *requires: str, python: str = ">=3.11") -> None:
        self.requires = list(requires)
        self.metadata = {"Requires-Python": python}


@pytest.mark.parametrize(
    ("installed", "wrong"),
    [
        (Installed("torch>=2", 'ray>=99; extra == "ray"', "nobody-knows>=1"), None),
        (Installed("torch==1.0", "flwr>=1.41"), "torch"),
        (Installed("flwr<1.0"), "flwr"),
        (Installed(python="<3.0"), "python"),
    ],
)
def test_versions_that_tacit_was_not_tested_with_are_found(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, installed: Installed, wrong: str | None
) -> None:
    real = doctor_local.metadata.distribution
    monkeypatch.setattr(
        doctor_local.metadata,
        "distribution",
        lambda name: installed if name == "tacit" else real(name),
    )
    finding = worst(examine(folder), "versions")
    assert finding.level == ("ok" if wrong is None else "fail")
    assert finding.what.startswith(wrong or "tacit")


def test_a_full_disk_is_found(folder: SiteFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = doctor_local.shutil.disk_usage(folder.path)
    for free, level in ((1e8, "fail"), (1e9, "warn"), (1e10, "ok")):
        left = usage._replace(free=int(free))
        monkeypatch.setattr(doctor_local.shutil, "disk_usage", lambda _, left=left: left)
        assert worst(examine(folder), "disk").level == level


def test_a_study_that_waits_for_consent_is_remarked(
    new_site: NewSite, make_study: Callable[..., Study]
) -> None:
    folder = new_site().folder
    with pytest.raises(SiteRefusal):
        folder.open_approvals().require_approved(make_study())
    finding = worst(examine(folder), "approvals")
    assert (finding.level, finding.what) == ("warn", "1 study waits for somebody's consent")


# --- the coordinator ---------------------------------------------------------------------


class _Gateway(BaseHTTPRequestHandler):
    """Answers like a gateway does: one status for whoever comes."""

    def __init__(self, *given: object, status: int, date: str | None, asked: list[str]) -> None:
        self._status, self._date, self._asked = status, date, asked
        super().__init__(*given)  # type: ignore[arg-type]

    def do_POST(self) -> None:
        self._asked.append(f"{self.path} {sorted(name.lower() for name in self.headers)}")
        self.send_response_only(self._status)
        if self._date is not None:
            self.send_header("Date", self._date)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal of the tests."""


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A handshake that a client breaks off is what some tests are about."""


@contextmanager
def gateway(
    folder: SiteFolder,
    tmp_path: Path,
    *,
    status: int = 401,
    behind: timedelta = timedelta(),
    tells_time: bool = True,
    host: str = "127.0.0.1",
    authority: tuple[bytes, bytes] = CA,
    made: timedelta = timedelta(),
    tls: bool = True,
) -> Iterator[list[str]]:
    """A gateway where the site's configuration says; gives what it was asked."""
    asked: list[str] = []
    there = datetime.now(UTC) - behind
    date = format_datetime(there, usegmt=True) if tells_time else None
    server = _Quiet(("127.0.0.1", 0), partial(_Gateway, status=status, date=date, asked=asked))
    if tls:
        issued = make_server_certificate(*authority, [host], 40, now=datetime.now(UTC) - made)
        (tmp_path / "server.pem").write_bytes(issued.certificate + issued.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    point_at(folder, server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def point_at(folder: SiteFolder, port: int) -> None:
    """Let the coordinator's gateway be at this port, under a certificate of `CA`."""
    text = folder.site_toml.read_text(encoding="utf-8")
    folder.site_toml.write_text(text.replace("127.0.0.1:9", f"127.0.0.1:{port}"), encoding="utf-8")
    folder.coordinator_ca.write_bytes(CA.certificate)


def test_a_gateway_that_turns_strangers_away_is_as_it_should_be(
    folder: SiteFolder, tmp_path: Path
) -> None:
    with gateway(folder, tmp_path):
        found = examine(folder)
    levels = [worst(found, check).level for check in ("certificate", "coordinator", "clock")]
    assert levels == ["ok", "ok", "ok"]


def test_the_doctor_asks_as_a_stranger_and_once(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path) as asked:
        examine(folder)
    assert asked == ["/v1/fleet/pull-messages ['accept-encoding', 'content-length', 'host']"]
    assert load(folder.path)[0].head.seq == 0


@pytest.mark.parametrize(("status", "level"), [(403, "ok"), (200, "fail"), (404, "warn")])
def test_a_gateway_that_lets_strangers_in_is_found(
    folder: SiteFolder, tmp_path: Path, status: int, level: str
) -> None:
    with gateway(folder, tmp_path, status=status):
        assert worst(examine(folder), "coordinator").level == level


@pytest.mark.parametrize(
    ("seconds", "level"),
    [(-10, "ok"), (60, "warn"), (-60, "warn"), (3600, "fail"), (-3600, "fail")],
)
def test_a_clock_that_is_off_is_found(
    folder: SiteFolder, tmp_path: Path, seconds: int, level: str
) -> None:
    with gateway(folder, tmp_path, behind=timedelta(seconds=seconds)):
        assert worst(examine(folder), "clock").level == level


def test_a_gateway_that_does_not_tell_its_time_is_remarked(
    folder: SiteFolder, tmp_path: Path
) -> None:
    with gateway(folder, tmp_path, tells_time=False):
        assert worst(examine(folder), "clock").level == "warn"


def test_an_expired_certificate_is_found_and_named(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path, made=50 * DAY) as asked:
        finding = worst(examine(folder), "certificate")
    assert finding.level == "fail"
    assert "it has expired" in finding.what
    assert asked == []


def test_a_certificate_that_expires_soon_is_remarked(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path, made=20 * DAY):
        finding = worst(examine(folder), "certificate")
    assert finding.level == "warn"
    assert finding.fix is not None
    assert "tacit server renew" in finding.fix


def test_a_certificate_for_another_host_is_refused(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path, host="elsewhere.example") as asked:
        finding = worst(examine(folder), "certificate")
    assert finding.level == "fail"
    assert "another host name" in finding.what
    assert asked == []


def test_somebody_in_between_with_a_certificate_of_another_authority_is_refused(
    folder: SiteFolder, tmp_path: Path
) -> None:
    with gateway(folder, tmp_path, authority=make_ca("hub")) as asked:
        finding = worst(examine(folder), "certificate")
    assert finding.level == "fail"
    assert "fingerprint" in str(finding.fix)
    assert asked == []


def test_a_gateway_without_tls_is_sent_nothing(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path, tls=False) as asked:
        finding = worst(examine(folder), "coordinator")
    assert finding.level == "fail"
    assert "does not speak TLS" in finding.what
    assert asked == []


def test_a_coordinator_that_is_not_there_is_found(folder: SiteFolder) -> None:
    finding = worst(examine(folder), "coordinator")
    assert finding.level == "fail"
    assert "nothing listens there" in finding.what


def test_an_authority_that_is_no_certificate_is_found(folder: SiteFolder) -> None:
    folder.coordinator_ca.write_text("nothing", encoding="utf-8")
    assert worst(examine(folder), "certificate").level == "fail"


# --- the witness -------------------------------------------------------------------------


class SomeWitness:
    """Says one thing, whatever it is asked."""

    def __init__(self, head: SignedHead | None) -> None:
        self._head = head

    def newest(self) -> SignedHead | None:
        if self._head is None:
            raise SiteRefusal(RefusalCode.WITNESS, why="no witness answers", fix="start it")
        return self._head


def test_a_ledger_that_was_rolled_back_is_found(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger(folder, folder.config, folder.read_identity())
    older = folder.ledger.read_bytes()
    ledger.add_atoms(lambda *_: [Atom(atom="a0", lineage="x", parents=(), tags_sha256="0" * 64)])
    head = ledger.head
    ledger.close()
    monkeypatch.setattr(SiteFolder, "open_witness", lambda _: SomeWitness(head))
    assert worst(examine(folder), "witness").level == "ok"
    folder.ledger.write_bytes(older)
    finding = worst(examine(folder), "witness")
    assert finding.level == "fail"
    assert "it has seen row 1" in finding.what


def test_a_witness_that_does_not_answer_is_found(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SiteFolder, "open_witness", lambda _: SomeWitness(None))
    finding = worst(examine(folder), "witness")
    assert (finding.level, finding.what, finding.fix) == ("fail", "no witness answers", "start it")


# --- the commands ------------------------------------------------------------------------


def test_the_command_fails_if_anything_does(folder: SiteFolder) -> None:
    result = CliRunner().invoke(site_app, ["doctor", str(folder.path)])
    assert result.exit_code == 1
    assert "fail coordinator" in result.output


def test_the_command_succeeds_if_nothing_fails(folder: SiteFolder, tmp_path: Path) -> None:
    with gateway(folder, tmp_path):
        result = CliRunner().invoke(site_app, ["doctor", str(folder.path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output)["state"] in ("ok", "warn")


def test_the_log_command_prints_a_line_a_request(folder: SiteFolder) -> None:
    journal = Journal(folder.journal, folder.read_identity())
    for number in range(3):
        journal.append(
            Handled(
                action="train",
                run="run-1",
                study="letters",
                study_digest="e" * 64,
                label=f"round {number}",
                outcome="answered",
                code=None,
                bytes_in=10,
                bytes_out=20,
            )
        )
    lines = (
        CliRunner().invoke(site_app, ["log", str(folder.path), "--last", "2"]).output.split("\n")
    )
    assert [line.partition("  ")[2][:7] for line in lines[:2]] == ["round 1", "round 2"]
    as_json = CliRunner().invoke(site_app, ["log", str(folder.path), "--json"]).output
    assert [json.loads(line)["seq"] for line in as_json.splitlines()] == [0, 1, 2]


def test_the_budget_of_a_site_is_judged_by_its_policy(new_site: NewSite) -> None:
    strict = SitePolicy.to_begin_with(unit="record", epsilon_cap=3.5, delta=1e-6)
    folder = new_site(policy=strict).folder
    result = CliRunner().invoke(site_app, ["budget", str(folder.path), "--json"])
    assert json.loads(result.output)["cap"] == {"epsilon": 3.5, "delta": 1e-6}
