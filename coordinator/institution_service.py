# ruff: noqa: N802 # the methods' names are the wire contract's
"""What an institution's node calls: translates between the wire and the run, and nothing more.

The caller is who its certificate says; a message that another one signed is not taken from it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final

import grpc
from consilium.v1 import secure_sum_pb2 as sum_pb
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import InstitutionServiceServicer

from coordinator.callers import caller
from coordinator.errors import (
    CertificateKeyError,
    MalformedRequestError,
    NotTheSignerError,
    OffsetError,
    ProtocolVersionError,
)
from coordinator.failpoints import hit
from coordinator.hub import Hub
from coordinator.live_run import LiveRun
from coordinator.published import open_published
from coordinator.run import NotEnrolledError, RunEndedError
from coordinator.turns import Turns
from federation.plan_transfer import pieces
from federation.vectors import UploadKey, UploadOffsetError
from security.certificates import Identity
from security.secure_sum.messages import Signed, UploadHeader
from security.signing import parse_public_key_text

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]

PROTOCOL_VERSION: Final = 1
LONGEST_WAIT: Final = 25.0
CHUNK_BYTES: Final = 1 << 20
TRANSFERS: Final = 12
"""Institutions that upload at a time, and as many that download: some 7 MiB each."""
SMALL_BYTES: Final = 64 << 10
"""What a transfer of so few bytes keeps is not worth a turn."""
_CODE: Final = re.compile(r"[a-z]{1,24}(-[a-z]{1,24}){0,5}")
_OTHER_CODE: Final = "other"


class InstitutionService(InstitutionServiceServicer):
    """See `consilium/v1/service.proto`.

    Args:
        hub: the runs.
        disk: threads that write uploads and read downloads.
    """

    def __init__(self, hub: Hub, disk: ThreadPoolExecutor) -> None:
        self._hub, self._disk = hub, disk
        self._uploads, self._downloads = Turns(TRANSFERS), Turns(TRANSFERS)

    # -- joining ------------------------------------------------------------------------------------------------

    async def GetInvitation(
        self, request: pb.GetInvitationRequest, context: Context
    ) -> AsyncIterator[pb.GetInvitationResponse]:
        """The run that this institution is invited to."""
        if request.protocol_version != PROTOCOL_VERSION:
            raise ProtocolVersionError(f"the caller speaks version {request.protocol_version} of the contract.")
        run = self._hub.invitation(caller.get().name)
        if run is not None and request.known == run.id:
            yield pb.GetInvitationResponse(unchanged=True)
        elif run is not None:
            for piece in pieces(run.plan_bytes):
                yield pb.GetInvitationResponse(plan=piece)

    async def Enrol(self, request: pb.EnrolRequest, context: Context) -> pb.EnrolResponse:
        """Joins, or says which local rule refused."""
        identity = caller.get()
        live = await self._live(request.run)
        if live.run.ended:
            raise RunEndedError("the run is over.", remedy="Ask for the next invitation.")
        if parse_public_key_text(live.run.plan.institution(identity.name).key) != identity.public:
            raise CertificateKeyError(
                f"the plan has another key for {identity.name!r} than its certificate.",
                remedy="Renew the certificate for the same key, or ask the operator for a new plan.",
            )
        now = self._hub.clock()
        with live.step(identity.name) as run:
            reason = run.enrol(identity.name, identity.fingerprint, code_of(request.refusal), now)
            run.tick(now)
        return pb.EnrolResponse(reason=reason)

    async def NextDirective(self, request: pb.NextDirectiveRequest, context: Context) -> pb.NextDirectiveResponse:
        """What to do next."""
        live = await self._live(request.run)
        directive = await live.next_directive(caller.get().name, request.known, _patience(request.wait_seconds))
        return pb.NextDirectiveResponse(directive=directive)

    # -- messages -----------------------------------------------------------------------------------------------

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.SubmitResponse:
        """A signed message of the secure sum, or a withdrawal; what is next goes back with the answer."""
        identity, now = caller.get(), self._hub.clock()
        live = await self._live(request.run)
        with live.step(identity.name) as run:
            match request.WhichOneof("message"):
                case "keys":
                    run.take_keys(_signed(request.keys, identity), now)
                case "reveal":
                    if request.reveal.sender != identity.name:
                        raise _not_the_signer(request.reveal.sender, identity)
                    run.take_reveal(identity.name, request.reveal.value, now)
                case "shares":
                    if request.shares.sender != identity.name:
                        raise _not_the_signer(request.shares.sender, identity)
                    shares = [_signed(m, identity) for m in request.shares.messages]
                    dealt = request.shares
                    key = _signed(dealt.encryption_key, identity) if dealt.HasField("encryption_key") else None
                    run.take_shares(identity.name, shares, now, key)
                case "complaint":
                    run.take_complaint(_signed(request.complaint, identity), now)
                case "signature":
                    run.take_signature(_signed(request.signature, identity), now)
                case "opening":
                    run.take_opening(_signed(request.opening, identity), now)
                case "withdrawal":
                    w = request.withdrawal
                    run.withdraw(identity.name, w.round, w.attempt, code_of(w.code) or _OTHER_CODE, now)
                case _:
                    raise MalformedRequestError("the request holds no message.")
        wait = _patience(request.wait_seconds)
        if not wait:
            return pb.SubmitResponse()
        return pb.SubmitResponse(directive=await live.next_directive(identity.name, request.known, wait))

    # -- vectors ------------------------------------------------------------------------------------------------

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        """How far an upload has come."""
        live = await self._live(request.run)
        signed = _signed(request.header, caller.get())
        header = UploadHeader.decode(signed.payload)
        key = UploadKey(live.run.key, header.context.round, header.context.attempt, header.sum, signed.signer)
        spool = live.run.spool
        return pb.GetUploadResponse(offset=spool.offset(key), complete=spool.is_complete(key))

    async def Upload(self, request_iterator: AsyncIterator[pb.UploadRequest], context: Context) -> pb.UploadResponse:
        """A masked vector, or its rest. Ends without counting where the stream ends without a trailer."""
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("message") != "start":
            raise MalformedRequestError("an upload begins with its header.")
        live = await self._live(first.start.run)
        signed = _signed(first.start.header, caller.get())
        length = UploadHeader.decode(signed.payload).length
        async with self._uploads.of(signed.signer) if length > SMALL_BYTES else nullcontext():
            await context.send_initial_metadata(())  # its turn: from here on it sends
            return await self._upload(live, signed, length, first.start.offset, request_iterator)

    async def _upload(
        self, live: LiveRun, signed: Signed, length: int, begun: int, stream: AsyncIterator[pb.UploadRequest]
    ) -> pb.UploadResponse:
        key = live.begin_upload(signed)
        spool = live.run.spool
        offset = spool.offset(key)
        if not spool.is_complete(key):
            if begun != offset:
                raise UploadOffsetError(offset, begun)
            trailer = await self._receive(live, key, offset, stream)
            if trailer is None:
                return pb.UploadResponse(offset=spool.offset(key))
            await self._on_disk(spool.complete, key, trailer.hex(), length)
        live.complete_upload(key)
        return pb.UploadResponse(offset=length, complete=True)

    async def _receive(
        self, live: LiveRun, key: UploadKey, offset: int, stream: AsyncIterator[pb.UploadRequest]
    ) -> bytes | None:
        """Spools chunks up to the trailer; returns its hash, None where the stream ends before it."""
        spool = live.run.spool
        writing: asyncio.Future[None] | None = None  # one chunk is written and hashed while the next arrives
        try:
            async for message in stream:
                kind = message.WhichOneof("message")
                if kind == "trailer":
                    return message.trailer.hash
                if kind != "chunk" or not message.chunk:
                    raise MalformedRequestError("after its header, an upload is chunks and a trailer.")
                if writing is not None:
                    await writing
                    hit("in-upload", key.round, key.sum)
                chunk = message.chunk
                del message  # it holds the chunk a second time
                writing = self._on_disk(spool.append, key, offset, chunk)
                offset += len(chunk)
                live.moved(key.institution, "up", len(chunk))
            return None
        finally:
            if writing is not None:
                await writing

    async def Download(self, request: pb.DownloadRequest, context: Context) -> AsyncIterator[pb.DownloadResponse]:
        """Content that the run has published, from an offset on."""
        live = await self._live(request.run)
        name = caller.get().name
        reader = open_published(live.run, name, request.digest)
        length, offset = reader.length, request.offset
        if offset > length:
            raise OffsetError(f"a download begins at byte {offset} of {length}.", remedy="Begin within the content.")

        def read(start: int) -> bytes:
            data = bytearray(min(CHUNK_BYTES, length - start))
            reader.read_into(start, memoryview(data))
            return bytes(data)

        yield pb.DownloadResponse(length=length)
        async with self._downloads.of(name) if length - offset > SMALL_BYTES else nullcontext():
            ahead = self._on_disk(read, offset) if offset < length else None
            while ahead is not None:
                answer = [pb.DownloadResponse(chunk=await ahead)]
                size = min(CHUNK_BYTES, length - offset)
                offset += size
                ahead = self._on_disk(read, offset) if offset < length else None
                live.moved(name, "down", size)  # before: whoever has the last chunk may hang up
                yield answer.pop()

    # -- inside -------------------------------------------------------------------------------------------------

    def _on_disk(self, work: Any, *args: Any) -> asyncio.Future[Any]:
        return asyncio.get_running_loop().run_in_executor(self._disk, work, *args)

    async def _live(self, run: bytes) -> LiveRun:
        live = await self._hub.live(run)
        name = caller.get().name
        if name not in live.run.plan.roster:
            raise NotEnrolledError(f"{name!r} is not in this run's roster.", remedy="Ask the operator for a plan.")
        return live


def _patience(wait_seconds: float) -> float:
    if not 0 <= wait_seconds <= LONGEST_WAIT:  # NaN is neither
        return LONGEST_WAIT if wait_seconds > LONGEST_WAIT else 0.0
    return wait_seconds


def code_of(text: str) -> str:
    """A code from the wire, if it is one: it goes to logs, metrics and operators. Empty stays empty."""
    return text if not text or _CODE.fullmatch(text) else _OTHER_CODE


def _signed(message: sum_pb.SignedMessage, identity: Identity) -> Signed:
    if message.signer != identity.name:
        raise _not_the_signer(message.signer, identity)
    return Signed.from_proto(message)


def _not_the_signer(signer: str, identity: Identity) -> NotTheSignerError:
    return NotTheSignerError(
        f"{identity.name!r} sent a message of {signer[:63]!r}.",
        remedy="Every institution sends its own messages.",
        culprits=(identity.name,),
    )
