"""Reads and checks certificates: bytes in, a trusted identity or a typed error out (DESIGN.md, "Identity").

Who a party is stands in exactly one URI of the subject alternative name, `consilium://<federation>/<role>/<name>`;
what it may do in TLS stands in the extended key usage: institutions and operators are clients, the
coordinator is a server. Every key is ECDSA P-256: gRPC's TLS offers no Ed25519, and a federation of ECDSA
certificates leaves TLS 1.2 without a shared cipher (see `security.tls`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, TypeGuard

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID

from security.certificate_errors import (
    CertificateExpiredError,
    CertificateIdentityError,
    CertificateNotYetValidError,
    CertificateRevokedError,
    ForeignAuthorityError,
    MalformedCertificateError,
    WrongFederationError,
    WrongKeyKindError,
    WrongRoleError,
)
from security.errors import ConfigurationError, LocalMisuseError
from security.signing import P256_ORDER, compressed_point

SCHEME: Final = "consilium://"
NAME_PATTERN: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ISSUE_AGAIN: Final = "Make a request with `consilium pki issue` and have the authority sign it again."
_USE_AUTHORITY: Final = "Use the ca.pem that `consilium pki init` wrote for this federation."
# Everything that `cryptography` raises for what it cannot read; other exceptions would be faults of ours.
UNREADABLE: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


class Role(StrEnum):
    """What a certificate lets its holder be."""

    INSTITUTION = "institution"
    COORDINATOR = "coordinator"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate says its holder is. Says nothing about trust unless `check_certificate` returned it.

    `fingerprint` is the SHA-256 of the DER form in lower-case hex, `public` the 33-byte compressed point;
    times are UTC.
    """

    federation: str
    role: Role
    name: str
    fingerprint: str
    public: bytes
    not_before: datetime
    not_after: datetime
    dns_names: tuple[str, ...]
    ip_addresses: tuple[str, ...]

    @property
    def uri(self) -> str:
        """`consilium://<federation>/<role>/<name>`."""
        return identity_uri(self.federation, self.role, self.name)

    def seconds_left(self, now: datetime) -> float:
        """Seconds until the certificate expires; negative afterwards."""
        return (self.not_after - as_utc(now)).total_seconds()


@dataclass(frozen=True, slots=True)
class Authority:
    """What an authority's certificate says of itself; the fields are those of `Identity`."""

    federation: str
    fingerprint: str
    public: bytes
    not_before: datetime
    not_after: datetime


def identity_uri(federation: str, role: Role, name: str) -> str:
    """The one URI that names a party."""
    return f"{SCHEME}{federation}/{role.value}/{name}"


def identity_of(cert_pem: bytes) -> Identity:
    """Reads who a certificate names, without trusting it: `check_certificate` is what trusts.

    Raises:
        MalformedCertificateError, WrongKeyKindError, CertificateIdentityError: as their names say.
    """
    return _identity(load_certificate(cert_pem))


def authority_of(ca_cert_pem: bytes) -> Authority:
    """Reads an authority's certificate, without regard to the time.

    Raises:
        MalformedCertificateError, ForeignAuthorityError, WrongKeyKindError, CertificateIdentityError: not one that
            `create_authority` made.
    """
    certificate = load_certificate(ca_cert_pem)
    _require_authority(certificate)
    uris = _alternative_names(certificate.extensions).get_values_for_type(x509.UniformResourceIdentifier)
    federation = uris[0].removeprefix(SCHEME) if len(uris) == 1 and uris[0].startswith(SCHEME) else ""
    if not NAME_PATTERN.fullmatch(federation):
        raise CertificateIdentityError("the authority's certificate names no federation.", remedy=_USE_AUTHORITY)
    return Authority(
        federation=federation,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        public=compressed_point(p256_key(certificate)),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
    )


def federation_of_authority(ca_cert_pem: bytes) -> str:
    """The federation that an authority's certificate was made for; raises as `authority_of`."""
    return authority_of(ca_cert_pem).federation


