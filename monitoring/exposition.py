"""Shows one group of metrics at `/metrics`, over HTTP or HTTPS, for Prometheus to fetch."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from types import TracebackType
from typing import Final

from prometheus_client import start_http_server

from monitoring.metrics import Metrics
from security.errors import ConfigurationError

# What `is_private` of the standard library means is wider: it has 0.0.0.0 in it, which is every address.
_INSIDE: Final = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)


class MetricsAddressError(ConfigurationError):
    """Metrics cannot be shown at this address."""

    code = "metrics-address"


class MetricsServer:
    """Serves a group of metrics until it is closed, from daemon threads.

    Args:
        metrics: the group; that of `NodeLocalMetrics` is served on loopback and private addresses only.
        host: an address, not a name: what a name means can change. `localhost` is 127.0.0.1.
        port: 0 for any free one; `port` tells which.
        certificate: PEM files of the chain and its key for HTTPS (TLS 1.3); None for HTTP.

    Raises:
        MetricsAddressError: not an address of this machine, not private enough, in use, or the certificate is unusable.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, certificate: tuple[Path, Path] | None = None) -> None:
        self.host = check_address(host, inside_only=not metrics.shareable)
        chain, key = (str(certificate[0]), str(certificate[1])) if certificate else (None, None)
        try:
            self._server, self._thread = start_http_server(
                port,
                self.host,
                metrics.registry,
                certfile=chain,
                keyfile=key,
                tls_min_version=ssl.TLSVersion.TLSv1_3,
            )
        except (OSError, OverflowError) as error:  # ssl.SSLError is an OSError
            raise MetricsAddressError(
                f"metrics cannot be served ({type(error).__name__}).",
                remedy="Choose a free port on an address of this machine, and a readable certificate with its key.",
                place=f"{host}:{port}",
            ) from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_address(host: str, *, inside_only: bool) -> str:
    """The address to bind.

    Args:
        host: an IPv4 or IPv6 address, or `localhost`.
        inside_only: refuse any but loopback and private networks (RFC 1918, RFC 4193).

    Raises:
        MetricsAddressError: no address, or one that could be reached from outside.
    """
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise MetricsAddressError(
            "that is no address.", remedy="Give an IP address, such as 127.0.0.1.", place=host
        ) from None
    if inside_only and not any(address in network for network in _INSIDE):
        raise MetricsAddressError(
            "a node's local metrics are computed from patients and stay on the hospital's own network.",
            remedy="Bind them to 127.0.0.1 or to a private address of this machine.",
            place=host,
        )
    return str(address)
