"""Certificates: what is issued passes, and every way of not belonging has its own error."""

from __future__ import annotations

import base64
import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from security.certificates import has_one_encoding
from security.errors import ConfigurationError, LocalMisuseError
from security.pki import (
    CertificateError,
    CertificateExpiredError,
    CertificateIdentityError,
    CertificateNotYetValidError,
    CertificateRevokedError,
    ForeignAuthorityError,
    MalformedCertificateError,
    RequestRefusedError,
    Role,
    WrongFederationError,
    WrongKeyKindError,
    WrongRoleError,
    check_certificate,
    create_authority,
    create_request,
    federation_of_authority,
    identity_of,
    inspect_request,
    parse_revocations,
    sign_request,
)
from security.signing import IdentityKey

NOW = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
CA_KEY, CA = create_authority("tcga", NOW, 3650)
KEY = IdentityKey.generate()
NONE: frozenset[str] = frozenset()


def issue(
    role: Role = Role.INSTITUTION, name: str = "brca-1", *, key: IdentityKey = KEY, now: dt.datetime = NOW
) -> bytes:
    hosts = ("localhost",) if role is Role.COORDINATOR else ()
    addresses = ("127.0.0.1",) if role is Role.COORDINATOR else ()
    csr = create_request(key, "tcga", role, name, hosts, addresses)
    return sign_request(CA_KEY, CA, csr, now, 90, role=role, name=name)


