"""The coordinator over gRPC: mTLS, retried with jitter while it is away, transfers that go on where they broke off."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from threading import Event
from typing import TYPE_CHECKING, Any, Final, TypeVar

from consilium.v1 import service_pb2 as pb
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, stop_never
from tenacity.wait import wait_random_exponential

from federation.content_hash import ContentHash
from federation.plan import digest
from federation.plan_transfer import Gathering
from federation.settings_files import Address
from federation.vectors import UploadMismatchError, UploadOffsetError
from institution_node.grpc_channel import Connection
from institution_node.link import (
    LARGEST_CONTENT,
    PROTOCOL_VERSION,
    ContentMismatchError,
    CoordinatorRefusalError,
    CoordinatorUnreachableError,
    LinkError,
    LinkWatcher,
    StoppedError,
    wrong_length,
)
from security.errors import ConsiliumError
from security.secure_sum.messages import UploadHeader
from security.secure_sum.upload import Upload
from security.tls import TlsFiles, TlsMaterial

if TYPE_CHECKING:
    import grpc
    from consilium.v1.service_pb2_grpc import InstitutionServiceStub

CODE_KEY: Final = "consilium-error-code"
"""Trailing metadata in which the coordinator says why it refused."""
CALL_SECONDS: Final = 60.0
"""Of a call, beyond what it was asked to wait."""
INVITATION_SECONDS: Final = 300.0  # a large plan, over a slow line
GOODBYE_SECONDS: Final = 5.0
TRANSFER_SECONDS: Final = 1800.0
_POLL_SECONDS: Final = 0.25
_AT_ONCE_BYTES: Final = 64 << 10  # of an upload so small, all is sent without waiting for the coordinator's word
_FUTILE: Final = 3  # transfers that end without breaking off and without progress, before that is an error

_Answer = TypeVar("_Answer")


class GrpcLink:
    """A `CoordinatorLink` over mTLS. One call at a time; another thread may only set `stop`.

    Args:
        address: the coordinator's; its certificate must name the host.
        files: this node's certificate, key, authority and revocations; read again when they change.
        stop: ends every waiting with StoppedError. A call may still be made once it is set, without a second try.
        attempts: how often a call is tried while nobody answers; None: for ever.
        watcher: told what passes.
        now: the time, timezone-aware.

    Raises:
        TlsFileError, CertificateError: this node's own files are wrong, and which.
        TlsEnvironmentError: gRPC was loaded before TLS 1.2 was switched off.
    """

    def __init__(
        self,
        address: Address,
        files: TlsFiles,
        *,
        stop: Event | None = None,
        attempts: int | None = None,
        watcher: LinkWatcher | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._connection = Connection(address, files, now)
        self._made: tuple[grpc.Channel, InstitutionServiceStub] | None = None
        self._stop = stop or Event()
        self._watcher = watcher or LinkWatcher()
        self._place, self._attempts = str(address), attempts
        self._plan, self._invited = b"", b""  # the newest invitation, and its digest
        self._retrying = Retrying(
            retry=retry_if_exception_type(CoordinatorUnreachableError),
            # Jitter over the whole interval: nine nodes must not meet a restarted coordinator at one moment.
            wait=wait_random_exponential(multiplier=0.2, max=15.0),
            stop=stop_never if attempts is None else stop_after_attempt(attempts),
            before_sleep=self._tell,
            sleep=self._pause,
            reraise=True,
        )

    @property
    def material(self) -> TlsMaterial:
        """This node's newest valid certificate."""
        return self._connection.material

    def close(self) -> None:
        """Closes the connection; a later call opens another."""
        self._connection.drop()

    # -- calls --------------------------------------------------------------------------------------------------

    def invitation(self) -> bytes:
        """See CoordinatorLink."""
        request = pb.GetInvitationRequest(protocol_version=PROTOCOL_VERSION, known=self._invited)

        def ask(stub: InstitutionServiceStub) -> bytes:
            plan = Gathering()
            call: Any = stub.GetInvitation(request, timeout=INVITATION_SECONDS)
            try:
                for answer in call:
                    if answer.unchanged:
                        return self._plan
                    plan.add(answer.plan)
                    self._watcher.received("control", len(answer.plan))
            finally:
                call.cancel()
            return plan.done()

        plan = self._retried(ask)
        self._watcher.sent("control", request.ByteSize())
        if plan:
            self._plan, self._invited = plan, digest(plan)
        return plan

    def enrol(self, run: bytes, refusal: str) -> str:
        """See CoordinatorLink."""
        request = pb.EnrolRequest(run=run, refusal=refusal)
        return self._unary("control", lambda s: s.Enrol, request).reason  # type: ignore[no-any-return] # stubs

    def next_directive(self, run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        """See CoordinatorLink."""
        request = pb.NextDirectiveRequest(run=run, known=known, wait_seconds=wait_seconds)
        answer: pb.NextDirectiveResponse = self._retried(lambda s: self._waited(s.NextDirective, request))
        self._watcher.sent("control", request.ByteSize())
        self._watcher.received("messages", answer.ByteSize())
        return answer.directive

    def submit(self, request: pb.SubmitRequest) -> pb.Directive:
        """See CoordinatorLink."""
        if self._stop.is_set():
            request.wait_seconds = 0  # a goodbye
        if not request.wait_seconds:
            return self._unary("messages", lambda s: s.Submit, request).directive  # type: ignore[no-any-return] # stubs
        answer: pb.SubmitResponse = self._retried(lambda s: self._waited(s.Submit, request))
        self._watcher.sent("messages", request.ByteSize())
        self._watcher.received("messages", answer.ByteSize())
        return answer.directive

    def _waited(self, method: Any, request: Any) -> Any:
        """The answer to a call that the coordinator may hold back; ends early where this node is told to stop."""
        import grpc

        call = method.future(request, timeout=request.wait_seconds + CALL_SECONDS)
        while True:
            try:
                return call.result(timeout=_POLL_SECONDS)
            except grpc.FutureTimeoutError:
                if self._stop.is_set():
                    call.cancel()
                    raise _stopped() from None

    # -- transfers ----------------------------------------------------------------------------------------------

    def upload(self, run: bytes, upload: Upload) -> None:
        """See CoordinatorLink."""
        where = pb.GetUploadRequest(run=run, header=upload.header.to_proto())
        position = pb.GetUploadResponse()  # most uploads are new there: only where this one is not, it is asked how far
        reached, futile, broken = -1, 0, 0
        while True:
            if position.offset > upload.length:
                raise self._refused("the coordinator says that it has more of an upload than there is.")
            if position.offset > reached:
                futile = broken = 0
            reached = max(reached, position.offset)
            # A transfer that ended without breaking off has moved, or something is wrong that repeating cannot mend.
            if futile == _FUTILE:
                raise self._refused(f"the coordinator does not take an upload beyond byte {position.offset}.")
            try:
                # Also where all is there: a coordinator that fell over at the last byte counts it now.
                offset = upload.length if position.complete else position.offset
                if self._send(run, upload, offset).complete:
                    return
                futile += 1
            except CoordinatorUnreachableError as error:
                broken += 1
                self._wait_after(error, broken)
            except CoordinatorRefusalError as error:
                futile += 1
                if error.reason not in (UploadOffsetError.code, UploadMismatchError.code):
                    raise
            position = self._unary("control", lambda s: s.GetUpload, where)

    def _send(self, run: bytes, upload: Upload, offset: int) -> pb.UploadResponse:
        header = UploadHeader.decode(upload.header.payload)
        fault: list[BaseException] = []
        calls: list[Any] = []  # the one that is made
        begun = Event()

        def requests() -> Iterator[pb.UploadRequest]:
            try:
                yield pb.UploadRequest(start=pb.UploadStart(run=run, header=upload.header.to_proto(), offset=offset))
                if upload.length > _AT_ONCE_BYTES:
                    # The coordinator takes so many uploads at a time, and says by its metadata that this one has its
                    # turn; what is sent before would wait in its memory. Of a call that failed it comes, too, empty.
                    begun.wait()
                    calls[0].initial_metadata()
                # From the first byte, whatever is sent: the trailer's hash is over all masked bytes, and making them
                # again is cheaper than carrying a hash's state over a broken call.
                hashed, at, busy = ContentHash(), 0, 0.0
                chunks = upload.chunks()
                while True:
                    began = time.perf_counter()
                    chunk = next(chunks, b"")
                    busy += time.perf_counter() - began
                    if not chunk:
                        break
                    hashed.update(chunk)
                    if at + len(chunk) > offset:
                        part = chunk[max(0, offset - at) :]
                        yield pb.UploadRequest(chunk=part)
                        self._watcher.sent("uploads", len(part))
                    at += len(chunk)
                self._watcher.masked(header.sum, at, busy)
                yield pb.UploadRequest(trailer=pb.UploadTrailer(hash=hashed.digest()))
            except BaseException as error:  # gRPC runs this in a thread of its own and would say only that it failed
                fault.append(error)
                raise

        def send(stub: InstitutionServiceStub) -> pb.UploadResponse:
            calls.append(stub.Upload.future(requests(), timeout=TRANSFER_SECONDS))
            begun.set()
            return calls[0].result()  # type: ignore[no-any-return] # stubs

        try:
            answer: pb.UploadResponse = self._once(send)
            return answer
        except LinkError:
            if fault and not isinstance(fault[0], GeneratorExit):
                raise fault[0] from None
            raise

    def download(self, run: bytes, digest: str, at_most: int = LARGEST_CONTENT) -> bytearray:
        """See CoordinatorLink."""
        content, at = bytearray(), 0

        def announced(length: int) -> None:
            nonlocal content
            if length > at_most:
                raise self._mismatch(f"content of {length} bytes is too large, {at_most} are the most")
            content = bytearray(length)

        for piece in self._pull(run, digest, 0, announced):
            content[at : at + len(piece)] = piece
            at += len(piece)
        return content

    def pieces(self, run: bytes, digest: str, length: int, offset: int = 0) -> Generator[memoryview]:
        """See CoordinatorLink."""

        def announced(found: int) -> None:
            if found != length:
                raise wrong_length(length, found)

        return self._pull(run, digest, offset, announced)

    def _pull(self, run: bytes, digest: str, at: int, announced: Callable[[int], None]) -> Generator[memoryview]:
        """Content from byte `at` on, resumed until all of it was taken; from byte 0 it is checked."""
        hashed = ContentHash() if at == 0 else None
        length = -1
        futile, broken = 0, 0
        while length < 0 or at < length:
            before = at
            try:
                for answer in self._chunks(run, digest, at):
                    if length < 0:
                        announced(answer.length)
                        length = answer.length
                    chunk = answer.chunk
                    if at + len(chunk) > length:
                        raise self._mismatch("more bytes came than were announced")
                    if hashed is not None:
                        hashed.update(chunk)
                    at += len(chunk)
                    self._watcher.received("downloads", len(chunk))
                    yield memoryview(chunk)
                futile = futile + 1 if at == before else 0
                if futile == _FUTILE:
                    raise self._mismatch("the coordinator ends the transfer early")
            except CoordinatorUnreachableError as error:
                broken = broken + 1 if at == before else 1
                self._wait_after(error, broken)
        if hashed is not None and hashed.hexdigest() != digest:
            raise self._mismatch("content has not the digest that was asked for")

    def _chunks(self, run: bytes, digest: str, offset: int) -> Iterator[pb.DownloadResponse]:
        """The rest of a content. Within a stream the retrying is the caller's, who knows how far it came."""
        import grpc

        request = pb.DownloadRequest(run=run, digest=digest, offset=offset)
        stub = self._stub()
        call: Any = stub.Download(request, timeout=TRANSFER_SECONDS)
        try:
            yield from call
            self._watcher.answered()
        except grpc.RpcError as error:
            raise self._understood(error) from None
        finally:
            call.cancel()

    # -- inside -------------------------------------------------------------------------------------------------

    def _stub(self) -> InstitutionServiceStub:
        from consilium.v1.service_pb2_grpc import InstitutionServiceStub

        channel = self._connection.channel()
        if self._made is None or self._made[0] is not channel:  # making one costs a fifth of a call
            self._made = channel, InstitutionServiceStub(channel)
        return self._made[1]

    def _unary(self, kind: str, method: Callable[[InstitutionServiceStub], Any], request: Any) -> Any:
        # A node that was told to stop says goodbye if it can, and does not wait for it.
        answer = self._retried(
            lambda stub: method(stub)(request, timeout=GOODBYE_SECONDS if self._stop.is_set() else CALL_SECONDS)
        )
        self._watcher.sent(kind, request.ByteSize())
        self._watcher.received(kind, answer.ByteSize())
        return answer

    def _retried(self, call: Callable[[InstitutionServiceStub], _Answer]) -> _Answer:
        answer: _Answer = self._retrying(self._once, call)
        return answer

    def _once(self, call: Callable[[InstitutionServiceStub], _Answer]) -> _Answer:
        import grpc

        stub = self._stub()
        try:
            answer = call(stub)
        except grpc.RpcError as error:
            raise self._understood(error) from None
        self._watcher.answered()
        return answer

    def _understood(self, error: grpc.RpcError) -> LinkError:
        """One place where gRPC's errors become ours."""
        import grpc

        status: Any = error
        code = status.code()
        reason = dict(status.trailing_metadata() or ()).get(CODE_KEY, "")
        away = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
        if code in away:
            # Perhaps it rotated its certificate: who answers is checked again.
            self._connection.drop()
            return CoordinatorUnreachableError(
                f"the coordinator does not answer ({code.name.lower().replace('_', ' ')}).",
                remedy="Nothing to do if it is being restarted; otherwise check the network.",
                place=self._place,
            )
        self._watcher.answered()
        if not reason:
            reason = f"grpc-{code.name.lower().replace('_', '-')}"
        remedy = "See the coordinator's log for this code."
        if code is grpc.StatusCode.UNIMPLEMENTED:
            remedy = "Coordinator and node must be of the same release; update the older one."
        return CoordinatorRefusalError(reason if isinstance(reason, str) else "unknown", remedy=remedy)

    def _tell(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, LinkError):
            self._watcher.unreachable(error, state.upcoming_sleep)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _stopped()

    def _wait_after(self, error: CoordinatorUnreachableError, broken: int) -> None:
        """Between a transfer that broke off and the next: a way that breaks every one of them is not hammered."""
        seconds = random.uniform(0.0, min(15.0, 0.1 * 2 ** min(broken, 10)))  # noqa: S311 - jitter, not a secret
        self._watcher.unreachable(error, seconds)
        if self._attempts is not None and broken >= self._attempts:
            raise error
        self._pause(seconds)

    def _mismatch(self, what: str) -> ContentMismatchError:
        return ContentMismatchError(
            f"{what}.",
            remedy="Tell the coordinator's operator: its store is damaged, or something on the way changes bytes.",
            place=self._place,
        )

    @staticmethod
    def _refused(what: str) -> ConsiliumError:
        return CoordinatorRefusalError(
            "upload-refused", what, remedy="See the coordinator's log; coordinator and node must be of one release."
        )


def _stopped() -> StoppedError:
    return StoppedError("this node was told to stop.", remedy="Nothing to do.")
