"""A real coordinator on loopback, in a thread of this process, and certificates of every kind for its peers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import grpc
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceStub, OperatorServiceStub
from prometheus_client import CollectorRegistry

from coordinator.hub import Hub
from coordinator.server import Server
from federation.plan_transfer import pieces
from monitoring.metrics import CoordinatorMetrics
from security.pki import Role, create_authority, create_request, identity_of, sign_request
from security.signing import IdentityKey
from security.tls import ReloadingTls, TlsFiles
from tests.plans import example_identity

T = TypeVar("T")
FEDERATION = "example"
NOW = datetime.now(UTC).replace(microsecond=0)
AUTHORITY = create_authority(FEDERATION, NOW - timedelta(days=60), 3650)
FOREIGN = create_authority(FEDERATION, NOW - timedelta(days=60), 3650)
SECONDS = 20.0  # of any one call: a test that hangs says where


class Pass:
    """A key and a certificate."""

    def __init__(
        self,
        role: Role,
        name: str,
        key: IdentityKey | None = None,
        *,
        authority: tuple[bytes, bytes] = AUTHORITY,
        issued: datetime = NOW,
        days: int = 30,
        host: str = "",
    ) -> None:
        self.key = key or IdentityKey.generate()
        request = create_request(self.key, FEDERATION, role, name, (host,) if host else ())
        self.certificate = sign_request(*authority, request, issued, days, role=role, name=name)
        self.fingerprint = identity_of(self.certificate).fingerprint


def institution(name: str, index: int, **how: Any) -> Pass:
    """The certificate of an institution of `example_plan`, with the plan's key."""
    return Pass(Role.INSTITUTION, name, example_identity(index), **how)


OPERATOR = Pass(Role.OPERATOR, "operator")


class Serving:
    """A coordinator that serves from `folder`.

    Args:
        folder: state and certificates; used again, it is the same coordinator restarted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = TlsFiles(folder / "certificate.pem", folder / "key.pem", folder / "ca.pem", folder / "revoked.txt")
        if not self.files.key.exists():
            mine = Pass(Role.COORDINATOR, "coordinator", host="localhost")
            self.files.key.touch(0o600)
            self.files.key.write_bytes(mine.key.to_pem())
            self.files.certificate.write_bytes(mine.certificate)
            self.files.authority.write_bytes(AUTHORITY[1])
            self.revoke()
        self.metrics = CoordinatorMetrics(CollectorRegistry())
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.hub, self.server = self.do(self._make())
        self.port = self.do(self.server.start())

    async def _make(self) -> tuple[Hub, Server]:
        hub = Hub(self.folder / "state", FEDERATION, self.metrics, _clock)
        tls = ReloadingTls(self.files, _clock(), expected_role=Role.COORDINATOR)
        return hub, Server(hub, tls, "127.0.0.1:0", _clock)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Runs something on the coordinator's loop."""
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(SECONDS)

    def revoke(self, *fingerprints: str) -> None:
        assert self.files.revocations is not None
        new = self.files.revocations.with_suffix(".new")
        new.write_text("# revoked\n" + "".join(f"{f}\n" for f in fingerprints))
        new.replace(self.files.revocations)

    def refusals(self, code: str) -> float:
        """How often calls were refused with a code."""
        return self.metrics.registry.get_sample_value("consilium_refusals_total", {"reason": code}) or 0.0

    @contextmanager
    def channel(self, shown: Pass | None, *options: tuple[str, Any]) -> Iterator[grpc.Channel]:
        pair = (shown.key.to_pem(), shown.certificate) if shown else (None, None)
        credentials = grpc.ssl_channel_credentials(AUTHORITY[1], *pair)
        own = (("grpc.use_local_subchannel_pool", 1), *options)
        with grpc.secure_channel(f"localhost:{self.port}", credentials, own) as channel:
            yield channel

    @contextmanager
    def as_institution(self, shown: Pass | None) -> Iterator[InstitutionServiceStub]:
        with self.channel(shown) as channel:
            yield InstitutionServiceStub(channel)

    @contextmanager
    def as_operator(self, shown: Pass = OPERATOR) -> Iterator[OperatorServiceStub]:
        with self.channel(shown) as channel:
            yield OperatorServiceStub(channel)

    def close(self) -> None:
        self.do(self.server.stop(0.2))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _clock() -> datetime:
    return datetime.now(UTC)


def start_run(stub: OperatorServiceStub, plan: bytes) -> bytes:
    """Starts a run as an operator does; returns its digest."""
    requests = [pb.StartRunRequest(plan=piece) for piece in pieces(plan)]
    return stub.StartRun(iter(requests), timeout=SECONDS).run


def invited(stub: InstitutionServiceStub, version: int = 1, known: bytes = b"") -> bytes:
    """The plan that an institution is invited to."""
    request = pb.GetInvitationRequest(protocol_version=version, known=known)
    return b"".join(answer.plan for answer in stub.GetInvitation(request, timeout=SECONDS))


def code_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Status and our code of a refused call."""
    said: Any = error
    return said.code(), dict(said.trailing_metadata() or ()).get("consilium-error-code", "")
