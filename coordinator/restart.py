"""What a restart takes up of a run: the state of its last committed round, and the attempt that a durable point keeps.

What cannot be read any more is a typed error, so that it ends its own run and not the coordinator. A database or a disk
that cannot be used at all is another matter (StoreError, StorageError), and passes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from consilium.v1 import round_pb2 as pb
from google.protobuf.message import DecodeError

from coordinator.attempt import Attempt, latest_point
from coordinator.outcome import RoundOutcome
from coordinator.state import RunState
from coordinator.store import Point, StoreError
from federation.plan import Plan
from federation.rounds import Cohorts
from federation.vectors import ContentStore, StorageError
from security.errors import ConsiliumError
from security.secure_sum.spec import Context


class RunDamagedError(ConsiliumError):
    """What the coordinator kept of a run cannot be restored: it was changed, lost, or written by another release."""

    code = "run-damaged"


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turns whatever is wrong with `what` into RunDamagedError."""
    try:
        yield
    except (StoreError, StorageError, RunDamagedError):
        raise
    except (ConsiliumError, DecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        code = error.code if isinstance(error, ConsiliumError) else "unreadable"
        raise RunDamagedError(
            f"{what} cannot be restored ({code}).",
            remedy="Start a new run under another name; nothing of this one was deleted.",
        ) from error


def plan_of(plan_bytes: bytes) -> Plan:
    """The plan of a run that was begun before.

    Raises:
        RunDamagedError: this release cannot read it.
    """
    with restoring("its plan"):
        return Plan.from_bytes(plan_bytes)


def committed_state(text: str) -> RunState:
    """The state after the last committed round.

    Raises:
        RunDamagedError: it cannot be read.
    """
    with restoring("the state of its last round"):
        return RunState.from_json(text)


def resumed_attempt(
    points: Sequence[Point],
    round_: int,
    state: RunState,
    cohorts: Cohorts,
    content: ContentStore,
    context: Callable[[bytes, int], Context],
) -> tuple[Attempt, str]:
    """The attempt that the newest durable point keeps, and that point's kind.

    Args:
        points: of the round, at least one.
        round_: the round.
        state: when it began.
        cohorts: of the plan.
        content: of the run.
        context: makes the attempt's context from its RoundStart and number.

    Raises:
        RunDamagedError: point, journal or content cannot be restored.
    """
    with restoring(f"the record of round {round_}"):
        sums = state.sums(cohorts, content, round_)
        point = latest_point(points, sums)
        saved = pb.Checkpoint.FromString(point.blob)
        spec = cohorts.attempt(context(saved.round_start, saved.attempt), sums)
        return Attempt.resumed(saved, spec, RoundOutcome(cohorts, content, sums, state)), point.kind
