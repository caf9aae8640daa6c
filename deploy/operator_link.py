"""The coordinator as an operator sees it: gRPC over mTLS with an operator certificate. grpc is imported on use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from consilium.v1 import service_pb2 as pb

from federation.plan_transfer import pieces
from security.certificates import Role
from security.errors import ConsiliumError
from security.tls import TlsFiles, load, require_tls13_environment

if TYPE_CHECKING:
    from consilium.v1.service_pb2_grpc import OperatorServiceStub

CALL_SECONDS = 30.0
START_SECONDS = 120.0  # a plan of hundreds of thousands of columns takes a while to check
RECORDS_SECONDS = 600.0  # they come 100 a second
MAX_MESSAGE_BYTES = 64 << 20


class OperatorCallError(ConsiliumError):
    """The coordinator refused an operator's call, or did not answer."""

    code = "operator-call"


class OperatorLink:
    """Calls of `OperatorService`.

    Args:
        address: `host:port` of the coordinator.
        files: the operator's certificate, key and authority.
        now: the time, for the certificate's dates.
    """

    def __init__(self, address: str, files: TlsFiles, now: datetime) -> None:
        self._address = address
        self._material = load(files, now, expected_role=Role.OPERATOR)
        self._channel: Any = None

    def __enter__(self) -> OperatorLink:
        require_tls13_environment()
        import grpc

        credentials = grpc.ssl_channel_credentials(
            self._material.authority, self._material.key, self._material.certificate
        )
        options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.keepalive_time_ms", 30_000)]
        self._channel = grpc.secure_channel(self._address, credentials, options)
        return self

    def __exit__(self, *exception: object) -> None:
        self._channel.close()

    @property
    def _stub(self) -> OperatorServiceStub:
        from consilium.v1.service_pb2_grpc import OperatorServiceStub

        stub: OperatorServiceStub = OperatorServiceStub(self._channel)
        return stub

    @contextmanager
    def _told(self) -> Iterator[None]:
        import grpc

        try:
            yield
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: Any) -> OperatorCallError:
        import grpc

        code, details = error.code(), _plain(error.details() or "")
        if code is grpc.StatusCode.UNAVAILABLE:
            return OperatorCallError(
                f"no coordinator answers at {self._address} ({details}).",
                remedy="Check that it runs, the address, and that both certificates are of the same federation.",
            )
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return OperatorCallError(
                f"the coordinator refuses this certificate ({details}).",
                remedy="Use a certificate of role operator of this federation: `consilium pki show` tells.",
            )
        # "code: what is wrong Remedy: what to do", as the coordinator tells operators their own mistakes.
        said, _, remedy = details.partition(" Remedy: ")
        what = said or code.name.lower().replace("_", " ")
        return OperatorCallError(
            f"the coordinator refuses this: {what}", remedy=remedy or "See the coordinator's log for this code."
        )

    def start(self, plan: bytes) -> bytes:
        """Starts a run; returns its digest."""
        with self._told():
            requests = (pb.StartRunRequest(plan=piece) for piece in pieces(plan))
            return bytes(self._stub.StartRun(requests, timeout=START_SECONDS).run)

    def runs(self) -> list[pb.RunSummary]:
        """All runs, oldest first."""
        with self._told():
            return list(self._stub.ListRuns(pb.ListRunsRequest(), timeout=CALL_SECONDS).runs)

    def status(self, run: bytes) -> pb.RunStatus:
        """One run now, with the records of its latest rounds."""
        with self._told():
            return self._stub.GetRun(pb.GetRunRequest(run=run), timeout=CALL_SECONDS).status

    def records(self, run: bytes) -> list[str]:
        """The records of all rounds that are committed now, in order: as many messages as that takes."""
        latest = list(self.status(run).records)
        found: list[str] = []
        with self._told():
            call = self._stub.WatchRun(pb.WatchRunRequest(run=run), timeout=RECORDS_SECONDS)
            for response in call:
                found += response.status.records
                if not latest or latest[-1] in response.status.records:
                    break
            call.cancel()  # type: ignore[no-untyped-call] # its stubs have no types here
        return found

    def watch(self, run: bytes) -> Iterator[pb.RunStatus]:
        """One run now and after every change, until it ends."""
        with self._told():
            for response in self._stub.WatchRun(pb.WatchRunRequest(run=run)):
                yield response.status

    def stop(self, run: bytes, reason: str) -> None:
        """Stops a run."""
        with self._told():
            self._stub.StopRun(pb.StopRunRequest(run=run, reason=reason), timeout=CALL_SECONDS)

    def institutions(self, run: bytes) -> list[pb.InstitutionStatus]:
        """The roster of a run, and how each institution stands."""
        with self._told():
            request = pb.ListInstitutionsRequest(run=run)
            return list(self._stub.ListInstitutions(request, timeout=CALL_SECONDS).institutions)

    def export(self, run: bytes, round_: int = 0) -> dict[str, bytes]:
        """The files of the exported model.

        Args:
            run: the run.
            round_: 0 for the plan's choice.
        """
        files: dict[str, bytearray] = {}
        with self._told():
            for part in self._stub.ExportModel(pb.ExportModelRequest(run=run, round=round_)):
                files.setdefault(part.file, bytearray()).extend(part.chunk)
        return {name: bytes(data) for name, data in files.items()}


def _plain(words: str) -> str:
    """What came over the wire, fit for a terminal: a coordinator may lie, and must not be able to draw."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in words)
