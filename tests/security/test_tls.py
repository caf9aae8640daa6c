"""TLS files are checked before use and reloaded on change; handshakes on real sockets accept members only."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from security.errors import ConfigurationError, ConsiliumError
from security.pki import (
    CertificateExpiredError,
    CertificateRevokedError,
    ForeignAuthorityError,
    MalformedCertificateError,
    Role,
    WrongRoleError,
    create_authority,
    create_request,
    identity_of,
    sign_request,
)
from security.signing import IdentityKey, verify
from security.tls import (
    CIPHER_SUITES,
    CIPHER_VARIABLE,
    KeyMismatchError,
    KeyPermissionError,
    ReloadingTls,
    TlsEnvironmentError,
    TlsFileError,
    TlsFiles,
    key_mode_is_safe,
    load,
    require_tls13_environment,
)

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)  # handshakes go by the real clock
DAY = dt.timedelta(days=1)
CA_KEY, CA = create_authority("tcga", NOW, 3650)
OTHER_CA_KEY, OTHER_CA = create_authority("tcga", NOW, 3650)


class Party:
    """A folder with a party's files, as `consilium pki` leaves it."""

    def __init__(
        self,
        folder: Path,
        role: Role = Role.INSTITUTION,
        name: str = "brca-1",
        *,
        ca: tuple[bytes, bytes] = (CA_KEY, CA),
    ) -> None:
        folder.mkdir()
        self.role, self.name, self.ca = role, name, ca
        self.key = IdentityKey.generate()
        self.files = TlsFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem", folder / "revoked.txt")
        self.files.key.touch(0o600)
        self.files.key.write_bytes(self.key.to_pem())
        self.files.authority.write_bytes(ca[1])
        self.revocations.write_text("# nobody\n")
        self.renew(NOW)

    @property
    def revocations(self) -> Path:
        assert self.files.revocations is not None
        return self.files.revocations

    def renew(self, now: dt.datetime, days: int = 90) -> bytes:
        hosts = ("localhost",) if self.role is Role.COORDINATOR else ()
        csr = create_request(self.key, "tcga", self.role, self.name, hosts)
        certificate = sign_request(*self.ca, csr, now, days, role=self.role, name=self.name)
        replace(self.files.certificate, certificate)
        return certificate


def replace(path: Path, content: bytes) -> None:
    """Replaces a file as deployment tools do: a new inode, so that even a coarse clock shows the change."""
    new = path.with_suffix(".new")
    new.touch(0o600)
    new.write_bytes(content)
    new.rename(path)


@pytest.fixture
def party(tmp_path: Path) -> Party:
    return Party(tmp_path / "brca-1")


def test_good_files_load(party: Party) -> None:
    material = load(party.files, NOW, expected_role=Role.INSTITUTION)
    assert material.identity == identity_of(party.files.certificate.read_bytes())
    assert material.federation == "tcga"
    assert material.authority == CA
    assert material.revoked == frozenset()
    verify(material.identity.public, "keys", b"x", material.identity_key().sign("keys", b"x"))
    assert load(TlsFiles(party.files.certificate, party.files.key, party.files.authority), NOW).revoked == frozenset()


def test_seconds_left_go_by_the_first_to_expire(party: Party) -> None:
    material = load(party.files, NOW)
    assert material.seconds_left(NOW) == 90 * 86400
    assert material.seconds_left(NOW + 91 * DAY) == -86400
    assert load(party.files, NOW).issuer.not_after == NOW + 3650 * DAY


def test_the_key_is_not_printed(party: Party) -> None:
    secret = party.files.key.read_text().splitlines()[1]
    assert secret not in repr(load(party.files, NOW))


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o601])
def test_an_open_key_is_refused_with_the_command_that_mends_it(party: Party, mode: int) -> None:
    party.files.key.chmod(mode)
    with pytest.raises(KeyPermissionError) as caught:
        load(party.files, NOW)
    assert caught.value.place == str(party.files.key)
    assert caught.value.remedy == f"Run `chmod 600 {party.files.key}`."
    party.files.key.chmod(0o400)
    assert load(party.files, NOW)


def test_a_mounted_secret_of_root_may_be_readable_by_its_group() -> None:
    assert key_mode_is_safe(0o100440, owner=0, reader=1000)
    assert not key_mode_is_safe(0o100444, owner=0, reader=1000)
    assert not key_mode_is_safe(0o100460, owner=0, reader=1000)
    assert not key_mode_is_safe(0o100440, owner=1000, reader=1000)
    assert not key_mode_is_safe(0o100440, owner=0, reader=0)
    assert key_mode_is_safe(0o100600, owner=1000, reader=1000)


@pytest.mark.parametrize("which", range(4))
def test_missing_and_unreadable_files_are_named(party: Party, which: int) -> None:
    path = party.files.paths()[which]
    path.unlink()
    with pytest.raises(TlsFileError, match="does not exist") as caught:
        load(party.files, NOW)
    assert caught.value.place == str(path)
    path.mkdir()
    with pytest.raises(TlsFileError) as caught:
        load(party.files, NOW)
    assert caught.value.place == str(path)


