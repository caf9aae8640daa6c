"""The gRPC server: mTLS with TLS 1.3 only, certificates read again when they change, an end without losing anything.

`security.tls.require_tls13_environment` must have run before gRPC was first imported; `start` refuses otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Final

import grpc
import structlog
from consilium.v1.service_pb2_grpc import (
    add_InstitutionServiceServicer_to_server,
    add_OperatorServiceServicer_to_server,
)
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from coordinator.callers import HEALTH, INSTITUTIONS, OPERATORS, Callers
from coordinator.hub import Hub
from coordinator.institution_service import InstitutionService
from coordinator.interceptor import Gate
from coordinator.operator_service import OperatorService
from monitoring import metrics as m
from security.errors import ConfigurationError
from security.secure_sum.messages import MAX_PAYLOAD_BYTES
from security.tls import ReloadingTls, TlsMaterial, require_tls13_environment

MAX_MESSAGE_BYTES: Final = MAX_PAYLOAD_BYTES + (64 << 10)  # the largest payload, and what is around it
MOST_CALLS: Final = 1024
_DISK_THREADS: Final = min(8, 2 + (os.cpu_count() or 1))
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # What one upload may have under way: nine times the window that gRPC would grow to is most of a peak.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2 << 20),
    # What a connection keeps ready for its next read; otherwise twice the most that it ever read at once: 1.6 MiB.
    ("grpc.experimental.tcp_max_read_buffer_size", 128 << 10),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.max_concurrent_streams", 64),  # of one connection
    ("grpc.so_reuseport", 0),  # a second coordinator on the port must fail, not share it
    # A node behind a firewall pings to keep its long poll alive; a peer that answers no ping is gone.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 3),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)
_log = structlog.get_logger("consilium.coordinator.server")


class AddressError(ConfigurationError):
    """The coordinator cannot listen at this address."""

    code = "address"


class Server:
    """One coordinator, listening.

    Args:
        hub: its runs; the server starts and closes it.
        tls: its certificate; role coordinator.
        address: `host:port`; port 0 for any free one.
        clock: the time.
    """

    def __init__(self, hub: Hub, tls: ReloadingTls, address: str, clock: Callable[[], datetime]) -> None:
        self._hub, self._tls, self._address, self._clock = hub, tls, address, clock
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="disk")
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined] # the stubs do not show it
        self._server: grpc.aio.Server | None = None
        self._served: TlsMaterial | None = None
        self._watch: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> int:
        """Takes the runs up and listens; returns the port.

        Raises:
            AddressError: the address cannot be had.
            TlsEnvironmentError: gRPC was loaded too early.
        """
        require_tls13_environment()
        gate = Gate(Callers(self._tls, self._clock), self._hub.metrics, self._hub.recorder)
        server = grpc.aio.server(interceptors=(gate,), options=_OPTIONS, maximum_concurrent_rpcs=MOST_CALLS)
        add_InstitutionServiceServicer_to_server(InstitutionService(self._hub, self._disk), server)
        add_OperatorServiceServicer_to_server(OperatorService(self._hub), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        self._served = self._tls.current(self._clock())
        credentials = grpc.dynamic_ssl_server_credentials(
            _presented(self._served),
            self._renewed,  # type: ignore[arg-type] # None means: as before; the stubs do not know
            True,
        )
        try:
            self.port = server.add_secure_port(self._address, credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise AddressError(
                "the coordinator cannot listen here.",
                remedy="Give an address of this machine and a port that nobody uses.",
                place=self._address,
            )
        await self._hub.start()
        await server.start()
        self._server = server
        self._watch = asyncio.get_running_loop().create_task(self._watch_certificate())
        await self._say(health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", address=self._address, port=self.port)
        return self.port

    async def stop(self, grace: float = 5.0) -> None:
        """Takes no more calls, lets those under way end, closes the hub."""
        await self._say(health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._watch is not None:
            self._watch.cancel()
        await self._hub.rest()
        if self._server is not None:
            await self._server.stop(grace)
        self._disk.shutdown(wait=True)
        await self._hub.close()

    def reload(self) -> None:
        """Takes renewed certificate files now, instead of at the next handshake."""
        material = self._tls.current(self._clock())
        self._hub.metrics.set(m.CERTIFICATE_EXPIRY, material.identity.not_after.timestamp())
        refused, until = self._tls.last_error, material.identity.not_after.isoformat()
        _log.info("reloaded", not_after=until, refused=refused.code if refused else "")

    async def _say(self, status: int) -> None:
        for service in ("", *(name.strip("/") for name in (INSTITUTIONS, OPERATORS, HEALTH))):
            await self._health.set(service, status)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake, in a thread of gRPC's: the new certificate, if there is one."""
        self._hub.metrics.add(m.HANDSHAKES)
        material = self._tls.current(self._clock())
        if material is self._served:
            return None
        self._served = material
        return _presented(material)

    async def _watch_certificate(self) -> None:
        while True:
            material = await asyncio.to_thread(lambda: self._tls.current(self._clock()))
            self._hub.metrics.set(m.CERTIFICATE_EXPIRY, material.identity.not_after.timestamp())
            await asyncio.sleep(30)


def _presented(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.authority)


async def serve_until_told(server: Server, ready: Callable[[int], None]) -> None:
    """Serves until SIGTERM or SIGINT; at SIGHUP it looks at its certificate's files at once, and says what it found.

    Args:
        server: not yet started.
        ready: called with the port once calls are taken.
    """
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    loop.add_signal_handler(signal.SIGHUP, server.reload)
    try:
        ready(await server.start())
        await told.wait()
        _log.info("stopping")
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop()
