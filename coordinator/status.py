"""A run as its operator sees it. Pure: a run in, messages out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import datetime

from consilium.v1 import plan_pb2
from consilium.v1 import service_pb2 as pb
from google.protobuf.message import DecodeError

from coordinator.run import Attempt, Run
from coordinator.store import CommittedRound
from coordinator.store import Run as Row
from security.secure_sum.phases import BEFORE_SUMS, AggregatorPhase


def summary_of(row: Row) -> pb.RunSummary:
    """One line about a run that the store has."""
    plan = plan_pb2.Plan()
    with contextlib.suppress(DecodeError):  # checked when it came; damaged since, the run is shown all the same
        plan.ParseFromString(row.plan)
    return pb.RunSummary(
        run=bytes.fromhex(row.run),
        name=row.name,
        status="enrolling" if row.status == "created" else row.status,
        reason=row.reason,
        round=min(row.round, plan.rounds),
        rounds=plan.rounds,
        data=plan.data,
    )


def status_of(
    run: Run, committed: Sequence[CommittedRound], ended_at: datetime | None, now: datetime, records: Sequence[str] = ()
) -> pb.RunStatus:
    """Where a run stands.

    Args:
        run: the run.
        committed: its committed rounds, in order.
        ended_at: when it ended; None while it runs.
        now: the time.
        records: what to send along.
    """
    best = run.plan.evaluation.select == "best"
    chosen = run.state.selection.chosen
    return pb.RunStatus(
        summary=pb.RunSummary(
            run=run.id,
            name=run.plan.run,
            status=run.status,
            reason=run.reason,
            round=min(run.round, run.plan.rounds),
            rounds=run.plan.rounds,
            data=run.plan.data,
        ),
        attempt=run.attempt.number if run.attempt else 0,
        phase=run.phase,
        elapsed_seconds=max(0.0, ((ended_at or now) - run.began).total_seconds()),
        remaining_seconds=0.0 if run.ended else remaining_seconds(run.plan.rounds, committed, now),
        institutions=institutions_of(run),
        records=records,
        chosen_by=run.state.selection.by if best else "",
        chosen_round=chosen.round if best and chosen is not None else 0,
    )


def remaining_seconds(rounds: int, committed: Sequence[CommittedRound], now: datetime) -> float:
    """Estimate from the pace of the committed training rounds; 0: not known yet."""
    if not committed:
        return 0.0
    first, last = committed[0], committed[-1]
    steps = last.round - first.round
    if steps < 1:
        return 0.0
    pace = (last.at - first.at).total_seconds() / steps
    return max(0.0, (rounds - last.round) * pace - (now - last.at).total_seconds())


def institutions_of(run: Run) -> list[pb.InstitutionStatus]:
    """Every institution of the roster, in plan order."""
    found = []
    for name in run.plan.roster:
        status, reason = _standing(run, name)
        held, whole = run.plan.combinations(name), run.plan.combination(name)
        several = held if len(held) > 1 else ()
        found.append(
            pb.InstitutionStatus(name=name, combination=whole, status=status, reason=reason, combinations=several)
        )
    return found


def _standing(run: Run, name: str) -> tuple[str, str]:
    if name not in run.enrolled:
        return "invited", ""
    if run.enrolled[name]:
        return "refused", run.enrolled[name]
    excluded = run.excluded(name)
    if excluded:
        return "sits out", excluded
    if run.attempt is None or run.ended:
        return "enrolled", ""
    return _in_attempt(run.attempt, name)


def _in_attempt(attempt: Attempt, name: str) -> tuple[str, str]:
    machine = attempt.machine
    if name in attempt.withdrawn:
        return "gone", attempt.withdrawn[name]
    if name not in machine.keys:
        return ("enrolled", "") if machine.phase is AggregatorPhase.KEYS else ("late", "keys")
    if machine.phase in BEFORE_SUMS:
        return "in", ""
    if name not in machine.cohort:
        return "gone", "shares"
    listed = machine.phase in (AggregatorPhase.SIGNATURES, AggregatorPhase.OPENINGS)
    if listed and name in machine.uploaders() and name not in machine.current.alive:
        return "gone", machine.current.name
    return "in", ""
