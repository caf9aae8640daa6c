"""What the coordinator keeps for people: the store's events and the audit log, written beside the run's own work.

One thread writes in order, so that no phase waits for a disk flush of a line that only people read. What must be
recorded before it happens (an operator's start or stop) is written with `now` and waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any, Final

import structlog

from coordinator.store import Field, Store
from security.audit import AuditLog, FieldValue
from security.certificates import Identity
from security.errors import ConsiliumError

_SAME_REFUSAL: Final = timedelta(minutes=1)
_MOST: Final = 1000
_log = structlog.get_logger("consilium.coordinator.records")


class Recorder:
    """The one writer of events and audit entries.

    Args:
        store: of the runs.
        audit: the coordinator's audit log.
        clock: the time.
    """

    def __init__(self, store: Store, audit: AuditLog, clock: Callable[[], datetime]) -> None:
        self._store, self._audit, self._clock = store, audit, clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._refusals: dict[tuple[str, str], datetime] = {}

    def event(self, run: str, kind: str, fields: Mapping[str, Field]) -> None:
        """Adds to a run's events, soon."""
        self._soon(self._store.add_event, run, kind, dict(fields), self._clock())

    def audit(self, event: str, **fields: FieldValue) -> Future[Any]:
        """Adds to the audit log; the future is done once it is on the disk."""
        return self._soon(self._audit.append, event, fields, self._clock())

    def refused(self, error: ConsiliumError, identity: Identity | None) -> None:
        """A certificate was refused: one entry a minute for each party and reason, whatever it tries."""
        name = identity.name if identity else error.culprits[0] if error.culprits else ""
        now = self._clock()
        last = self._refusals.get((name, error.code))
        if last is not None and now - last < _SAME_REFUSAL:
            return
        if len(self._refusals) > _MOST:
            self._refusals.clear()
        self._refusals[name, error.code] = now
        fields: dict[str, FieldValue] = {"reason": error.code}
        if name:
            fields["peer"] = name
        self._soon(self._audit.append, "call-refused", fields, now)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.shutdown(wait=True)

    def _soon(self, write: Callable[..., Any], *args: Any) -> Future[Any]:
        future = self._writer.submit(write, *args)
        future.add_done_callback(_tell)
        return future


def _tell(future: Future[Any]) -> None:
    error = future.exception()
    if error is not None:
        _log.error("a record could not be written", exc_info=error)
