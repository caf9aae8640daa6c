"""One run as the service holds it: who waits for it, what it has in hand, and what brings it back when storage fails.

Everything that touches the run happens on the event loop, between two awaits; only the folding of a sum, which touches
no state of the run, is done in a thread. So there are no locks, and no message is half taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
from consilium.v1 import service_pb2 as pb

from coordinator.directives import directive_for
from coordinator.failpoints import hit
from coordinator.folding import FoldJob, FoldResult, run_job
from coordinator.observe import RunObserver
from coordinator.run import Run
from coordinator.store import StoreError
from federation.vectors import ContentStore, StorageError, UploadKey
from security.errors import ConfigurationError, ConsiliumError, ProtocolError
from security.secure_sum.messages import Signed
from security.secure_sum.phases import AggregatorPhase

FIRST_RETRY: Final = 0.25
LONGEST_RETRY: Final = 10.0
_log = structlog.get_logger("consilium.coordinator.live")


@dataclass
class Loaded:
    """A run with what was made for it."""

    run: Run
    observer: RunObserver
    records: list[str] = field(default_factory=list)


Load = Callable[[], Loaded]


class LiveRun:
    """One run, from when this process knows it to when the process ends.

    Args:
        loaded: the run.
        load: loads it again from the store, as after a restart; called in a thread.
        clock: the time.
    """

    def __init__(self, loaded: Loaded, load: Load, clock: Callable[[], datetime]) -> None:
        self._loaded, self._load, self._clock = loaded, load, clock
        self.boot = secrets.token_bytes(16)
        self.version = 0  # grows with everything that an operator could see
        self._failed: ConsiliumError | None = None
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._work: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    @property
    def run(self) -> Run:
        """The run, for reading. Between two awaits only: it may be another object afterwards."""
        return self._loaded.run

    @property
    def content(self) -> ContentStore:
        """The run's components, schema and opened sums."""
        return self._loaded.run.content

    @property
    def records(self) -> list[str]:
        """Records of the committed rounds, JSON, in order."""
        return self._loaded.records

    @contextlib.contextmanager
    def step(self, institution: str = "") -> Iterator[Run]:
        """The run, to change it. Without an await inside.

        Args:
            institution: whose message it is: its directive may change even where the run does not move on.

        Raises:
            StoreError, StorageError: what the step did is lost, and the run is loaded again, as after a restart.
        """
        if self._failed is not None:
            raise self._failed
        run = self.run
        before = self._mark(run)
        try:
            if institution:
                run.poll(institution, self._clock())
            yield run
        except (StoreError, StorageError) as error:
            self._lose(error)
            raise
        finally:
            self.version += 1
            if self._mark(run) != before:
                self.wake()
            elif institution:
                self.wake(institution)
        self._work_if_due()

    def tick(self) -> None:
        """Moves on whatever time moves on; called a few times a second."""
        if self._failed is not None or self.run.ended:
            return
        now, run = self._clock(), self.run
        for institution, waiting in self._waiting.items():
            if waiting:
                run.poll(institution, now)
        before = self._mark(run)
        try:
            run.tick(now)
        except (StoreError, StorageError) as error:
            self._lose(error)
        except Exception as error:  # one run's fault must not end the clock of the others
            _log.error("tick failed", exc_info=error)
        if self._mark(run) != before:
            self.version += 1
            self.wake()
        self._work_if_due()

    # -- directives ---------------------------------------------------------------------------------------------

    async def next_directive(self, institution: str, known: int, wait_seconds: float) -> pb.Directive:
        """The institution's directive, once it is not `known`, or after `wait_seconds` whatever it is.

        Raises:
            StoreError, StorageError: the run is being loaded again.
        """
        until = time.monotonic() + wait_seconds
        while True:
            if self._failed is not None:
                raise self._failed
            self.run.poll(institution, self._clock())
            directive = directive_for(self.run, institution, self.boot)
            if directive.serial == known and self.run.awaits(institution):
                with self.step(institution) as run:
                    run.turned(institution, self._clock())
                continue
            left = until - time.monotonic()
            # A wait is nothing to act on: who is told so only asks again. It is held back until there is more.
            new = directive.serial != known and directive.WhichOneof("kind") != "wait"
            if new or left <= 0:
                return directive
            await self._change(institution, left)

    async def _change(self, institution: str, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(institution, set())
        waiting.add(future)
        try:
            await asyncio.wait_for(future, seconds)
        except TimeoutError:
            pass
        finally:
            waiting.discard(future)

    def wake(self, institution: str | None = None) -> None:
        """Lets the polls of one institution, or of all, look again."""
        chosen = self._waiting.values() if institution is None else [self._waiting.get(institution, set())]
        for waiting in chosen:
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    # -- uploads and downloads ----------------------------------------------------------------------------------

    def begin_upload(self, signed: Signed) -> UploadKey:
        """See `Run.begin_upload`; a spool that fails here has changed nothing in the run."""
        if self._failed is not None:
            raise self._failed
        self.run.poll(signed.signer, self._clock())
        return self.run.begin_upload(signed)

    def complete_upload(self, key: UploadKey) -> None:
        """See `Run.complete_upload`."""
        with self.step(key.institution) as run:
            run.complete_upload(key, self._clock())

    def moved(self, institution: str, way: str, size: int) -> None:
        """Payload passed, `up` or `down`: it counts in the round's record, and the institution is there."""
        self.run.poll(institution, self._clock())
        self.run.traffic[way] += size

    # -- the heavy work -----------------------------------------------------------------------------------------

    def _work_if_due(self) -> None:
        attempt = self.run.attempt
        if attempt is None or attempt.folding or attempt.machine.phase is not AggregatorPhase.OPENINGS:
            return
        if attempt.openable and (self._work is None or self._work.done()):
            self._work = asyncio.get_running_loop().create_task(self._do_jobs())

    async def _do_jobs(self) -> None:
        delay = FIRST_RETRY
        while self._failed is None:
            loaded = self._loaded
            try:
                job = loaded.run.job()
                if job is None:
                    return
                self.wake()  # no more openings are wanted
                result, seconds = await asyncio.to_thread(self._fold, loaded.run, job)
            except (ProtocolError, ConfigurationError) as error:  # trying again would not help
                _log.error("sum cannot be opened", code=error.code)
                self._then(loaded, Run.cannot_open, error.code)
            except Exception as error:  # a thread's fault, storage most likely: the job is done again
                _log.error("fold failed", exc_info=error, wait_seconds=delay)
                loaded.run.job_failed()
                await self._sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY)
            else:
                delay = FIRST_RETRY
                loaded.observer.fold_took(seconds)
                self._then(loaded, Run.folded, job, result)

    def _then(self, loaded: Loaded, act: Callable[..., None], *outcome: object) -> None:
        """A step that ends a job, unless its run was loaded again meanwhile: then the job is done again."""
        if self._loaded is not loaded or self._failed is not None:
            return
        try:
            with self.step() as run:
                act(run, *outcome, self._clock())
        except Exception as error:  # memory may be ahead of what is durable: the store is believed instead
            self._lose(error)

    def _fold(self, run: Run, job: FoldJob) -> tuple[FoldResult, float]:
        began = time.monotonic()
        hit("after-openings", run.round, job.sum)
        result = run_job(job, run.content)
        hit("after-fold", run.round, job.sum)
        return result, time.monotonic() - began

    # -- storage that fails -------------------------------------------------------------------------------------

    def _lose(self, error: Exception) -> None:
        """What is in memory may be ahead of what is durable: only the store is believed now."""
        if self._failed is None:
            _log.error("run lost its storage", exc_info=error)
            self._failed = StoreError("the run is being loaded again.", remedy="Ask again in a moment.")
            self.wake()
            self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        delay = FIRST_RETRY
        while True:
            await self._sleep(delay)
            try:
                loaded = await asyncio.to_thread(self._load)
            except ConsiliumError as error:
                _log.error("run cannot be loaded", code=error.code, wait_seconds=delay)
                delay = min(2 * delay, LONGEST_RETRY)
                continue
            self._loaded, self.boot, self._failed = loaded, secrets.token_bytes(16), None
            self.version += 1
            self.wake()
            return

    async def close(self) -> None:
        """Ends what is under way; what is durable stays."""
        self._failed = StoreError("the coordinator is stopping.", remedy="Ask again in a moment.")
        self.wake()
        for task in (self._work, self._recovery):
            if task is not None and not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    @staticmethod
    def _mark(run: Run) -> tuple[Any, ...]:
        """What every institution's directive depends on, beside its own messages."""
        attempt = run.attempt
        if attempt is None:
            return run.status, run.reason, run.round
        machine = attempt.machine
        current = machine.current
        asked = machine.asked(attempt.withdrawn.keys()) if machine.phase is AggregatorPhase.OPENINGS else frozenset()
        place = (run.round, attempt.number, machine.phase, current.name)
        return (*place, bool(current.transcript), attempt.folding, asked)