def handmade(
    uris: tuple[str, ...] = ("consilium://tcga/institution/brca-1",),
    *,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY.private_key,
    usage: x509.ObjectIdentifier | None = ExtendedKeyUsageOID.CLIENT_AUTH,
    ca: bool = False,
    digest: hashes.SHA256 | hashes.SHA384 | None = None,
    signer: bytes = CA_KEY,
) -> bytes:
    """A certificate that the real authority would never make, signed by it all the same."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "brca-1")]))
        .issuer_name(x509.load_pem_x509_certificate(CA).subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + 90 * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    secret = IdentityKey.from_pem(signer).private_key
    certificate = builder.sign(secret, digest or hashes.SHA256())
    while not has_one_encoding(certificate):
        certificate = builder.sign(secret, digest or hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def check(cert: bytes, *, ca: bytes = CA, now: dt.datetime = NOW, revoked: frozenset[str] = NONE) -> object:
    return check_certificate(cert, ca, now, revoked=revoked, expected_role=Role.INSTITUTION, expected_federation="tcga")


@pytest.mark.parametrize("role", list(Role))
def test_what_the_authority_signs_passes_as_what_was_asked_for(role: Role) -> None:
    cert = issue(role, "party-1")
    identity = check_certificate(cert, CA, NOW, revoked=NONE, expected_role=role, expected_federation="tcga")
    assert identity == identity_of(cert)
    assert (identity.federation, identity.role, identity.name) == ("tcga", role, "party-1")
    assert identity.uri == f"consilium://tcga/{role.value}/party-1"
    assert identity.public == KEY.public
    assert identity.fingerprint == x509.load_pem_x509_certificate(cert).fingerprint(hashes.SHA256()).hex()
    assert identity.dns_names == (("localhost",) if role is Role.COORDINATOR else ())
    assert identity.ip_addresses == (("127.0.0.1",) if role is Role.COORDINATOR else ())
    assert identity.seconds_left(NOW) == 90 * 86400
    assert check_certificate(cert, CA, NOW, revoked=NONE, expected_role=None, expected_federation="tcga")


@pytest.mark.parametrize("role", list(Role))
def test_the_extended_key_usage_is_of_one_kind(role: Role) -> None:
    extensions = x509.load_pem_x509_certificate(issue(role)).extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    server = role is Role.COORDINATOR
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_authority_cannot_make_further_authorities() -> None:
    authority = x509.load_pem_x509_certificate(CA)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert federation_of_authority(CA) == "tcga"


def test_renewal_with_the_same_key_keeps_the_identity() -> None:
    old, new = identity_of(issue()), identity_of(issue(now=NOW + 60 * DAY))
    assert (old.uri, old.public) == (new.uri, new.public)
    assert old.fingerprint != new.fingerprint
    assert new.not_after - old.not_after == 60 * DAY


class TestRefusedCertificates:
    def test_foreign_authority_of_the_same_name(self) -> None:
        other_key, other = create_authority("tcga", NOW, 3650)
        with pytest.raises(ForeignAuthorityError):
            check(issue(), ca=other)
        with pytest.raises(ForeignAuthorityError):
            check(handmade(signer=other_key))

    def test_a_member_is_no_authority(self) -> None:
        with pytest.raises(ForeignAuthorityError, match="not the certificate of an authority"):
            check(issue(), ca=issue())

    def test_expired(self) -> None:
        assert check(issue(), now=NOW + 90 * DAY)
        with pytest.raises(CertificateExpiredError, match="2025-05-30"):
            check(issue(), now=NOW + 90 * DAY + dt.timedelta(seconds=1))

    def test_not_yet_valid_but_five_minutes_of_clock_difference_are_fine(self) -> None:
        cert = issue(now=NOW + DAY)
        assert check(cert, now=NOW + DAY - dt.timedelta(minutes=5))
        with pytest.raises(CertificateNotYetValidError) as caught:
            check(cert, now=NOW + DAY - dt.timedelta(minutes=6))
        assert "clock" in caught.value.remedy

    def test_the_authority_expired(self) -> None:
        with pytest.raises(CertificateExpiredError, match="authority"):
            check(issue(), now=NOW + 3651 * DAY)

    def test_revoked(self) -> None:
        cert = issue()
        with pytest.raises(CertificateRevokedError) as caught:
            check(cert, revoked=frozenset({identity_of(cert).fingerprint}))
        assert caught.value.culprits == ("brca-1",)

    @pytest.mark.parametrize("role", [Role.COORDINATOR, Role.OPERATOR])
    def test_wrong_role(self, role: Role) -> None:
        with pytest.raises(WrongRoleError, match=role.value):
            check(issue(role))

    @pytest.mark.parametrize("usage", [ExtendedKeyUsageOID.SERVER_AUTH, None])
    def test_usage_that_does_not_fit_the_role(self, usage: x509.ObjectIdentifier | None) -> None:
        with pytest.raises(WrongRoleError, match="usage"):
            check(handmade(usage=usage))

    def test_a_member_that_could_sign_others(self) -> None:
        with pytest.raises(WrongRoleError, match="usage"):
            check(handmade(ca=True))

    def test_wrong_federation(self) -> None:
        with pytest.raises(WrongFederationError):
            check(handmade(("consilium://other/institution/brca-1",)))

    @pytest.mark.parametrize(
        "uris",
        [
            (),
            ("consilium://tcga/institution/brca-1", "consilium://tcga/institution/brca-2"),
            ("consilium://tcga/institution/brca-1", "https://example.org"),
            ("https://tcga/institution/brca-1",),
            ("consilium://tcga/authority/brca-1",),
            ("consilium://tcga/institution/BRCA",),
            ("consilium://tcga/institution/brca-1/x",),
            ("consilium://tcga/institution/",),
            ("consilium:///institution/brca-1",),
            ("xconsilium://tcga/institution/brca-1",),
        ],
    )
    def test_missing_duplicate_or_malformed_identity(self, uris: tuple[str, ...]) -> None:
        with pytest.raises(CertificateIdentityError):
            check(handmade(uris))

    @pytest.mark.parametrize(
        "key",
        [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
        ids=["p384", "rsa"],
    )
    def test_wrong_key_kind(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        with pytest.raises(WrongKeyKindError):
            check(handmade(key=key))

    def test_wrong_digest(self) -> None:
        with pytest.raises(WrongKeyKindError, match="SHA-256"):
            check(handmade(digest=hashes.SHA384()))

    @pytest.mark.parametrize("pem", [b"", b"hello", issue()[:-80], issue() + CA, KEY.to_pem()])
    def test_malformed(self, pem: bytes) -> None:
        with pytest.raises(MalformedCertificateError):
            check(pem)

    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_a_changed_bit_is_never_accepted_and_never_another_error(self, data: st.DataObject) -> None:
        der = x509.load_pem_x509_certificate(CERT).public_bytes(serialization.Encoding.DER)
        bit = data.draw(st.integers(0, 8 * len(der) - 1))
        changed = bytearray(der)
        changed[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(CertificateError):
            check(pem_of(bytes(changed)))

    def test_every_reason_has_its_own_code_and_a_remedy(self) -> None:
        codes = [kind.code for kind in CertificateError.__subclasses__()]
        assert len(codes) == len(set(codes)) >= 10
        with pytest.raises(CertificateError) as caught:
            check(b"")
        assert caught.value.remedy

    def test_a_naive_time_is_our_own_mistake(self) -> None:
        with pytest.raises(LocalMisuseError):
            check(issue(), now=dt.datetime(2025, 3, 1))  # that is the point


CERT = issue()
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def test_a_revoked_certificate_cannot_be_rewritten_into_another_valid_one() -> None:
    certificate = x509.load_pem_x509_certificate(CERT)
    certificate_der = certificate.public_bytes(serialization.Encoding.DER)
    r, s = decode_dss_signature(certificate.signature)
    mirrored = encode_dss_signature(r, ORDER - s)
    # SEQUENCE { tbs, algorithm, BIT STRING }: only the last part and the lengths around it change
    head = certificate_der[4 : -len(certificate.signature) - 3]
    body = head + b"\x03" + bytes([len(mirrored) + 1]) + b"\0" + mirrored
    rewritten = pem_of(b"\x30\x82" + len(body).to_bytes(2, "big") + body)
    x509.load_pem_x509_certificate(rewritten).verify_directly_issued_by(x509.load_pem_x509_certificate(CA))
    with pytest.raises(MalformedCertificateError, match="encoding"):
        check(rewritten)


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(der) + b"-----END CERTIFICATE-----\n"


class TestRequests:
    def test_a_request_says_what_it_asks_for(self) -> None:
        csr = create_request(KEY, "tcga", Role.COORDINATOR, "hub", ("hub.example.org",), ("2001:db8::7",))
        wanted = inspect_request(csr)
        assert (wanted.federation, wanted.role, wanted.name) == ("tcga", Role.COORDINATOR, "hub")
        assert wanted.public == KEY.public
        assert (wanted.dns_names, wanted.ip_addresses) == (("hub.example.org",), ("2001:db8::7",))

    @pytest.mark.parametrize(
        ("federation", "role", "name"),
        [
            ("other", Role.INSTITUTION, "brca-1"),
            ("tcga", Role.OPERATOR, "brca-1"),
            ("tcga", Role.INSTITUTION, "brca-2"),
        ],
    )
    def test_another_identity_than_approved_is_refused(self, federation: str, role: Role, name: str) -> None:
        csr = create_request(KEY, federation, role, name)
        with pytest.raises(RequestRefusedError, match=r"asks for consilium://.* is approved"):
            sign_request(CA_KEY, CA, csr, NOW, 90, role=Role.INSTITUTION, name="brca-1")

    def test_proof_of_possession(self) -> None:
        mine = x509.load_pem_x509_csr(create_request(KEY, "tcga", Role.INSTITUTION, "brca-1"))
        other = x509.load_pem_x509_csr(create_request(IdentityKey.generate(), "tcga", Role.INSTITUTION, "brca-1"))
        der = mine.public_bytes(serialization.Encoding.DER)
        forged = der[: -len(mine.signature)] + other.signature
        if len(mine.signature) != len(other.signature):
            forged = der[:-1] + bytes([der[-1] ^ 1])
        pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(forged)
        pem += b"-----END CERTIFICATE REQUEST-----\n"
        with pytest.raises(RequestRefusedError, match="signed by its own key"):
            sign_request(CA_KEY, CA, pem, NOW, 90, role=Role.INSTITUTION, name="brca-1")

    @pytest.mark.parametrize(
        "key",
        [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
        ids=["p384", "rsa"],
    )
    def test_other_keys_are_refused(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> None:
        with pytest.raises(RequestRefusedError, match="P-256"):
            inspect_request(raw_request(["consilium://tcga/institution/brca-1"], key=key))

    @pytest.mark.parametrize("uris", [[], ["consilium://tcga/institution/a", "consilium://tcga/institution/b"]])
    def test_not_exactly_one_identity(self, uris: list[str]) -> None:
        with pytest.raises(RequestRefusedError):
            inspect_request(raw_request(uris))

    def test_host_names_only_for_the_coordinator(self) -> None:
        with pytest.raises(ConfigurationError, match="no host names"):
            create_request(KEY, "tcga", Role.INSTITUTION, "brca-1", ("localhost",))
        with pytest.raises(RequestRefusedError, match="no host names"):
            inspect_request(raw_request(["consilium://tcga/institution/brca-1"], host="localhost"))
        with pytest.raises(ConfigurationError, match="needs a host name"):
            create_request(KEY, "tcga", Role.COORDINATOR, "hub")
        with pytest.raises(RequestRefusedError, match="needs a host name"):
            inspect_request(raw_request(["consilium://tcga/coordinator/hub"]))

    def test_extensions_of_a_request_are_not_taken_over(self) -> None:
        csr = raw_request(["consilium://tcga/institution/brca-1"], ca=True)
        cert = sign_request(CA_KEY, CA, csr, NOW, 90, role=Role.INSTITUTION, name="brca-1")
        extensions = x509.load_pem_x509_certificate(cert).extensions
        assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert check(cert)

    @pytest.mark.parametrize("csr", [b"", b"hello", CA])
    def test_malformed_requests(self, csr: bytes) -> None:
        with pytest.raises(RequestRefusedError, match="not a certificate request"):
            inspect_request(csr)

    @pytest.mark.parametrize("name", ["", "Brca", "-a", "a" * 64, "a b", "a/b", "ä", "a\n"])
    def test_names(self, name: str) -> None:
        with pytest.raises(ConfigurationError):
            create_request(KEY, "tcga", Role.INSTITUTION, name)
        with pytest.raises(ConfigurationError):
            create_request(KEY, name, Role.INSTITUTION, "brca-1")
        with pytest.raises(ConfigurationError):
            create_authority(name, NOW, 1)

    @pytest.mark.parametrize(("hosts", "addresses"), [(("*.example.org",), ()), (("a..b",), ()), ((), ("1.2.3",))])
    def test_bad_addresses(self, hosts: tuple[str, ...], addresses: tuple[str, ...]) -> None:
        with pytest.raises(ConfigurationError):
            create_request(KEY, "tcga", Role.COORDINATOR, "hub", hosts, addresses)

    def test_the_authority_key_must_be_the_authoritys(self) -> None:
        other_key, _ = create_authority("tcga", NOW, 10)
        csr = create_request(KEY, "tcga", Role.INSTITUTION, "brca-1")
        with pytest.raises(ConfigurationError, match="belong together"):
            sign_request(other_key, CA, csr, NOW, 90, role=Role.INSTITUTION, name="brca-1")

    @pytest.mark.parametrize("days", [0, -1, 4000, 10**9])
    def test_validity_is_bounded_by_the_authoritys(self, days: int) -> None:
        csr = create_request(KEY, "tcga", Role.INSTITUTION, "brca-1")
        with pytest.raises(ConfigurationError, match="days"):
            sign_request(CA_KEY, CA, csr, NOW, days, role=Role.INSTITUTION, name="brca-1")

    def test_a_member_cannot_sign(self) -> None:
        csr = create_request(KEY, "tcga", Role.INSTITUTION, "brca-2")
        with pytest.raises(ForeignAuthorityError):
            sign_request(KEY.to_pem(), CERT, csr, NOW, 30, role=Role.INSTITUTION, name="brca-2")


def raw_request(
    uris: list[str],
    *,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY.private_key,
    host: str = "",
    ca: bool = False,
) -> bytes:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(host)] if host else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_revocations() -> None:
    one, two = "ab" * 32, "0" * 64
    colons = ":".join(["AB"] * 32)
    assert parse_revocations(f"# list\n\n{one}  # brca-1 lost its laptop\n{colons}\n{two}\n") == {one, two}
    assert parse_revocations("") == frozenset()
    for bad in (one[:-1], one + "0", "brca-1", "g" * 64):
        with pytest.raises(ConfigurationError, match=r"revoked\.txt, line 3") as caught:
            parse_revocations(f"# list\n{one}\n{bad}\n", "revoked.txt")
        assert caught.value.remedy
