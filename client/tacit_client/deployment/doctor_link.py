"""What `tacit site doctor` finds out about the coordinator and the witness, as a stranger would.

One connection to the gateway, with TLS as the agent uses it, and one request without a
signature, which has to be turned away.
"""

import http.client
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from tacit_client.deployment.findings import Finding
from tacit_client.deployment.site_folder import SiteFolder
from tacit_client.ledger_file import read_ledger
from tacit_common.errors import SiteRefusal

_TIMEOUT_S = 10.0
_ENDPOINT = "/v1/fleet/pull-messages"  # where the agent asks for work
_TURNED_AWAY = (401, 403)
_FEW_DAYS = 30  # in which a certificate should be renewed
_SKEW_WARN_S, _SKEW_FAIL_S = 30, 240  # Flower refuses a node whose clock is 300 s off
_RENEW = "ask the coordinator to run: tacit server renew"

# OpenSSL's codes of why a certificate does not hold (X509_V_ERR_*), and what each asks for.
_EXPIRED, _NOT_YET, _OTHER_HOST, _OTHER_ADDRESS = 10, 9, 62, 64
_MENDS = {
    _EXPIRED: ("it has expired", _RENEW),
    _NOT_YET: ("it does not count yet", "set the clock of this machine, or of the coordinator's"),
    _OTHER_HOST: (
        "it is for another host name",
        "connect by the address on the invitation, or ask the coordinator for another invitation",
    ),
}
_MENDS[_OTHER_ADDRESS] = _MENDS[_OTHER_HOST]


def coordinator(folder: SiteFolder) -> Iterator[Finding]:
    """The gateway is reachable, is who it says, tells the same time, and turns strangers away."""
    address = folder.config.coordinator.address
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=folder.read_coordinator_ca().decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        yield Finding.fail(
            "certificate",
            "coordinator-ca.crt is not a certificate",
            "restore it from the coordinator's invitation",
        )
        return
    connection = http.client.HTTPSConnection(
        host.strip("[]"), int(port), timeout=_TIMEOUT_S, context=context
    )
    with closing(connection):
        try:
            connection.connect()
        except ssl.SSLError as error:
            yield _refused_certificate(address, error)
            return
        except OSError as error:
            yield _unreachable(address, error)
            return
        yield _certificate(connection.sock)
        try:
            connection.request("POST", _ENDPOINT, body=b"")
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            yield _no_answer(address, error)
            return
        yield _reception(address, response.status)
        yield _clock(response.getheader("Date"), datetime.now(UTC))


def witness(folder: SiteFolder) -> Iterator[Finding]:
    """The witness answers, and has seen nothing newer than the ledger that is here."""
    client = folder.open_witness()
    if client is None:
        yield Finding.ok("witness", "none is configured: a ledger from a backup goes unnoticed")
        return
    try:
        newest = client.newest()
    except SiteRefusal as refusal:
        yield Finding.fail("witness", refusal.why, refusal.fix)
        return
    head = read_ledger(folder.ledger).head
    if newest is not None and newest.seq > head.seq:
        yield Finding.fail(
            "witness",
            f"it has seen row {newest.seq} of the ledger, and the one here ends at row {head.seq}",
            "restore the newest ledger; what was spent since is missing in this one",
        )
    else:
        seen = "no row so far" if newest is None else f"row {newest.seq}"
        yield Finding.ok("witness", f"it answers, and has seen {seen}")


def _certificate(connected: socket.socket | ssl.SSLSocket) -> Finding:
    if not isinstance(connected, ssl.SSLSocket):
        raise TypeError("a connection over TLS has a TLS socket")
    shown = connected.getpeercert() or {}
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
    days = (ends - datetime.now(UTC)).days
    what = f"the coordinator's holds for {days} more days, until {ends:%Y-%m-%d}"
    if days < _FEW_DAYS:
        return Finding.warn("certificate", what, _RENEW)
    return Finding.ok("certificate", what)


def _refused_certificate(address: str, error: ssl.SSLError) -> Finding:
    if not isinstance(error, ssl.SSLCertVerificationError):
        return Finding.fail(
            "coordinator",
            f"{address} does not speak TLS as it should ({error.reason or 'handshake failed'})",
            "check that the address is the gateway's, and that no proxy stands in between",
        )
    unknown = (
        "no authority that this site knows signed it",
        "compare the invitation's fingerprint with the coordinator by telephone; somebody may sit "
        "in between",
    )
    why, fix = _MENDS.get(error.verify_code, unknown)
    return Finding.fail("certificate", f"the coordinator's cannot be trusted: {why}", fix)


def _unreachable(address: str, error: OSError) -> Finding:
    if isinstance(error, socket.gaierror):
        why, fix = "its name cannot be resolved", "check the address in site.toml, and DNS"
    elif isinstance(error, ConnectionRefusedError):
        why, fix = "nothing listens there", "ask the coordinator whether its server runs"
    else:
        why = error.strerror or type(error).__name__
        fix = "check the network, and that a firewall lets this machine connect to it"
    return Finding.fail("coordinator", f"{address} cannot be reached: {why}", fix)


def _no_answer(address: str, error: Exception) -> Finding:
    return Finding.fail(
        "coordinator",
        f"{address} takes connections and does not answer ({type(error).__name__})",
        "check that the address is the gateway's, and ask the coordinator to look at its log",
    )


def _reception(address: str, status: int) -> Finding:
    if status in _TURNED_AWAY:
        return Finding.ok("coordinator", f"{address} answers, and turns strangers away")
    if status < 300:
        return Finding.fail(
            "coordinator",
            f"{address} lets in whoever comes",
            "do not start the site; tell the coordinator that node authentication is off",
        )
    return Finding.warn(
        "coordinator",
        f"{address} answers a stranger with HTTP status {status}, not with 401 or 403",
        "check that the address is the gateway's, and ask the coordinator to look at its log",
    )


def _clock(date: str | None, here: datetime) -> Finding:
    try:
        there = None if date is None else parsedate_to_datetime(date)
    except ValueError:
        there = None
    if there is None or there.tzinfo is None:
        return Finding.warn(
            "clock",
            "the coordinator does not tell its time, so the clocks cannot be compared",
            "compare them by hand: Flower refuses a node that is five minutes off",
        )
    skew_s = round(abs((here - there).total_seconds()))
    side = "ahead of" if here > there else "behind"
    what = f"{skew_s} s {side} the coordinator's"
    fix = "set this machine's clock, for example with NTP; then look at the coordinator's"
    if skew_s >= _SKEW_FAIL_S:
        return Finding.fail("clock", what, fix)
    if skew_s >= _SKEW_WARN_S:
        return Finding.warn("clock", what, fix)
    return Finding.ok("clock", "agrees with the coordinator's" if skew_s < 2 else what)