def check_certificate(
    cert_pem: bytes,
    ca_cert_pem: bytes,
    now: datetime,
    *,
    revoked: frozenset[str],
    expected_role: Role | None,
    expected_federation: str,
) -> Identity:
    """Decides whether a certificate is a valid member's, now.

    Args:
        cert_pem: the certificate, PEM, one and no chain.
        ca_cert_pem: the federation's authority, PEM.
        now: timezone-aware.
        revoked: fingerprints from `parse_revocations`.
        expected_role: the role that is needed here; None for any.
        expected_federation: the federation's name.

    Returns:
        The identity, which may now be trusted.

    Raises:
        CertificateError: one subclass per reason; once the authority signed it, `culprits` names the party.
    """
    now = as_utc(now)
    authority = load_authority(ca_cert_pem, now)
    certificate = load_certificate(cert_pem)
    try:
        certificate.verify_directly_issued_by(authority)
    except (*UNREADABLE, TypeError, InvalidSignature):
        raise ForeignAuthorityError(
            "the certificate was not signed by this federation's authority.",
            remedy="Have the federation's authority sign a request with `consilium pki sign`, "
            "and give every party that authority's certificate.",
        ) from None
    if not has_one_encoding(certificate):
        raise MalformedCertificateError(
            "the authority's signature is not in its one allowed encoding.",
            remedy="Have the authority sign the request again with `consilium pki sign`.",
        )
    if not isinstance(certificate.signature_hash_algorithm, hashes.SHA256):
        raise WrongKeyKindError("the certificate was not signed with SHA-256.", remedy=_ISSUE_AGAIN)
    _check_time(certificate, now, "the certificate")
    identity = _identity(certificate)
    who = (identity.name,)
    if identity.fingerprint in revoked:
        raise CertificateRevokedError(
            f"the certificate of {identity.uri} is revoked.",
            remedy="Make a new key and request with `consilium pki issue`, and have the authority sign it.",
            culprits=who,
        )
    if identity.federation != expected_federation:
        raise WrongFederationError(
            f"the certificate is for the federation {identity.federation!r}, not {expected_federation!r}.",
            remedy=_ISSUE_AGAIN,
            culprits=who,
        )
    if expected_role is not None and identity.role is not expected_role:
        raise WrongRoleError(
            f"the certificate is for the role {identity.role.value}; {expected_role.value} is needed here.",
            remedy="Use the certificate that was made for this role.",
            culprits=who,
        )
    if not _usage_fits(certificate, identity.role):
        raise WrongRoleError(
            f"the certificate's key usage does not fit the role {identity.role.value}.",
            remedy=_ISSUE_AGAIN,
            culprits=who,
        )
    return identity


def parse_revocations(text: str, place: str = "revocations") -> frozenset[str]:
    """Reads a revocation list: one SHA-256 fingerprint a line, `#` comments; colons and capitals are fine.

    Raises:
        ConfigurationError: a line is not a fingerprint; the error names `place` and the line.
    """
    found = set()
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        fingerprint = entry.replace(":", "").lower()
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ConfigurationError(
                "this line is not a certificate fingerprint.",
                remedy="Write 64 hexadecimal digits, as `consilium pki show` prints them, or a # comment.",
                place=f"{place}, line {number}",
            )
        found.add(fingerprint)
    return frozenset(found)


def load_certificate(pem: bytes) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for certificate in certificates:  # these are parsed lazily: damage shows here, and not later
            _ = certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE:
        certificates = []
    if len(certificates) != 1:
        raise MalformedCertificateError(
            "this is not exactly one certificate in PEM form.",
            remedy="Use the file that `consilium pki sign` wrote, one certificate and no chain.",
        )
    return certificates[0]