def test_a_huge_file_is_refused(party: Party) -> None:
    with party.revocations.open("wb") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(TlsFileError, match="4 MiB"):
        load(party.files, NOW)


def test_key_of_another_certificate(party: Party) -> None:
    replace(party.files.key, IdentityKey.generate().to_pem())
    with pytest.raises(KeyMismatchError) as caught:
        load(party.files, NOW)
    assert caught.value.place == str(party.files.key)


def test_certificate_faults_name_the_certificate(party: Party) -> None:
    with pytest.raises(CertificateExpiredError) as expired:
        load(party.files, NOW + 91 * DAY)
    with pytest.raises(WrongRoleError) as role:
        load(party.files, NOW, expected_role=Role.COORDINATOR)
    party.revocations.write_text(identity_of(party.files.certificate.read_bytes()).fingerprint)
    with pytest.raises(CertificateRevokedError) as revoked:
        load(party.files, NOW)
    for caught in (expired.value, role.value, revoked.value):
        assert caught.place == str(party.files.certificate)
    party.files.authority.write_bytes(OTHER_CA)
    with pytest.raises(ForeignAuthorityError):
        load(party.files, NOW)
    party.files.authority.write_bytes(party.files.certificate.read_bytes())
    with pytest.raises(ForeignAuthorityError) as authority:
        load(party.files, NOW)
    assert authority.value.place == str(party.files.authority)


def test_bad_key_and_bad_revocations_name_file_and_line(party: Party) -> None:
    party.revocations.write_text("# one\nbrca-1\n")
    with pytest.raises(ConfigurationError) as caught:
        load(party.files, NOW)
    assert caught.value.place == f"{party.revocations}, line 2"
    party.revocations.write_bytes(b"\xff\n")
    with pytest.raises(TlsFileError, match="UTF-8"):
        load(party.files, NOW)
    replace(party.files.key, b"hello")
    party.revocations.write_text("")
    with pytest.raises(ConfigurationError) as caught:
        load(party.files, NOW)
    assert caught.value.place == str(party.files.key)


def test_peers_are_checked_against_the_revocations(party: Party, tmp_path: Path) -> None:
    peer = Party(tmp_path / "peer", Role.COORDINATOR, "hub")
    certificate = peer.files.certificate.read_bytes()
    assert load(party.files, NOW).check_peer(certificate, NOW, Role.COORDINATOR).name == "hub"
    party.revocations.write_text(identity_of(certificate).fingerprint)
    with pytest.raises(CertificateRevokedError):
        load(party.files, NOW).check_peer(certificate, NOW, Role.COORDINATOR)


class TestEnvironment:
    def test_it_sets_the_variable(self) -> None:
        environ: dict[str, str] = {}
        require_tls13_environment(environ, {"sys": None})
        assert environ == {CIPHER_VARIABLE: CIPHER_SUITES}
        require_tls13_environment(environ, {"grpc": None})

    @pytest.mark.parametrize("before", [{}, {CIPHER_VARIABLE: "HIGH"}])
    def test_too_late(self, before: dict[str, str]) -> None:
        environ = dict(before)
        with pytest.raises(TlsEnvironmentError, match="before"):
            require_tls13_environment(environ, {"grpc": None})
        assert environ == before

    def test_another_value_is_replaced_in_time(self) -> None:
        environ = {CIPHER_VARIABLE: "HIGH"}
        require_tls13_environment(environ, {})
        assert environ == {CIPHER_VARIABLE: CIPHER_SUITES}


