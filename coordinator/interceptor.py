"""Around every call: who may make it, what it weighed, and what an error may tell.

Requests are parsed and answers serialised here, so that a request that does not parse is refused like any other, and
sizes are known without asking twice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from coordinator.callers import INSTITUTIONS, OPERATORS, Callers, caller, described, roles_for
from coordinator.errors import MalformedRequestError, TooManyCallsError
from coordinator.grpc_status import details_of, metadata_of, status_of
from coordinator.records import Recorder
from monitoring import metrics as m
from security.certificate_errors import CertificateError, WrongRoleError
from security.certificates import Identity
from security.errors import ConsiliumError

MOST_CALLS: Final = 32
"""Calls that one party may have open: a node needs three."""
_REMEMBERED: Final = 4096  # connections
_KINDS: Final = {"Submit": "messages", "NextDirective": "messages", "Upload": "uploads", "Download": "downloads"}
_log = structlog.get_logger("consilium.coordinator.calls")

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]


@dataclass
class _Call:
    """One call while it is served."""

    method: str
    began: float
    identity: Identity | None = None
    received: int = 0
    sent: int = 0


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """The only interceptor.

    Args:
        callers: identifies peers.
        metrics: counts refusals and bytes.
        recorder: refusals that the audit log keeps.
    """

    def __init__(self, callers: Callers, metrics: m.CoordinatorMetrics, recorder: Recorder) -> None:
        self._callers, self._metrics, self._recorder = callers, metrics, recorder
        self._open: Counter[str] = Counter()
        self._known: OrderedDict[str, None] = OrderedDict()  # connections that were counted

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        inner = await continuation(handler_call_details)
        if inner is None:
            return None
        method = str(handler_call_details.method)
        if inner.response_streaming:
            make = grpc.stream_stream_rpc_method_handler if inner.request_streaming else None
            make = make or grpc.unary_stream_rpc_method_handler
            return make(self._streaming(method, inner))
        make = grpc.stream_unary_rpc_method_handler if inner.request_streaming else grpc.unary_unary_rpc_method_handler
        return make(self._single(method, inner))

    def _single(self, method: str, inner: Any) -> Callable[[Any, Context], Awaitable[bytes]]:
        behaviour = inner.stream_unary if inner.request_streaming else inner.unary_unary

        async def serve(request: Any, context: Context) -> bytes:
            call = _Call(method, time.monotonic())
            try:
                self._admit(call, context)
                answer = await behaviour(self._request(call, inner, request), context)
                data: bytes = inner.response_serializer(answer)
                call.sent += len(data)
                return data
            except BaseException as error:
                await self._refuse(call, context, error)
            finally:
                self._done(call)

        return serve

    def _streaming(self, method: str, inner: Any) -> Callable[[Any, Context], AsyncIterator[bytes]]:
        behaviour = inner.stream_stream if inner.request_streaming else inner.unary_stream

        async def serve(request: Any, context: Context) -> AsyncIterator[bytes]:
            call = _Call(method, time.monotonic())
            try:
                self._admit(call, context)
                answers = behaviour(self._request(call, inner, request), _Writing(context, inner.response_serializer))
                if not hasattr(answers, "__aiter__"):  # the health service writes to the context instead
                    await answers
                    return
                async for answer in answers:
                    data: bytes = inner.response_serializer(answer)
                    del answer  # a megabyte, in each of a hundred streams
                    call.sent += len(data)
                    yield data
            except GeneratorExit:
                raise
            except BaseException as error:
                await self._refuse(call, context, error)
            finally:
                self._done(call)

        return serve

    # -- before -------------------------------------------------------------------------------------------------

    def _admit(self, call: _Call, context: Context) -> None:
        identity = self._callers.identify(context.auth_context())
        if identity.role not in roles_for(call.method):
            raise WrongRoleError(
                f"{identity.uri} may not call this service.",
                remedy="Use the certificate that was made for this role.",
                culprits=(identity.name,),
            )
        if self._open[identity.uri] >= MOST_CALLS:
            raise TooManyCallsError(f"{identity.uri} has {MOST_CALLS} calls open.", remedy="Wait for their answers.")
        self._open[identity.uri] += 1
        call.identity = identity
        self._count(context.peer())
        caller.set(identity)

    def _count(self, peer: str) -> None:
        if peer not in self._known:
            self._metrics.add(m.CONNECTIONS)
            if len(self._known) >= _REMEMBERED:
                self._known.popitem(last=False)
        self._known[peer] = None
        self._known.move_to_end(peer)

    def _request(self, call: _Call, inner: Any, request: Any) -> Any:
        if not inner.request_streaming:
            return self._parse(call, inner, request)
        return self._parse_all(call, inner, request)

    def _parse(self, call: _Call, inner: Any, data: bytes) -> Any:
        call.received += len(data)
        try:
            return inner.request_deserializer(data)
        except DecodeError:
            raise MalformedRequestError("the request does not parse.") from None

    async def _parse_all(self, call: _Call, inner: Any, stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in stream:
            parsed = [self._parse(call, inner, data)]
            del data  # nothing here holds on to a megabyte while the next one is on its way
            yield parsed.pop()

    # -- after --------------------------------------------------------------------------------------------------

    async def _refuse(self, call: _Call, context: Context, error: BaseException) -> NoReturn:
        if isinstance(error, asyncio.CancelledError | grpc.aio.AbortError):
            raise error
        if not isinstance(error, ConsiliumError):
            _log.error("call failed", method=call.method, exc_info=error, **described(call.identity))
            await context.abort(grpc.StatusCode.INTERNAL, "internal", (("consilium-error-code", "internal"),))
        else:
            self._metrics.add(m.REFUSALS, reason=error.code)
            _log.warning("call refused", method=call.method, code=error.code, **described(call.identity))
            if isinstance(error, CertificateError):
                self._recorder.refused(error, call.identity)
            details = details_of(error, to_operator=call.method.startswith(OPERATORS))
            await context.abort(status_of(error), details, metadata_of(error))
        raise AssertionError("abort always raises")

    def _done(self, call: _Call) -> None:
        if call.identity is None:
            return
        uri = call.identity.uri
        self._open[uri] -= 1
        if self._open[uri] <= 0:
            del self._open[uri]
        if call.method.startswith(INSTITUTIONS):
            kind = _KINDS.get(call.method.rpartition("/")[2], "control")
            self._metrics.add(m.RECEIVED_BYTES, call.received, kind=kind)
            self._metrics.add(m.SENT_BYTES, call.sent, kind=kind)
        _log.debug(
            "call served",
            method=call.method,
            seconds=round(time.monotonic() - call.began, 4),
            bytes=call.received + call.sent,
            **described(call.identity),
        )


class _Writing:
    """A context whose `write` takes messages, for servicers that write rather than yield."""

    def __init__(self, context: Context, serialise: Callable[[Any], bytes]) -> None:
        self._context, self._serialise = context, serialise

    async def write(self, message: Any) -> None:
        await self._context.write(self._serialise(message))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
