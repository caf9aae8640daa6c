"""Makes authorities, certificate requests and certificates: bytes in, bytes out, the time an argument.

The enrolment of DESIGN.md, "Identity": a party makes its key and a request, the authority signs, the key
never travels. Nothing but the public key and a coordinator's addresses is taken over from a request.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from security.certificate_errors import CertificateIdentityError, RequestRefusedError
from security.certificates import (
    NAME_PATTERN,
    SCHEME,
    UNREADABLE,
    Role,
    as_utc,
    federation_of_authority,
    has_one_encoding,
    identity_uri,
    is_p256,
    load_authority,
    names_of,
    p256_key,
)
from security.errors import ConfigurationError
from security.signing import IdentityKey, compressed_point

BACKDATE: Final = timedelta(minutes=5)  # hospital clocks differ
_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class RequestedIdentity:
    """What a certificate request asks for, its proof of possession verified; `public` as in `Identity`."""

    federation: str
    role: Role
    name: str
    public: bytes
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]


def create_authority(federation: str, now: datetime, days: int) -> tuple[bytes, bytes]:
    """Makes a federation's authority: a P-256 key and its self-signed certificate, path length 0.

    Args:
        federation: 1 to 63 characters of `[a-z0-9_-]`.
        now: when it begins (timezone-aware).
        days: how long it is valid, 1 to 36500.

    Returns:
        The private key (PKCS#8 PEM) and the certificate (PEM).

    Raises:
        ConfigurationError: the name or the number of days is out of range.
    """
    _check_name(federation, "federation")
    now, lifetime = as_utc(now), _lifetime(days)
    key = IdentityKey.generate()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, "consilium authority"),
        ]
    )
    certificate = (
        _builder(key.private_key.public_key(), name, name, now - BACKDATE, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(_uris(f"{SCHEME}{federation}"), critical=False)
        .sign(key.private_key, hashes.SHA256())
    )
    return key.to_pem(), certificate.public_bytes(serialization.Encoding.PEM)


def create_request(
    key: IdentityKey,
    federation: str,
    role: Role,
    name: str,
    dns_names: tuple[str, ...] = (),
    ip_addresses: tuple[str, ...] = (),
) -> bytes:
    """A certificate request (PKCS#10 PEM) for `key`, which proves that its maker holds the private key.

    Raises:
        ConfigurationError: a bad name; addresses for another role than coordinator, or none for it.
    """
    _check_name(federation, "federation")
    _check_name(name, role.value)
    fault = _address_fault(role, dns_names, ip_addresses)
    if fault:
        raise ConfigurationError(fault, remedy="Give --dns or --ip for the coordinator, and for nobody else.")
    for host in dns_names:
        if not _HOST.fullmatch(host):
            raise ConfigurationError(f"{host!r} is not a host name.", remedy="Use a plain name without wildcards.")
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_subject(federation, role, name))
        .add_extension(_uris(identity_uri(federation, role, name), dns_names, ip_addresses), critical=False)
        .sign(key.private_key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def inspect_request(csr: bytes) -> RequestedIdentity:
    """Reads a certificate request and verifies that its maker holds the private key.

    Raises:
        RequestRefusedError: not a request, no proof of possession, another kind of key, not one identity.
    """
    try:
        request = x509.load_pem_x509_csr(csr)
        proven = request.is_signature_valid
        key = request.public_key()
        extensions = request.extensions
    except UNREADABLE:
        raise _refused("this is not a certificate request in PEM form.") from None
    if not proven:
        raise _refused("the request is not signed by its own key: its maker may not hold that key.")
    if not is_p256(key):
        raise _refused("the request is for another kind of key than ECDSA P-256.")
    try:
        federation, role, name, dns_names, ip_addresses = names_of(extensions)
    except CertificateIdentityError as error:
        raise _refused(error.message) from None
    fault = _address_fault(role, dns_names, ip_addresses)
    if fault:
        raise _refused(fault)
    return RequestedIdentity(federation, role, name, compressed_point(key), dns_names, ip_addresses)


def sign_request(
    ca_key: bytes, ca_cert: bytes, csr: bytes, now: datetime, days: int, *, role: Role, name: str
) -> bytes:
    """Signs a certificate request, if it asks for exactly what the authority says it approves.

    Nothing is copied from the request but its public key and, for a coordinator, its addresses.

    Args:
        ca_key: the authority's private key, PEM.
        ca_cert: the authority's certificate, PEM; its federation is the one that is approved.
        csr: the request, PEM.
        now: when the certificate begins (timezone-aware).
        days: its validity; it may not outlive the authority.
        role: the approved role.
        name: the approved name.

    Returns:
        The certificate, PEM.

    Raises:
        RequestRefusedError: see `inspect_request`; or another federation, role or name than approved.
        ConfigurationError: the key is not the authority's, or `days` is out of range.
        CertificateError: `ca_cert` is not a valid authority now.
    """
    now, lifetime = as_utc(now), _lifetime(days)
    authority = load_authority(ca_cert, now)
    signer = IdentityKey.from_pem(ca_key)
    if compressed_point(p256_key(authority)) != signer.public:
        raise ConfigurationError(
            "the authority's key and certificate do not belong together.",
            remedy="Use the two files that one `consilium pki init` wrote.",
        )
    wanted = inspect_request(csr)
    federation = federation_of_authority(ca_cert)
    asked = identity_uri(wanted.federation, wanted.role, wanted.name)
    approved = identity_uri(federation, role, name)
    if asked != approved:
        raise _refused(f"the request asks for {asked}, but {approved} is approved.")
    if now + lifetime > authority.not_valid_after_utc:
        raise ConfigurationError(
            f"{days} days would outlive the authority's own certificate.",
            remedy=f"Ask for {(authority.not_valid_after_utc - now).days} days at most.",
        )
    usage = ExtendedKeyUsageOID.SERVER_AUTH if role is Role.COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), wanted.public)
    begin = max(now - BACKDATE, authority.not_valid_before_utc)
    builder = (
        _builder(public_key, _subject(federation, role, name), authority.subject, begin, now + lifetime)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(_uris(approved, wanted.dns_names, wanted.ip_addresses), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.private_key.public_key()),
            critical=False,
        )
    )
    certificate = builder.sign(signer.private_key, hashes.SHA256())
    while not has_one_encoding(certificate):  # half of all signatures; see `has_one_encoding` for the attack
        certificate = builder.sign(signer.private_key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def _address_fault(role: Role, dns_names: tuple[str, ...], ip_addresses: tuple[str, ...]) -> str:
    """What is wrong with the addresses of a request; empty if nothing."""
    if role is Role.COORDINATOR:
        return "" if dns_names or ip_addresses else "a coordinator's certificate needs a host name or an IP address."
    return (
        f"a certificate of the role {role.value} carries no host names or IP addresses."
        if (dns_names or ip_addresses)
        else ""
    )


def _builder(
    key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _subject(federation: str, role: Role, name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _uris(uri: str, dns_names: tuple[str, ...] = (), ip_addresses: tuple[str, ...] = ()) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    names += [x509.DNSName(host) for host in dns_names]
    for address in ip_addresses:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(address)))
        except ValueError:
            raise ConfigurationError(
                f"{address!r} is not an IP address.", remedy="Write it as 192.0.2.7 or 2001:db8::7."
            ) from None
    return x509.SubjectAlternativeName(names)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _check_name(name: str, what: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigurationError(
            f"the {what}'s name {name!r} is not a legal name.",
            remedy="Use 1 to 63 lower-case letters, digits, '-' and '_', beginning with a letter or digit.",
        )


def _lifetime(days: int) -> timedelta:
    if not 1 <= days <= 36500:
        raise ConfigurationError(f"{days} days is not a validity.", remedy="Use 1 to 36500 days.")
    return timedelta(days=days)


def _refused(message: str) -> RequestRefusedError:
    return RequestRefusedError(
        message,
        remedy="Have the party make its request again with `consilium pki issue`, and compare role and name.",
    )
