"""A witness as a process: killed at any moment it has forgotten nothing that it signed."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tacit_common.certificates import Issued, make_client_certificate
from tacit_common.countersign import WitnessClient, read_witness_card
from tacit_common.enrolment import SiteCard, read_site_card
from tacit_common.errors import LedgerError
from tacit_common.identity import Identity
from tacit_common.ledger_chain import Genesis, SignedHead, Void, head_of, next_entry

COMMAND = "from tacit_simulations.cli import main; main()"
WAIT_S = 60.0

pytestmark = pytest.mark.system

Start = Callable[[], "subprocess.Popen[str]"]


def tacit(*arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )


def finished(*arguments: object) -> tuple[int, str, str]:
    with tacit(*arguments) as process:
        out, err = process.communicate(timeout=WAIT_S)
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Site:
    """A site that the witness does not know yet."""

    def __init__(self, path: Path) -> None:
        self._identity = Identity.create()
        self._tls: Issued = make_client_certificate("a")
        self.card = path / "a.site.json"
        made = SiteCard.signed(
            self._identity,
            site="a",
            node_key="ecdsa-sha2-nistp384 AAAA",
            witness_certificate=self._tls.certificate.decode(),
        )
        made.write(self.card)

    def heads(self, rows: int) -> list[SignedHead]:
        genesis = Genesis(site="a", public_key=self._identity.public_key)
        entry = next_entry(None, genesis, at="2026-01-01", site="a", identity=self._identity)
        found = [head_of(entry, genesis)]
        for number in range(rows - 1):
            payload = Void(run=f"run {number}")
            entry = next_entry(entry, payload, at="2026-01-01", site="a", identity=self._identity)
            found.append(head_of(entry, genesis))
        return found

    def client(self, folder: Path) -> WitnessClient:
        card = read_witness_card(folder / "witness.json")
        return WitnessClient(
            card.address,
            card.ca_certificate.encode(),
            self._tls.certificate,
            self._tls.key,
            card.public_key,
            WAIT_S,
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new witness on loopback."""
    address, health = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    made = tmp_path / "witness"
    options = ("--address", address, "--listen", address, "--health", health)
    code, out, err = finished("witness", "init", made, *options)
    assert (code, err) == (0, ""), out
    return made


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start the witness, once it listens."""
    processes: list[subprocess.Popen[str]] = []

    def begin() -> "subprocess.Popen[str]":
        process = tacit("witness", "run", folder)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("the witness 'witness' listens on port")
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def test_a_witness_that_is_killed_while_it_signs_forgets_no_head_that_it_signed(
    folder: Path, start: Start, tmp_path: Path
) -> None:
    site = Site(tmp_path)
    heads = site.heads(2000)
    process = start()
    read_out = read_site_card(site.card).fingerprint
    assert finished("witness", "admit", folder, site.card, "--fingerprint", read_out)[0] == 0
    client = site.client(folder)
    signed: list[SignedHead] = []

    def sign(until: threading.Event) -> None:
        with suppress(LedgerError):  # a call that was under way when it was killed
            for head in itertools.takewhile(lambda _: not until.is_set(), heads[len(signed) :]):
                signed.append(client.countersign(head).head)

    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            enough, killed = len(signed) + 5, threading.Event()
            signing = pool.submit(sign, killed)
            while len(signed) < enough and not signing.done():
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            killed.set()
            process.wait(timeout=WAIT_S)
            process = start()
            signing.result(timeout=WAIT_S)
            newest = client.newest()
            # It may have kept one whose signature did not arrive any more.
            assert newest in heads[len(signed) - 1 : len(signed) + 1]
            with pytest.raises(LedgerError, match="rolled back"):
                client.countersign(signed[-2])
    assert len(signed) >= 15


def test_sigterm_ends_it_and_its_health_with_it(folder: Path, start: Start) -> None:
    process = start()
    config = (folder / "witness.toml").read_text()
    (health,) = (
        line.partition('"')[2].rstrip('"')
        for line in config.splitlines()
        if line.startswith("health_address")
    )
    assert finished("health", health, "--service", "ready") == (0, f"{health} ready: serving\n", "")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out, err) == (0, "the witness has ended\n", "")
    code, out, err = finished("health", health)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {health} answers no health check")


def test_a_second_witness_on_the_same_port_says_so_and_ends(folder: Path, start: Start) -> None:
    start()
    code, out, err = finished("witness", "run", folder)
    assert (code, out) == (2, "")
    address = read_witness_card(folder / "witness.json").address
    # gRPC may say so in a line of its own before.
    assert f"error: the address {address} cannot be listened on" in err
