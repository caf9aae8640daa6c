"""The node's connection: who answers at the coordinator's address, held fast, and made anew when anything changes.

gRPC for Python does not show a client the server's certificate, so the federation's own checks cannot be made within
a call. Instead, before a channel is made, the address is asked for its certificate over a TLS 1.3 connection of our
own, with the same files; that certificate is checked for authority, host name, role, federation and revocation; and
the channel then trusts *exactly this certificate* and no authority. Every later connection of the channel, whenever
gRPC makes one, is therefore to the party that was checked. Where the coordinator rotates its certificate, the next
handshake fails, the channel is dropped, and the new certificate is checked as the first was.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final

from federation.settings_files import Address
from institution_node.link import CoordinatorIdentityError, CoordinatorUnreachableError
from security.certificate_errors import CertificateError
from security.certificates import Role
from security.tls import ReloadingTls, TlsFiles, TlsMaterial, require_tls13_environment

if TYPE_CHECKING:
    import grpc

PROBE_SECONDS: Final = 10.0
_PROBES: Final = 8  # gRPC closes without a word on whom it refuses, and so does a line that breaks: once is no refusal
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Below what firewalls forget idle connections after (350 s and 240 s at the large clouds), also while this node
    # trains and says nothing.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 32 << 20),
    ("grpc.max_send_message_length", 32 << 20),
    # What one download may have under way: a node that writes to a slow disk would have gRPC hold 200 MiB for it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    ("grpc.experimental.tcp_max_read_buffer_size", 128 << 10),
    # The channels before and after a rotation must not share connections.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    # What was checked is what the address itself answers with, not what a proxy leads to.
    ("grpc.enable_http_proxy", 0),
)


class Connection:
    """A channel to the checked coordinator; closed and made anew by `channel` when the own files change.

    Args:
        address: the coordinator's.
        files: this node's certificate, key, authority, revocations.
        now: the time, timezone-aware.

    Raises:
        TlsFileError, CertificateError: this node's own files are wrong, and which.
        TlsEnvironmentError: gRPC was loaded before TLS 1.2 was switched off.
    """

    def __init__(self, address: Address, files: TlsFiles, now: Callable[[], datetime]) -> None:
        require_tls13_environment()
        self._address, self._files, self._now = address, files, now
        self._tls = ReloadingTls(files, now(), expected_role=Role.INSTITUTION)
        self._channel: grpc.Channel | None = None
        self._made_with: TlsMaterial | None = None

    @property
    def material(self) -> TlsMaterial:
        """This node's newest valid certificate and what belongs to it."""
        return self._tls.current(self._now())

    def channel(self) -> grpc.Channel:
        """A channel whose every connection is to the checked coordinator.

        Raises:
            CoordinatorUnreachableError: nobody answers.
            CoordinatorIdentityError: somebody else answers, or refuses this node's certificate.
        """
        material = self.material
        if self._channel is not None and material is not self._made_with:
            self.drop()
        if self._channel is None:
            import grpc

            pinned = probe(self._address, self._files, material, self._now())
            credentials = grpc.ssl_channel_credentials(pinned, material.key, material.certificate)
            self._channel = grpc.secure_channel(str(self._address), credentials, _OPTIONS)
            self._made_with = material
        return self._channel

    def drop(self) -> None:
        """Closes the channel; the next call checks the coordinator again."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class _ClosedError(Exception):
    """The other side closed after the handshake and said nothing."""


def probe(address: Address, files: TlsFiles, material: TlsMaterial, now: datetime) -> bytes:
    """The certificate, PEM, of the coordinator at an address, checked in every respect.

    Args:
        address: where it should be.
        files: this node's, for the handshake.
        material: what was read from them.
        now: timezone-aware.

    Raises:
        CoordinatorUnreachableError: nobody answers, or the connection broke.
        CoordinatorIdentityError: the certificate is not the coordinator's, TLS 1.3 is not spoken, or this node's own
            certificate is refused there.
    """
    for _ in range(_PROBES):
        with contextlib.suppress(_ClosedError):
            return _probe(address, files, material, now)
    raise _refuses_us(address, "it closed the connection after the handshake")


def _probe(address: Address, files: TlsFiles, material: TlsMaterial, now: datetime) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=material.authority.decode("ascii"))
    try:
        context.load_cert_chain(files.certificate, files.key)
        with (
            socket.create_connection(address, timeout=PROBE_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as secured,
        ):
            presented = secured.getpeercert(binary_form=True)
            # In TLS 1.3 a client learns only now whether its certificate was taken: a server of HTTP/2 speaks first.
            if not secured.recv(1):
                raise _ClosedError
    except ssl.SSLCertVerificationError as error:
        raise CoordinatorIdentityError(
            f"the certificate that answers is not the coordinator's: {error.verify_message}.",
            remedy="Check the address in node.toml and the authority file; the coordinator's certificate must be "
            "issued by the federation's authority for this very host.",
            place=str(address),
        ) from None
    except ssl.SSLError as error:
        raise _tls_fault(address, error) from None
    except OSError as error:
        raise CoordinatorUnreachableError(
            f"the coordinator cannot be reached: {error.strerror or type(error).__name__}.",
            remedy="Check the address in node.toml, the network and the firewall (outbound TCP), and whether the "
            "coordinator runs.",
            place=str(address),
        ) from None
    if presented is None:
        raise _refuses_us(address, "it showed no certificate")
    pem = ssl.DER_cert_to_PEM_cert(presented).encode("ascii")
    try:
        material.check_peer(pem, now, Role.COORDINATOR)
    except CertificateError as error:
        raise CoordinatorIdentityError(
            f"the certificate that answers is not the coordinator's: {error.message}",
            remedy=error.remedy or "Tell the coordinator's operator.",
            place=str(address),
        ) from error
    return pem


def _tls_fault(address: Address, error: ssl.SSLError) -> CoordinatorIdentityError | CoordinatorUnreachableError:
    reason = (error.reason or "").upper()
    if "VERSION" in reason:
        return CoordinatorIdentityError(
            "what answers does not speak TLS 1.3.",
            remedy="Check the address, and that nothing on the way (a proxy, a scanner) ends TLS.",
            place=str(address),
        )
    if "ALERT" in reason:
        return _refuses_us(address, f"the alert {reason.lower().replace('_', ' ')}")
    return CoordinatorUnreachableError(
        f"the TLS connection broke off ({reason.lower().replace('_', ' ') or 'no reason given'}).",
        remedy="Check the address, and that nothing on the way ends TLS.",
        place=str(address),
    )


def _refuses_us(address: Address, how: str) -> CoordinatorIdentityError:
    return CoordinatorIdentityError(
        f"the coordinator refuses this node's certificate: {how}.",
        remedy="Check the certificate's dates and authority with `consilium pki show`; ask the coordinator's operator "
        "whether it was revoked.",
        place=str(address),
    )
