"""Everything that one coordinator process holds: its state folder, its store, and the runs it knows."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog

from coordinator import store as stores
from coordinator.errors import RunActiveError, StateLockedError
from coordinator.failpoint_store import FailpointStore
from coordinator.files import FileContentStore, FileSpool
from coordinator.live_run import LiveRun, Loaded
from coordinator.observe import RunObserver
from coordinator.records import Recorder
from coordinator.restart import RunDamagedError, plan_of
from coordinator.run import ENDED, Run
from federation import plan_check
from federation.plan import Plan, PlanError, digest
from monitoring import metrics as m
from monitoring.metrics import CoordinatorMetrics
from security.audit import AuditLog
from security.errors import ConfigurationError

TICK_SECONDS: Final = 0.25
_log = structlog.get_logger("consilium.coordinator.hub")


class Hub:
    """The runs of one coordinator. Everything but `open_state` belongs to one event loop.

    Args:
        folder: state folder, made if missing.
        federation: name of the federation; plans of another one are refused.
        metrics: where runs are shown.
        clock: the time.
        database: SQLAlchemy URL; empty: `state.sqlite` in the folder.

    Raises:
        StateLockedError: another coordinator has the folder.
        ConfigurationError, StoreError, StorageError: folder or database cannot be used.
        AuditLogBrokenError: the audit log was altered.
    """

    def __init__(
        self,
        folder: Path,
        federation: str,
        metrics: CoordinatorMetrics,
        clock: Callable[[], datetime],
        database: str = "",
    ) -> None:
        self.federation, self.metrics, self.clock = federation, metrics, clock
        self._folder = folder
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, _lock(folder))
            self.store = FailpointStore(database or f"sqlite:///{folder.absolute() / 'state.sqlite'}")
            opened.callback(self.store.close)
            audit = opened.enter_context(AuditLog(folder / "audit.log", clock()))
            self.recorder = Recorder(self.store, audit, clock)
            opened.callback(self.recorder.close)
            self.spool = FileSpool(folder / "spool")
            self._closing = opened.pop_all()
        self._runs: dict[str, LiveRun] = {}
        self._ticker: asyncio.Task[None] | None = None
        self._loading = asyncio.Lock()

    # -- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up every run that is not over."""
        for row in await asyncio.to_thread(self.store.runs):
            if row.status not in ENDED:
                with contextlib.suppress(RunDamagedError):  # it is marked failed; the others go on
                    await self._take_up(row.run, row.plan)
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    async def rest(self) -> None:
        """Lets every waiting call go and moves no run on any more: the process is about to end."""
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        for live in self._runs.values():
            await live.close()

    async def close(self) -> None:
        """Lets go of everything; what is durable stays."""
        await self.rest()
        await asyncio.to_thread(self._closing.close)

    async def _tick(self) -> None:
        while True:
            for live in list(self._runs.values()):
                live.tick()
            await asyncio.sleep(TICK_SECONDS)

    async def _take_up(self, run: str, plan: bytes) -> LiveRun:
        def load() -> Loaded:
            return self._load(run, plan)

        live = LiveRun(await asyncio.to_thread(load), load, self.clock)
        self._runs[run] = live
        return live

    def _load(self, run: str, plan: bytes) -> Loaded:
        """The run, ended as failed where what it goes on from cannot be restored. Deletes nothing.

        Raises:
            RunDamagedError: there is not even a plan to show it by.
        """
        try:
            return self._restored(run, plan)
        except RunDamagedError as error:
            _log.error("run cannot be restored", run=run, code=error.code, exc_info=error)
            self.metrics.add(m.REFUSALS, reason=error.code)
            row = self.store.run(run)
            if row.status not in ENDED:
                self.store.set_status(run, "failed", error.message, self.clock())
            loaded = self._restored(run, plan)
            loaded.observer.run_ended("failed", error.message)
            return loaded

    def _restored(self, run: str, plan: bytes) -> Loaded:
        records: list[str] = []
        observer = RunObserver(run, plan_of(plan), self.metrics, self.recorder, records.append)
        content = FileContentStore(self._folder / "content" / run)  # its own: a run collects what it does not need
        found = Run.load(plan, self.store, content, self.spool, observer, self.clock())
        records[:] = found.records()
        observer.loaded(found.status, found.enrolled)
        return Loaded(found, observer, records)

    # -- runs ---------------------------------------------------------------------------------------------------

    async def live(self, run: bytes) -> LiveRun:
        """A run by the digest of its plan.

        Raises:
            UnknownRunError: there is none.
        """
        known = self._runs.get(run.hex())
        if known is not None:
            return known
        async with self._loading:
            row = await asyncio.to_thread(self.store.run, run.hex())
            return self._runs.get(row.run) or await self._take_up(row.run, row.plan)

    def invitation(self, institution: str) -> Run | None:
        """The run that an institution is invited to; None: to none at present."""
        return next((r.run for r in self._active() if institution in r.run.plan.roster), None)

    async def start_run(self, plan_bytes: bytes, operator: str) -> bytes:
        """Begins a run.

        Returns:
            Its digest.

        Raises:
            PlanError: not a plan that may run here.
            RunExistsError: a run of this very plan was begun before.
            RunActiveError: an institution of its roster is busy.
        """
        plan = await asyncio.to_thread(self._checked, plan_bytes)
        run = digest(plan_bytes)
        async with self._loading:
            if run.hex() not in self._runs:
                self._refuse_busy(plan)
            await asyncio.to_thread(self._create, run.hex(), plan.run, plan_bytes)
            await asyncio.wrap_future(self.recorder.audit("run-started", plan=run.hex(), operator=operator))
            live = await self._take_up(run.hex(), plan_bytes)
        live.tick()
        return run

    def _refuse_busy(self, plan: Plan) -> None:
        for live in self._active():
            busy = sorted(set(plan.roster) & set(live.run.plan.roster))
            if busy:
                raise RunActiveError(
                    f"{len(busy)} institutions of the roster, {busy[0]} among them, are in the run "
                    f"{live.run.plan.run!r}.",
                    remedy="Wait for its end, or stop it.",
                )

    async def stop_run(self, run: bytes, reason: str, operator: str) -> None:
        """Ends a run; again: nothing happens.

        Raises:
            UnknownRunError: there is none.
        """
        live = await self.live(run)
        await asyncio.wrap_future(self.recorder.audit("run-stop-asked", plan=run.hex(), operator=operator))
        with live.step() as stopped:
            stopped.stop("stopped", reason, self.clock())

    def _checked(self, plan_bytes: bytes) -> Plan:
        plan = Plan.from_bytes(plan_bytes)
        plan_check.check(plan)
        if plan.federation != self.federation:
            raise PlanError.one(
                f"the plan is for the federation {plan.federation!r}; this coordinator serves {self.federation!r}.",
                "Correct the plan, or ask that federation's coordinator.",
                path=("federation",),
            )
        if plan.initial_model:
            raise PlanError.one(
                "this release starts every run from the plan's seed.", "Leave it out.", path=("initial_model",)
            )
        return plan

    def _create(self, run: str, name: str, plan_bytes: bytes) -> None:
        now = self.clock()
        self.store.create_run(run, name, plan_bytes, now)
        self.store.set_status(run, "enrolling", "", now)

    def _active(self) -> list[LiveRun]:
        return [live for live in self._runs.values() if not live.run.ended]

    def rows(self) -> tuple[stores.Run, ...]:
        """All runs as the store has them, oldest first. Blocks."""
        return self.store.runs()


def _lock(folder: Path) -> int:
    """Takes the folder for this process; returns the descriptor that holds it."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigurationError(
            f"the state folder cannot be used: {error.strerror}.",
            remedy="Make it, and give this user the right to write there.",
            place=str(folder),
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise StateLockedError(
            "another coordinator uses this state folder.",
            remedy="Stop it first: two coordinators on one state would open one sum twice.",
            place=str(folder),
        ) from None
    return handle
