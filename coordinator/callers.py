"""Who calls: from the connection's certificate, never from a field of a message (DESIGN.md, "Identity")."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import Final

from coordinator.errors import TlsVersionError
from security.certificate_errors import MalformedCertificateError
from security.certificates import Identity, Role
from security.tls import ReloadingTls, TlsMaterial

REMEMBER: Final = timedelta(seconds=2)  # a revoked certificate is refused this soon at the latest
LOOK_AGAIN: Final = timedelta(seconds=0.5)  # at the files: four looks at the disk for each message are too many
_MOST: Final = 1000

caller: Final[ContextVar[Identity]] = ContextVar("caller")
"""The identity behind the call that is being served; the interceptor sets it."""


class Callers:
    """Checks the peers of connections; remembers each for a moment, since every call asks.

    Args:
        tls: this coordinator's material: authority, federation and revocations.
        clock: the time.
    """

    def __init__(self, tls: ReloadingTls, clock: Callable[[], datetime]) -> None:
        self._tls, self._clock = tls, clock
        self._material: TlsMaterial | None = None
        self._looked = clock()
        self._known: dict[bytes, tuple[Identity, datetime]] = {}

    def identify(self, auth_context: Mapping[str, Iterable[bytes]]) -> Identity:
        """The party at the other end, whatever its role.

        Args:
            auth_context: gRPC's, of the call.

        Raises:
            TlsVersionError: not TLS 1.3, or not said.
            CertificateError: as `TlsMaterial.check_peer`.
        """
        if list(auth_context.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
            raise TlsVersionError("the connection is not TLS 1.3.", remedy="Use a Consilium client of this release.")
        certificates = list(auth_context.get("x509_pem_cert", ()))
        if len(certificates) != 1:
            raise MalformedCertificateError("the connection shows no certificate.")
        now = self._clock()
        material = self._newest(now)
        seen = hashlib.sha256(certificates[0]).digest()
        known = self._known.get(seen)
        if known is not None and timedelta(0) <= now - known[1] <= REMEMBER:
            return known[0]
        self._known.pop(seen, None)
        identity = material.check_peer(certificates[0], now, None)
        self._known[seen] = identity, now
        return identity

    def _newest(self, now: datetime) -> TlsMaterial:
        if self._material is None or not timedelta(0) <= now - self._looked < LOOK_AGAIN or len(self._known) > _MOST:
            material, self._looked = self._tls.current(now), now
            if material is not self._material or len(self._known) > _MOST:
                self._material, self._known = material, {}
        return self._material


def described(identity: Identity | None) -> dict[str, str]:
    """A caller as fields of a log line."""
    return {} if identity is None else {"peer": identity.name, "role": identity.role.value}


INSTITUTIONS: Final = "/consilium.v1.InstitutionService/"
OPERATORS: Final = "/consilium.v1.OperatorService/"
HEALTH: Final = "/grpc.health.v1.Health/"


def roles_for(method: str) -> frozenset[Role]:
    """Who may call a method, by its full name; empty: nobody."""
    if method.startswith(INSTITUTIONS):
        return frozenset({Role.INSTITUTION})
    if method.startswith(OPERATORS):
        return frozenset({Role.OPERATOR})
    return frozenset(Role) if method.startswith(HEALTH) else frozenset()
