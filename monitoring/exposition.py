"""Shows one group of metrics at `/metrics` for Prometheus to fetch: over HTTP, or HTTPS to whom it may concern."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer, ThreadingMixIn
from threading import Lock, Thread
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

from monitoring.metrics import Metrics
from security.errors import ConfigurationError

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_PATIENCE_SECONDS: Final = 10.0
_LONGEST_SECONDS: Final = 30.0
_MOST_CONNECTIONS: Final = 32
_SHORTEST_TOKEN: Final = 16
# What `is_private` of the standard library means is wider: it has 0.0.0.0 in it, which is every address.
_INSIDE: Final = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)


class MetricsAddressError(ConfigurationError):
    """Metrics cannot be shown at this address."""

    code = "metrics-address"


@dataclass(frozen=True)
class Access:
    """Who may fetch metrics, and how they travel.

    Attributes:
        certificate: PEM files of the chain and its key, for HTTPS (TLS 1.3); None: HTTP.
        clients: PEM file of the authority whose clients may connect; None: clients need no certificate.
        token: file with what a client must show as bearer token, at least 16 characters; None: none. Read once.
    """

    certificate: tuple[Path, Path] | None = None
    clients: Path | None = None
    token: Path | None = None


class MetricsServer:
    """Serves a group of metrics until it is closed, from daemon threads.

    Args:
        metrics: the group; that of `NodeLocalMetrics` is served on loopback and private addresses only.
        host: an address, not a name: what a name means can change. `localhost` is 127.0.0.1.
        port: 0 for any free one; `port` tells which.
        access: who may fetch them; without TLS anybody who can reach the address.

    Raises:
        MetricsAddressError: not an address of this machine, not private enough, in use, or the certificate is unusable;
            or a token or clients' authority without TLS, where everybody on the way could read or be anybody.
    """

    def __init__(self, metrics: Metrics, host: str, port: int, access: Access | None = None) -> None:
        self.host = check_address(host, inside_only=not metrics.shareable)
        place = f"{host}:{port}"
        access = access or Access()
        token = _token(access, place)
        try:
            context = _context(access)
            self._server = make_server(
                self.host,
                port,
                _guarded(make_wsgi_app(metrics.registry), token),
                server_class=_server_class(self.host),
                handler_class=_Handler,
            )
            if context is not None:
                # The handshake is left to the connection's own thread: one that says nothing keeps nobody else waiting.
                wrapped = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
                self._server.socket = wrapped
        except (OSError, OverflowError) as error:  # ssl.SSLError is an OSError
            raise MetricsAddressError(
                f"metrics cannot be served ({type(error).__name__}).",
                remedy="Choose a free port on an address of this machine, and readable certificates with their key.",
                place=place,
            ) from error
        self.port = int(self._server.server_port)
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

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


class _Server(ThreadingMixIn, WSGIServer):
    """A thread each for at most `_MOST_CONNECTIONS`: the oldest gives way, since a fetch takes milliseconds and it is
    slow. Nobody stays longer than `_LONGEST_SECONDS`, a byte now and then or not."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._open: dict[socket.socket, float] = {}  # oldest first, to when it came
        self._lock = Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        """As the standard library's, once there is room."""
        with self._lock:
            self._open[request] = monotonic()
            surplus = list(self._open)[:-_MOST_CONNECTIONS]
            for connection in surplus:
                self._end(connection)
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Twice a second: ends what is there for too long."""
        with self._lock:
            for connection in [c for c, came in self._open.items() if came < monotonic() - _LONGEST_SECONDS]:
                self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        """As the standard library's; the connection's thread comes here last."""
        with self._lock:
            self._open.pop(request, None)
            super().shutdown_request(request)

    def _end(self, connection: socket.socket) -> None:
        del self._open[connection]
        with suppress(OSError):  # below TLS, whose state belongs to the connection's thread
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def server_bind(self) -> None:
        """As the standard library's, without asking the name service for this machine's name."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment] # typed for any family
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """A handshake that fails and a client that goes are nobody's fault here."""


class _Server6(_Server):
    address_family = socket.AF_INET6


def _server_class(host: str) -> type[_Server]:
    return _Server6 if ":" in host else _Server


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE_SECONDS  # of the socket: for the handshake and for each read

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the standard library's
        """Says nothing: Prometheus comes every few seconds."""


def _guarded(app: WSGIApplication, token: str | None) -> WSGIApplication:
    if token is None:
        return app
    wanted = f"Bearer {token}".encode()

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        shown = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", "replace")
        if hmac.compare_digest(shown, wanted):
            return app(environ, start_response)
        start_response("401 Unauthorized", [("WWW-Authenticate", "Bearer"), ("Content-Length", "0")])
        return []

    return guarded


def _context(access: Access) -> ssl.SSLContext | None:
    if access.certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(*access.certificate)
    if access.clients is not None:
        context.load_verify_locations(access.clients)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _token(access: Access, place: str) -> str | None:
    if access.certificate is None and (access.clients or access.token):
        raise MetricsAddressError(
            "a token or clients' certificates need TLS: without it everybody on the way reads them.",
            remedy="Give a certificate and its key as well.",
            place=place,
        )
    if access.token is None:
        return None
    try:
        token = access.token.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise MetricsAddressError(
            "the token for metrics cannot be read.", remedy="Write it to this file.", place=str(access.token)
        ) from error
    if len(token) < _SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise MetricsAddressError(
            f"the token for metrics is shorter than {_SHORTEST_TOKEN} characters, or has spaces in it.",
            remedy="Make one with `openssl rand -hex 32`.",
            place=str(access.token),
        )
    return token


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
