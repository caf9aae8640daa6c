# ruff: noqa: N802 # the methods' names are the wire contract's
"""What an operator calls: starts, watches and stops runs, and takes the model. Aggregates only."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import grpc
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import OperatorServiceServicer

from coordinator.callers import caller
from coordinator.errors import MalformedRequestError
from coordinator.export import choose, export, hold
from coordinator.hub import Hub
from coordinator.live_run import LiveRun
from coordinator.status import institutions_of, status_of, summary_of
from coordinator.store import UnknownRunError
from federation.model_archive import MANIFEST
from federation.plan_transfer import Gathering
from federation.tensor_file import TensorFile

if TYPE_CHECKING:  # generic in the stubs only
    Context = grpc.aio.ServicerContext[Any, Any]

CHUNK_BYTES: Final = 1 << 20
WATCH_SECONDS: Final = 0.5
QUIET_SECONDS: Final = 15.0
"""A watcher hears something this often even where nothing happens, so that elapsed and remaining time move."""
_MOST_RECORDS: Final = 50  # in one message
_LONGEST_REASON: Final = 300


class OperatorService(OperatorServiceServicer):
    """See `consilium/v1/service.proto`.

    Args:
        hub: the runs.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def StartRun(
        self, request_iterator: AsyncIterator[pb.StartRunRequest], context: Context
    ) -> pb.StartRunResponse:
        """Begins a run."""
        plan = Gathering()
        async for request in request_iterator:
            plan.add(request.plan)
        return pb.StartRunResponse(run=await self._hub.start_run(plan.done(), caller.get().name))

    async def StopRun(self, request: pb.StopRunRequest, context: Context) -> pb.StopRunResponse:
        """Ends a run."""
        reason = request.reason or f"by {caller.get().name}"
        if len(reason) > _LONGEST_REASON or not reason.isprintable():
            raise MalformedRequestError("a reason is one line of at most 300 characters.")
        await self._hub.stop_run(request.run, reason, caller.get().name)
        return pb.StopRunResponse()

    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        """All runs, oldest first."""
        return pb.ListRunsResponse(runs=await asyncio.to_thread(self._summaries))

    def _summaries(self) -> list[pb.RunSummary]:
        return [summary_of(row) for row in self._hub.store.runs()]

    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        """A run's status, with its latest records; `WatchRun` sends all of them."""
        live = await self._hub.live(request.run)
        upto = len(live.records)
        return pb.GetRunResponse(status=await self._status(live, upto, max(0, upto - _MOST_RECORDS)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Context) -> AsyncIterator[pb.WatchRunResponse]:
        """Status now and after every change, until the run ends."""
        live = await self._hub.live(request.run)
        sent, seen, quiet = 0, -1, 0.0
        while True:
            ended, version, upto = live.run.ended, live.version, min(len(live.records), sent + _MOST_RECORDS)
            if version != seen or upto > sent or quiet >= QUIET_SECONDS:
                yield pb.WatchRunResponse(status=await self._status(live, upto, sent))
                sent, seen, quiet = upto, version, 0.0
            if ended and sent == len(live.records):
                return
            await asyncio.sleep(WATCH_SECONDS)
            quiet += WATCH_SECONDS

    async def _status(self, live: LiveRun, upto: int, sent: int) -> pb.RunStatus:
        committed = await asyncio.to_thread(self._hub.store.rounds, live.run.key)
        ended: datetime | None = None
        if live.run.ended:
            ended = (await asyncio.to_thread(self._hub.store.run, live.run.key)).updated_at
        return status_of(live.run, committed, ended, self._hub.clock(), live.records[sent:upto])

    async def ListInstitutions(
        self, request: pb.ListInstitutionsRequest, context: Context
    ) -> pb.ListInstitutionsResponse:
        """The roster of a run, or of the newest one, and where each stands."""
        run = request.run
        if not run:
            rows = await asyncio.to_thread(self._hub.store.runs)
            if not rows:
                raise UnknownRunError("there is no run yet.", remedy="Start one.")
            run = bytes.fromhex(rows[-1].run)
        live = await self._hub.live(run)
        return pb.ListInstitutionsResponse(institutions=institutions_of(live.run))

    async def ExportModel(
        self, request: pb.ExportModelRequest, context: Context
    ) -> AsyncIterator[pb.ExportModelResponse]:
        """The model's files, the manifest last: whoever has it has them all."""
        live = await self._hub.live(request.run)
        plan, state, records = live.run.plan, live.run.state, list(live.records)
        choice = choose(plan, state, [json.loads(r)["round"] for r in records], request.round)
        held = hold(live.content, state, choice)
        files = await asyncio.to_thread(export, plan, state, choice, held, records)
        for name in sorted(files, key=lambda each: (each == MANIFEST, each)):
            data = files.pop(name)
            if isinstance(data, TensorFile):
                for piece in data:
                    yield pb.ExportModelResponse(file=name, chunk=bytes(piece))
                continue
            for start in range(0, max(1, len(data)), CHUNK_BYTES):
                yield pb.ExportModelResponse(file=name, chunk=data[start : start + CHUNK_BYTES])
