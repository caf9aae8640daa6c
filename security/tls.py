"""A party's TLS files: read with every check that can be made beforehand, and read again when they change.

Nothing here knows gRPC; the shells hand `TlsMaterial` to it (`ReloadingTls` to `dynamic_ssl_server_credentials`).
TLS 1.3 only (DESIGN.md, "Identity"): see `require_tls13_environment` and STYLE.md, "Facts found", gRPC.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Container, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from security.certificates import (
    Authority,
    Identity,
    Role,
    as_utc,
    authority_of,
    check_certificate,
    parse_revocations,
)
from security.errors import ConfigurationError, ConsiliumError
from security.signing import IdentityKey

CIPHER_VARIABLE: Final = "GRPC_SSL_CIPHER_SUITES"
# The one TLS 1.2 suite that is left needs an RSA certificate, and the federation has none: 1.2 finds no shared cipher.
CIPHER_SUITES: Final = "ECDHE-RSA-AES256-GCM-SHA384"

_LARGEST_FILE: Final = 4 * 2**20
_log = structlog.get_logger("consilium.tls")


class TlsFileError(ConfigurationError):
    """A certificate, key, authority or revocation file is missing, unreadable, too large or empty."""

    code = "tls-file"


class KeyPermissionError(TlsFileError):
    """Others than its owner may read the private key."""

    code = "tls-key-permission"


class KeyMismatchError(TlsFileError):
    """The private key is not the certificate's."""

    code = "tls-key-mismatch"


class TlsEnvironmentError(ConfigurationError):
    """gRPC was loaded before TLS 1.2 was switched off."""

    code = "tls-environment"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a party keeps its certificate, private key, authority and (if any) revocation list, all PEM or text."""

    certificate: Path
    key: Path
    authority: Path
    revocations: Path | None = None

    def paths(self) -> tuple[Path, ...]:
        """Every file that is configured."""
        own = (self.certificate, self.key, self.authority)
        return own if self.revocations is None else (*own, self.revocations)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """Checked contents of `TlsFiles`. Prints without the key."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes
    identity: Identity
    issuer: Authority
    revoked: frozenset[str]

    @property
    def federation(self) -> str:
        """The federation that this party belongs to."""
        return self.identity.federation

    def identity_key(self) -> IdentityKey:
        """The private key, for signing the protocol's messages."""
        return IdentityKey.from_pem(self.key)

    def check_peer(self, cert_pem: bytes, now: datetime, expected_role: Role | None) -> Identity:
        """Checks a peer's certificate against this party's authority, federation and revocations.

        Raises:
            CertificateError: as `security.certificates.check_certificate`.
        """
        return check_certificate(
            cert_pem,
            self.authority,
            now,
            revoked=self.revoked,
            expected_role=expected_role,
            expected_federation=self.federation,
        )

    def seconds_left(self, now: datetime) -> float:
        """Seconds until the own certificate or the authority's expires, whichever is first; negative afterwards."""
        return (min(self.identity.not_after, self.issuer.not_after) - as_utc(now)).total_seconds()


def load(files: TlsFiles, now: datetime, *, expected_role: Role | None = None) -> TlsMaterial:
    """Reads and checks a party's TLS files.

    Args:
        files: where they are.
        now: timezone-aware.
        expected_role: the role that the own certificate must have; None for any.

    Raises:
        TlsFileError: a file is missing, unreadable or too large.
        KeyPermissionError: the key's mode is too open; the remedy is the `chmod` to run.
        KeyMismatchError: key and certificate do not belong together.
        CertificateError: the certificate is expired, revoked, foreign or of another role.
        ConfigurationError: the key or the revocation list cannot be parsed.
        Each names the file as its `place`.
    """
    key_pem = read_private_key(files.key)
    certificate_pem = _read(files.certificate)
    authority_pem = _read(files.authority)
    revoked: frozenset[str] = frozenset()
    if files.revocations is not None:
        try:
            text = _read(files.revocations).decode()
        except UnicodeDecodeError:
            raise TlsFileError(
                "the revocation list is not UTF-8 text.",
                remedy="Write one fingerprint a line.",
                place=str(files.revocations),
            ) from None
        revoked = parse_revocations(text, str(files.revocations))
    with _placed(files.key):
        key = IdentityKey.from_pem(key_pem)
    with _placed(files.authority):
        issuer = authority_of(authority_pem)
    with _placed(files.certificate):
        identity = check_certificate(
            certificate_pem,
            authority_pem,
            now,
            revoked=revoked,
            expected_role=expected_role,
            expected_federation=issuer.federation,
        )
    if identity.public != key.public:
        raise KeyMismatchError(
            f"the private key is not the one of the certificate {files.certificate}.",
            remedy="Use the key.pem beside which `consilium pki issue` wrote the request that was signed.",
            place=str(files.key),
        )
    return TlsMaterial(certificate_pem, key_pem, authority_pem, identity, issuer, revoked)


