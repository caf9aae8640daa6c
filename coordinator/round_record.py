"""What is kept of a committed round, for people and reports: aggregates, names and codes, as canonical JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from coordinator.attempt import Attempt
from coordinator.results import RoundStatistics, figures_json, scores_json, subgroups_json
from coordinator.selection import Selection


def round_record(
    round_: int, attempt: Attempt, traffic: Mapping[str, int], seconds: Mapping[str, float], selection: Selection
) -> str:
    """The record of a round.

    Args:
        round_: its number.
        attempt: the one that opened.
        traffic: payload bytes, `up` and `down`.
        seconds: by phase.
        selection: after the round.
    """
    machine, result = attempt.machine, attempt.outcome.statistics
    record: dict[str, Any] = {
        "round": round_,
        "attempt": attempt.number,
        "cohort": sorted(machine.cohort),
        "sums": {name: {"alive": sorted(s.alive)} for name, s in machine.finished.items()},
        "opened": attempt.outcome.names(),
        "withdrawn": dict(sorted(attempt.withdrawn.items())),
        "passed_over": {name: list(holders) for name, holders in sorted(machine.passed_over.items())},
        "bytes": {"up": traffic.get("up", 0), "down": traffic.get("down", 0)},
        "seconds": {phase: round(spent, 4) for phase, spent in seconds.items()},
        "selection": selection.said(),
    }
    if result is not None:
        record |= statistics_record(result)
    return json.dumps(record, sort_keys=True, allow_nan=False)


def statistics_record(result: RoundStatistics) -> dict[str, Any]:
    """What a round's record tells of an opened sum B."""
    counted = {"subgroups": subgroups_json(result.subgroups)} if result.subgroups else {}
    return counted | {
        "blending": figures_json(result.figures),
        "proximity": dict(result.proximity),
        "metrics": {name: scores_json(s) for name, s in result.rows.items()},
        "confusion": {name: row.confusion.tolist() for name, row in result.counts.items()},
        "reliability": {name: row.reliability.tolist() for name, row in result.counts.items()},
        "clipped": dict(result.clipped),
    }