def has_one_encoding(certificate: x509.Certificate) -> bool:
    """Whether the signature is low-s, minimal DER, in whole bytes.

    ECDSA takes (r, s) and (r, order - s) alike: with both allowed, a revoked party could rewrite its
    certificate into a valid one that has another fingerprint.
    """
    signature = certificate.signature
    try:
        r, s = decode_dss_signature(signature)
    except ValueError:
        return False
    return (
        s <= P256_ORDER // 2
        and encode_dss_signature(r, s) == signature
        and certificate.public_bytes(serialization.Encoding.DER).endswith(b"\0" + signature)  # no unused bits
    )


def load_authority(pem: bytes, now: datetime) -> x509.Certificate:
    """An authority's certificate that is valid now, or a CertificateError."""
    authority = load_certificate(pem)
    _require_authority(authority)
    _check_time(authority, now, "the authority's certificate")
    return authority


def _require_authority(certificate: x509.Certificate) -> None:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
        is_authority = constraints.ca and usage.key_cert_sign
    except x509.ExtensionNotFound:
        is_authority = False
    if not is_authority:
        raise ForeignAuthorityError("this is not the certificate of an authority.", remedy=_USE_AUTHORITY)
    p256_key(certificate)


def _check_time(certificate: x509.Certificate, now: datetime, what: str) -> None:
    if now < certificate.not_valid_before_utc:
        raise CertificateNotYetValidError(
            f"{what} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC.",
            remedy="Set this machine's clock (NTP); if it is right, the authority's was wrong.",
        )
    if now > certificate.not_valid_after_utc:
        raise CertificateExpiredError(
            f"{what} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC.", remedy=_ISSUE_AGAIN
        )


def _identity(certificate: x509.Certificate) -> Identity:
    public = compressed_point(p256_key(certificate))
    federation, role, name, dns_names, ip_addresses = names_of(certificate.extensions)
    return Identity(
        federation=federation,
        role=role,
        name=name,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        public=public,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        dns_names=dns_names,
        ip_addresses=ip_addresses,
    )


def names_of(extensions: x509.Extensions) -> tuple[str, Role, str, tuple[str, ...], tuple[str, ...]]:
    """Federation, role, name, host names, addresses; CertificateIdentityError unless exactly one party."""
    names = _alternative_names(extensions)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise CertificateIdentityError(f"it names {len(uris)} parties, and must name exactly one.", remedy=_ISSUE_AGAIN)
    parts = uris[0].removeprefix(SCHEME).split("/")
    known = {role.value for role in Role}
    if not (
        uris[0].startswith(SCHEME)
        and len(parts) == 3
        and NAME_PATTERN.fullmatch(parts[0])
        and parts[1] in known
        and NAME_PATTERN.fullmatch(parts[2])
    ):
        raise CertificateIdentityError(
            "its identity does not read `consilium://<federation>/<role>/<name>`.", remedy=_ISSUE_AGAIN
        )
    hosts = tuple(names.get_values_for_type(x509.DNSName))
    addresses = tuple(str(address) for address in names.get_values_for_type(x509.IPAddress))
    return parts[0], Role(parts[1]), parts[2], hosts, addresses


def _alternative_names(extensions: x509.Extensions) -> x509.SubjectAlternativeName:
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise CertificateIdentityError("it names no party.", remedy=_ISSUE_AGAIN) from None


def _usage_fits(certificate: x509.Certificate, role: Role) -> bool:
    try:
        usage = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return False
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if role is Role.COORDINATOR else ExtendedKeyUsageOID.CLIENT_AUTH
    return usage == {wanted} and not constraints.ca


def is_p256(key: object) -> TypeGuard[ec.EllipticCurvePublicKey]:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def p256_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    try:
        key: object = certificate.public_key()
    except UNREADABLE:
        key = None
    if not is_p256(key):
        raise WrongKeyKindError("the certificate's key is not ECDSA P-256.", remedy=_ISSUE_AGAIN)
    return key


def as_utc(now: datetime) -> datetime:
    if now.tzinfo is None:
        raise LocalMisuseError("`now` has no time zone.", remedy="Pass datetime.now(UTC).")
    return now.astimezone(UTC)