def key_mode_is_safe(mode: int, owner: int, reader: int) -> bool:
    """Whether a private key of permission bits `mode` and uid `owner` may be used by the uid `reader`.

    Only its owner may have access. One exception, for secrets that an orchestrator mounts as root for an
    unprivileged service: a file of root may be readable by its group.
    """
    allowed = 0o740 if owner == 0 and reader != 0 else 0o700
    return not mode & 0o777 & ~allowed


def require_tls13_environment(
    environ: MutableMapping[str, str] | None = None, modules: Container[str] | None = None
) -> None:
    """Leaves gRPC no TLS 1.2 cipher suite that our ECDSA certificates could use. Call before importing grpc.

    Args:
        environ: the environment to change; `os.environ` by default.
        modules: the modules that are loaded; `sys.modules` by default.

    Raises:
        TlsEnvironmentError: gRPC is loaded already and the environment had another value: it may have read that one.
    """
    environ = os.environ if environ is None else environ
    modules = sys.modules if modules is None else modules
    if environ.get(CIPHER_VARIABLE) == CIPHER_SUITES:
        return
    if "grpc" in modules:
        raise TlsEnvironmentError(
            f"gRPC was loaded before {CIPHER_VARIABLE} was set, so TLS 1.2 may still be allowed.",
            remedy=f"Start the process with {CIPHER_VARIABLE}={CIPHER_SUITES}, or call "
            "require_tls13_environment() before the first import of grpc.",
        )
    environ[CIPHER_VARIABLE] = CIPHER_SUITES


class ReloadingTls:
    """The newest valid TLS material of a party, read again whenever a file changes: rotation without a restart.

    Where the new files are bad (half copied, expired, another key), the old material stays and the error is logged
    once and kept in `last_error`; the files are tried again at every call. Safe to use from several threads.
    """

    def __init__(self, files: TlsFiles, now: datetime, *, expected_role: Role | None = None) -> None:
        """Loads the files for the first time; raises as `load` does."""
        self._files = files
        self._expected_role = expected_role
        self._lock = threading.Lock()
        self._seen = _signature(files)
        self._logged: tuple[object, str] | None = None
        self._last_error: ConsiliumError | None = None
        self._material = load(files, now, expected_role=expected_role)

    def current(self, now: datetime) -> TlsMaterial:
        """The newest valid material; the very same object as long as nothing changed."""
        with self._lock:
            # Before reading: a file that changes while it is read differs again at the next call.
            signature = _signature(self._files)
            if signature != self._seen:
                self._reload(signature, now)
            return self._material

    @property
    def last_error(self) -> ConsiliumError | None:
        """Why the files as they are now could not be taken; None if they were."""
        return self._last_error

    def _reload(self, signature: tuple[tuple[int, ...], ...], now: datetime) -> None:
        try:
            material = load(self._files, now, expected_role=self._expected_role)
            if material.identity.uri != self._material.identity.uri:
                raise TlsFileError(
                    f"the new certificate is for {material.identity.uri}, but this process runs as "
                    f"{self._material.identity.uri}.",
                    remedy="Renew with `consilium pki issue --renew`, or restart to become another party.",
                    place=str(self._files.certificate),
                )
        except ConsiliumError as error:
            self._last_error = error
            if self._logged != (signature, error.code):
                self._logged = (signature, error.code)
                _log.error("tls-files-refused", code=error.code, place=error.place, remedy=error.remedy)
            return
        self._material, self._seen = material, signature
        self._last_error = self._logged = None
        _log.info(
            "tls-files-reloaded",
            fingerprint=material.identity.fingerprint,
            not_after=material.identity.not_after.isoformat(),
            revoked=len(material.revoked),
        )


def read_private_key(path: Path) -> bytes:
    """The content of a private key's file; raises TlsFileError or KeyPermissionError as `load` does."""
    return _read(path, secret=True)


def _read(path: Path, *, secret: bool = False) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())  # of the open file: nobody can swap it between check and reading
            if not stat.S_ISREG(status.st_mode):
                raise TlsFileError("this is not a file.", remedy="Configure the path of a file.", place=str(path))
            if secret and not key_mode_is_safe(status.st_mode, status.st_uid, os.geteuid()):
                raise KeyPermissionError(
                    f"others may access this private key (mode {status.st_mode & 0o777:04o}).",
                    remedy=f"Run `chmod 600 {path}`.",
                    place=str(path),
                )
            content = file.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise TlsFileError(
            "this file does not exist.",
            remedy="Check the configured path; `consilium pki` makes keys, requests and certificates.",
            place=str(path),
        ) from None
    except OSError as error:
        raise TlsFileError(
            f"this file cannot be read: {error.strerror}.",
            remedy="Let the user that runs this program read it.",
            place=str(path),
        ) from None
    if len(content) > _LARGEST_FILE:
        raise TlsFileError("this file is over 4 MiB.", remedy="Check the configured path.", place=str(path))
    return content


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Gives every error that passes through the file as its place."""
    try:
        yield
    except ConsiliumError as error:
        error.place = str(path)
        raise


def _signature(files: TlsFiles) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []
    for path in files.paths():
        try:
            status = path.stat()
        except OSError:
            found.append(())
        else:
            found.append((status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino))
    return tuple(found)