class TestReloading:
    def test_nothing_changed_gives_the_same_object(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        assert tls.current(NOW) is tls.current(NOW + DAY)

    def test_renewal(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        certificate = party.renew(NOW + DAY)
        assert tls.current(NOW + DAY).certificate == certificate
        assert tls.last_error is None

    def test_a_new_revocation_counts(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        replace(party.revocations, b"ab" * 32)
        assert tls.current(NOW).revoked == {"ab" * 32}

    def test_bad_files_keep_the_old_and_are_logged_once(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        old = tls.current(NOW)
        good = party.files.certificate.read_bytes()
        replace(party.files.certificate, good[:100])
        with capture_logs() as logs:
            assert tls.current(NOW) is old
            assert tls.current(NOW) is old
        assert [(entry["log_level"], entry["code"]) for entry in logs] == [("error", "certificate-malformed")]
        assert isinstance(tls.last_error, MalformedCertificateError)
        replace(party.files.certificate, good)
        assert tls.current(NOW).certificate == good
        assert tls.last_error is None

    def test_half_of_a_new_pair_keeps_the_old_until_the_other_half_comes(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        old = tls.current(NOW)
        party.key = IdentityKey.generate()
        certificate = party.renew(NOW)
        assert tls.current(NOW) is old
        replace(party.files.key, party.key.to_pem())
        assert tls.current(NOW).certificate == certificate

    def test_files_that_become_valid_later_are_taken_then(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        old = tls.current(NOW)
        certificate = party.renew(NOW + DAY)
        assert tls.current(NOW) is old
        assert tls.current(NOW + DAY).certificate == certificate

    def test_a_vanished_file_keeps_the_old(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        party.revocations.unlink()
        assert tls.current(NOW).identity.name == "brca-1"
        assert isinstance(tls.last_error, TlsFileError)

    def test_a_running_process_does_not_become_another_party(self, party: Party) -> None:
        tls = ReloadingTls(party.files, NOW)
        party.name = "brca-2"
        party.renew(NOW)
        assert tls.current(NOW).identity.name == "brca-1"
        assert isinstance(tls.last_error, ConsiliumError)

    def test_the_first_load_raises(self, party: Party) -> None:
        party.files.key.unlink()
        with pytest.raises(TlsFileError):
            ReloadingTls(party.files, NOW)


def handshake(
    server: Party, client: Party, *, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, ciphers: str = ""
) -> tuple[str, bytes]:
    """A mutual handshake on loopback; returns the version and the certificate (DER) that the server saw.

    Raises:
        ssl.SSLError: either side refused.
    """
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context, party in ((server_side, server), (client_side, client)):
        context.load_cert_chain(party.files.certificate, party.files.key)
        context.load_verify_locations(party.files.authority)
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = newest
        if ciphers:
            context.set_ciphers(ciphers)
    seen: list[tuple[str, bytes] | Exception] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        try:
            with server_side.wrap_socket(connection, server_side=True) as secured:
                secured.sendall(b"hello")
                seen.append((secured.version() or "", secured.getpeercert(binary_form=True) or b""))
        except OSError as error:
            seen.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        refused: Exception | None = None
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=10) as raw,
                client_side.wrap_socket(raw, server_hostname="localhost") as secured,
            ):
                assert secured.recv(5) == b"hello"  # TLS 1.3: a refusal of the client shows on its first read
        except OSError as error:
            refused = error
        thread.join(10)
    for outcome in (*seen, refused):
        if isinstance(outcome, Exception):
            raise outcome
    assert isinstance(seen[0], tuple)
    return seen[0]


class TestHandshakes:
    @pytest.fixture
    def hub(self, tmp_path: Path) -> Party:
        return Party(tmp_path / "hub", Role.COORDINATOR, "hub")

    def test_members_meet_over_tls_1_3(self, hub: Party, party: Party) -> None:
        version, der = handshake(hub, party)
        assert version == "TLSv1.3"
        identity = load(hub.files, NOW).check_peer(ssl.DER_cert_to_PEM_cert(der).encode(), NOW, Role.INSTITUTION)
        assert identity.name == "brca-1"

    def test_the_one_suite_left_to_grpc_finds_no_tls_1_2(self, hub: Party, party: Party) -> None:
        assert handshake(hub, party, newest=ssl.TLSVersion.TLSv1_2)[0] == "TLSv1.2"
        with pytest.raises(ssl.SSLError):
            handshake(hub, party, newest=ssl.TLSVersion.TLSv1_2, ciphers=CIPHER_SUITES)
        assert handshake(hub, party, ciphers=CIPHER_SUITES)[0] == "TLSv1.3"

    def test_a_foreign_client_is_refused(self, hub: Party, tmp_path: Path) -> None:
        stranger = Party(tmp_path / "stranger", ca=(OTHER_CA_KEY, OTHER_CA))
        stranger.files.authority.write_bytes(CA)  # it trusts the hub; the hub must not trust it
        with pytest.raises(ssl.SSLError):
            handshake(hub, stranger)

    def test_a_foreign_server_is_refused(self, party: Party, tmp_path: Path) -> None:
        stranger = Party(tmp_path / "stranger", Role.COORDINATOR, "hub", ca=(OTHER_CA_KEY, OTHER_CA))
        stranger.files.authority.write_bytes(CA)
        with pytest.raises(ssl.SSLError):
            handshake(stranger, party)

    def test_an_institution_cannot_play_the_server(self, party: Party, tmp_path: Path) -> None:
        with pytest.raises(ssl.SSLError):
            handshake(Party(tmp_path / "other", Role.INSTITUTION, "brca-2"), party)

    def test_a_coordinator_cannot_play_a_client(self, hub: Party, tmp_path: Path) -> None:
        with pytest.raises(ssl.SSLError):
            handshake(hub, Party(tmp_path / "other", Role.COORDINATOR, "hub-2"))


def test_reload_sees_a_change_within_one_clock_tick(party: Party) -> None:
    tls = ReloadingTls(party.files, NOW)
    before = party.files.certificate.stat()
    certificate = party.renew(NOW)
    os.utime(party.files.certificate, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tls.current(NOW).certificate == certificate
