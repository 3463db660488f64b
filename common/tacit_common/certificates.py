"""X.509 certificates for TLS inside one federation: ECDSA on P-256, in PEM.

    make_ca ──signs──► make_server_certificate     the coordinator's gateway, or a witness
    make_client_certificate                        a site, self-signed and admitted one by one

They carry no trust of their own. A CA's certificate is handed over with the invitation, a
site's with its card, and each counts only where somebody put it.
"""

import hashlib
import ipaddress
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tacit_common.errors import IdentityError, UsageError

CA_DAYS = 3650
CLIENT_DAYS = 1825

# Clocks differ: what is made now has to count at once on a machine that is behind.
_BACKDATED = timedelta(days=1)
_LONGEST_NAME = 64  # of a common name, RFC 5280 appendix A.1
_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.IGNORECASE)


class Issued(NamedTuple):
    """A certificate and its private key, each PEM."""

    certificate: bytes
    key: bytes  # PKCS #8, not encrypted: write it where only its owner can read


def make_ca(name: str, *, days: int = CA_DAYS, now: datetime | None = None) -> Issued:
    """A certification authority that signs end certificates and no further authority.

    Raises:
        UsageError: the name cannot be that of a certificate, or `days` is not positive.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), days, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return _issued(builder, key, key)


def make_server_certificate(
    ca: bytes, ca_key: bytes, hosts: Sequence[str], days: int, *, now: datetime | None = None
) -> Issued:
    """A server's certificate for `hosts` (DNS names or IP addresses), signed by the CA.

    Guarantees: it is valid for these hosts only, for servers only, and cannot sign another.

    Raises:
        IdentityError: the CA's certificate or key cannot be read, or they are no pair.
        UsageError: there is no host, one is not a host, or `days` is not positive.
    """
    issuer, issuer_key = _authority(ca, ca_key)
    names = [_host(host) for host in hosts]
    if not names:
        raise UsageError(
            "a server's certificate needs a host",
            why="a client compares it with the address at which it connects",
            fix="give the DNS name or the IP address at which the server is reached",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(str(names[0].value)[:_LONGEST_NAME])
    builder = _end_certificate(
        _builder(subject, issuer.subject, key.public_key(), days, now),
        ExtendedKeyUsageOID.SERVER_AUTH,
    )
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return _issued(_signed_by(builder, issuer_key.public_key()), key, issuer_key)


def make_client_certificate(
    name: str, *, days: int = CLIENT_DAYS, now: datetime | None = None
) -> Issued:
    """A client's certificate, signed by itself.

    Guarantees: it is for clients only and cannot sign another; whoever trusts it trusts
    this one certificate.

    Raises:
        UsageError: the name cannot be that of a certificate, or `days` is not positive.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(name)
    builder = _end_certificate(
        _builder(subject, subject, key.public_key(), days, now), ExtendedKeyUsageOID.CLIENT_AUTH
    )
    # Without it, TLS may take another certificate of the same name for this one's issuer.
    return _issued(_signed_by(builder, key.public_key()), key, key)


def client_certificate(certificate: bytes, name: str) -> bytes:
    """The one certificate that the text holds, without anything around it.

    Guarantees: it is such as `make_client_certificate(name)` makes. It was signed by its own
    key, carries this name, is for clients, and cannot sign another. Not its dates.

    Raises:
        IdentityError: it is not.
    """
    try:
        found = x509.load_pem_x509_certificates(certificate)
        one = found[0]
        one.verify_directly_issued_by(one)
        constraints = one.extensions.get_extension_for_class(x509.BasicConstraints).value
        purposes = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        ours = (
            len(found) == 1
            and one.subject == _subject(name)
            and not constraints.ca
            and list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
        )
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        ours = False
    if not ours:
        raise IdentityError(
            f"the certificate of '{name}' cannot be used",
            why="it is not one that this site made for itself as a client",
            fix="ask the site for its card again, as `tacit site init` made it",
        )
    return one.public_bytes(Encoding.PEM)


def certificate_sha256(certificate: bytes) -> str:
    """SHA-256 of a PEM certificate's content: the same for every way to write the same one.

    Raises:
        IdentityError: it is no certificate.
    """
    return hashlib.sha256(_parsed(certificate).public_bytes(Encoding.DER)).hexdigest()


def expires_at(certificate: bytes) -> datetime:
    """When a PEM certificate stops counting, UTC.

    Raises:
        IdentityError: it is no certificate.
    """
    return _parsed(certificate).not_valid_after_utc


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    if days < 1:
        raise UsageError(
            "a certificate cannot be made",
            why=f"it would count for {days} days",
            fix="give at least one day",
        )
    issued = now or datetime.now(UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer)
    builder = builder.public_key(public_key).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(issued - _BACKDATED)
    builder = builder.not_valid_after(issued + timedelta(days=days))
    identifier = x509.SubjectKeyIdentifier.from_public_key(public_key)
    return builder.add_extension(identifier, critical=False)


def _end_certificate(
    builder: x509.CertificateBuilder, purpose: x509.ObjectIdentifier
) -> x509.CertificateBuilder:
    builder = builder.add_extension(
        x509.BasicConstraints(ca=False, path_length=None), critical=True
    )
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    return builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)


def _signed_by(
    builder: x509.CertificateBuilder, issuer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer)
    return builder.add_extension(identifier, critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issued(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> Issued:
    certificate = builder.sign(issuer_key, SHA256())
    return Issued(
        certificate=certificate.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _subject(name: str) -> x509.Name:
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise UsageError(
            "a certificate cannot be made",
            why=f"its name has {len(name)} characters",
            fix=f"give a name of 1 to {_LONGEST_NAME}",
        )
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _host(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass  # then it is a name
    if not _HOST_NAME.fullmatch(host) or len(host) > 253:
        raise UsageError(
            f"'{host}' is not a host",
            why="it is neither an IP address nor a DNS name",
            fix="give a name such as tacit.example.org, or an address, without a port",
        )
    return x509.DNSName(host)


def _authority(ca: bytes, ca_key: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    certificate = _parsed(ca)
    try:
        key = load_pem_private_key(ca_key, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (
        key.public_key() != certificate.public_key()
    ):
        raise IdentityError(
            "the authority's key cannot be used",
            why="it is not the key of the authority's certificate",
            fix="restore ca.crt and ca.key together, from one backup",
        )
    return certificate, key


def _parsed(certificate: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate)
    except ValueError:
        raise IdentityError(
            "a certificate cannot be read",
            why="it is not a PEM certificate",
            fix="restore the file, or make it anew",
        ) from None
