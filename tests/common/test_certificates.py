"""Certificates are good for what they were made for, and for nothing else."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509 import verification

from tacit_common.certificates import (
    Issued,
    certificate_sha256,
    client_certificate,
    expires_at,
    make_ca,
    make_client_certificate,
    make_server_certificate,
)
from tacit_common.errors import IdentityError, UsageError

CA = make_ca("Tacit test")
NOW = datetime(2030, 5, 1, tzinfo=UTC)


def parsed(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate)


def server_chain(ca: Issued, server: Issued, host: x509.DNSName | x509.IPAddress) -> int:
    """How many certificates a strict verifier (RFC 5280, CA/B profile) finds in the chain."""
    builder = verification.PolicyBuilder().store(verification.Store([parsed(ca)]))
    return len(builder.build_server_verifier(host).verify(parsed(server), []))


def test_a_server_s_certificate_is_valid_for_each_of_its_hosts_and_no_other() -> None:
    hosts = ["tacit.example.org", "127.0.0.1", "[::1]"]
    server = make_server_certificate(CA.certificate, CA.key, hosts, days=90)
    for host in (
        x509.DNSName("tacit.example.org"),
        x509.IPAddress(ip_address("127.0.0.1")),
        x509.IPAddress(ip_address("::1")),
    ):
        assert server_chain(CA, server, host) == 2
    with pytest.raises(verification.VerificationError):
        server_chain(CA, server, x509.DNSName("other.example.org"))
    with pytest.raises(verification.VerificationError):
        server_chain(make_ca("Tacit test"), server, x509.DNSName("tacit.example.org"))


def test_an_end_certificate_signs_no_other() -> None:
    server = make_server_certificate(CA.certificate, CA.key, ["a.example"], days=90)
    forged = make_server_certificate(server.certificate, server.key, ["b.example"], days=90)
    builder = verification.PolicyBuilder().store(verification.Store([parsed(CA)]))
    with pytest.raises(verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("b.example")).verify(
            parsed(forged), [parsed(server)]
        )


@pytest.mark.parametrize("kind", ["ca", "server", "client"])
def test_dates_begin_a_day_early_and_last_as_long_as_was_asked(kind: str) -> None:
    ca = make_ca("Tacit test", days=30, now=NOW)
    issued = {
        "ca": ca,
        "server": make_server_certificate(ca.certificate, ca.key, ["a.example"], 30, now=NOW),
        "client": make_client_certificate("site-a", days=30, now=NOW),
    }[kind]
    assert parsed(issued).not_valid_before_utc == NOW - timedelta(days=1)
    assert expires_at(issued.certificate) == NOW + timedelta(days=30)


@pytest.mark.parametrize("kind", ["ca", "server", "client"])
def test_a_key_is_p_256_and_that_of_its_certificate(kind: str) -> None:
    issued = {
        "ca": CA,
        "server": make_server_certificate(CA.certificate, CA.key, ["a.example"], 30),
        "client": make_client_certificate("site-a"),
    }[kind]
    key = load_pem_private_key(issued.key, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == parsed(issued).public_key()


def test_a_client_s_certificate_is_for_clients_alone() -> None:
    extensions = parsed(make_client_certificate("site-a")).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    "host", ["", "a b", "a.example:9443", "-a.example", "a..b", "https://a.example", "é.example"]
)
def test_what_is_no_host_gets_no_certificate(host: str) -> None:
    with pytest.raises(UsageError, match="is not a host"):
        make_server_certificate(CA.certificate, CA.key, [host], days=30)


def test_a_certificate_needs_a_host_a_name_and_a_day() -> None:
    with pytest.raises(UsageError, match="needs a host"):
        make_server_certificate(CA.certificate, CA.key, [], days=30)
    with pytest.raises(UsageError, match="at least one day"):
        make_ca("Tacit test", days=0)
    for name in ("", "x" * 65):
        with pytest.raises(UsageError, match="its name has"):
            make_client_certificate(name)


def test_a_host_that_is_longer_than_a_name_may_be_is_still_served() -> None:
    host = ".".join(["a" * 40, "b" * 40, "example"])
    server = make_server_certificate(CA.certificate, CA.key, [host], days=30)
    assert server_chain(CA, server, x509.DNSName(host)) == 2


@pytest.mark.parametrize("key", [make_ca("other").key, b"", b"no key", CA.certificate])
def test_an_authority_whose_key_is_another_s_signs_nothing(key: bytes) -> None:
    with pytest.raises(IdentityError, match="not the key of the authority"):
        make_server_certificate(CA.certificate, key, ["a.example"], days=30)


def test_what_is_no_certificate_is_an_identity_error() -> None:
    for read in (expires_at, certificate_sha256):
        with pytest.raises(IdentityError, match="cannot be read"):
            read(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_the_digest_is_of_the_certificate_and_not_of_how_it_is_written() -> None:
    one, other = (make_client_certificate("site-a").certificate for _ in range(2))
    assert certificate_sha256(one) == certificate_sha256(b"a comment\n" + one + b"\n\n")
    assert certificate_sha256(one) != certificate_sha256(other)


def test_a_site_s_own_certificate_is_taken_as_it_is() -> None:
    own = make_client_certificate("site-a").certificate
    assert client_certificate(own, "site-a") == own
    assert client_certificate(b"a comment\n" + own, "site-a") == own


def authority_for_clients(name: str) -> bytes:
    """A client's certificate, but for one bit: it may sign others."""
    key = ec.generate_private_key(ec.SECP256R1())
    own = parsed(make_client_certificate(name))
    builder = x509.CertificateBuilder(own.subject, own.subject, key.public_key(), 1)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    purposes = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    signed = builder.add_extension(purposes, critical=False).sign(key, SHA256())
    return signed.public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "attack",
    [
        "another name",
        "an authority",
        "an authority for clients",
        "a server",
        "two at once",
        "an authority behind it",
        "none",
    ],
)
def test_what_is_not_a_site_s_own_certificate_is_refused(attack: str) -> None:
    own = make_client_certificate("site-a").certificate
    authority = make_ca("site-a").certificate
    shown = {
        "another name": make_client_certificate("site-b").certificate,
        "an authority": authority,
        "an authority for clients": authority_for_clients("site-a"),
        "a server": make_server_certificate(CA.certificate, CA.key, ["site-a"], 30).certificate,
        "two at once": own + make_client_certificate("site-a").certificate,
        "an authority behind it": own + authority,
        "none": b"",
    }[attack]
    with pytest.raises(IdentityError, match="made for itself"):
        client_certificate(shown, "site-a")
