"""A running federation where there is no terminal: plain lines, one a committed round. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from consilium.v1 import service_pb2 as pb

from deploy.figures import Record, blending, losses_of_institutions, metric, subsets_of
from deploy.status_words import ENDED, METRICS, chosen_words, clock, number, phase_words, plain
from federation.subgroups import OTHER

_PRESENT: Final = frozenset({"invited", "enrolled", "in"})
"""Between these an institution passes in every round; whatever else it is, it is away."""


def log_lines(
    before: pb.RunStatus | None,
    status: pb.RunStatus,
    new: Iterable[Record],
    away: dict[str, str] | None = None,
) -> list[str]:
    """What to say where there is no terminal: one line a committed round, phase changes, comings and goings, the end.

    Args:
        before: the status before this one; None at first.
        status: now.
        new: records that came with it (`History.take`).
        away: institution to the absence that was told of it last; brought up to date. None: as `before` has it.
    """
    if away is None:
        away = {} if before is None else {i.name: i.status for i in before.institutions if i.status not in _PRESENT}
    summary = status.summary
    kind = "SYNTHETIC " if summary.data == "synthetic" else ""
    lines = []

    def say(words: str) -> None:
        lines.append(f"[{clock(status.elapsed_seconds):>7}] {kind}{plain(summary.name, 60)}: {words}")

    if before is None:
        say(f"{plain(summary.data, 20)} data, {len(status.institutions)} institutions, {summary.rounds} rounds")
    for one in status.institutions:
        if one.status not in _PRESENT:
            if away.get(one.name) != one.status:
                reason = f" ({plain(one.reason, 60)})" if one.reason else ""
                say(f"{plain(one.name, 63)} is {plain(one.status, 20)}{reason}")
            away[one.name] = one.status
        # Whoever is dead counts as enrolled while the next round's keys are awaited: only a key message is a return.
        elif one.name in away and (one.status == "in" or away[one.name] == "refused"):
            say(f"{plain(one.name, 63)} is back")
            del away[one.name]
    for record in new:
        say(round_line(record, summary.rounds))
    here = (summary.round, status.attempt, status.phase)
    if summary.status not in ENDED and (before is None or here != (before.summary.round, before.attempt, before.phase)):
        attempt = f", attempt {status.attempt}" if status.attempt > 1 else ""
        say(f"round {summary.round}{attempt}: {phase_words(status.phase)}")
    if chosen_words(status) and (before is None or before.chosen_by != status.chosen_by):
        say(chosen_words(status))
    if summary.status in ENDED and (before is None or before.summary.status != summary.status):
        reason = f": {plain(summary.reason)}" if summary.reason else ""
        say(f"{plain(summary.status, 20)} after round {summary.round} of {summary.rounds}{reason}")
    return lines


def subgroup_lines(records: Iterable[Record]) -> list[str]:
    """The figures of the last round that counted patients by subgroup, one line a group; none: no lines."""
    counted = [r for r in records if r.get("subgroups")]
    if not counted:
        return []
    lines = [f"by subgroup, round {counted[-1]['round']}"]
    for attribute, groups in counted[-1]["subgroups"].items():
        for group, told in sorted(groups.items(), key=lambda each: (each[0] == OTHER, each[0])):
            name = f"{plain(attribute, 63)}: {plain(group, 60)}"
            figures = [f"{words} {number(told.get(metric))}" for metric, words in METRICS] if told else ["too few"]
            lines.append(f"  {name:28} {', '.join(figures)}")
    return lines


def round_line(record: Record, rounds: int) -> str:
    """A committed round in one line."""
    if record["round"] == 0:
        return "set-up committed: feature schema and weights agreed"
    parts = [f"round {record['round']}/{rounds} committed", f"{len(record.get('cohort', ()))} institutions"]
    lost = len(losses_of_institutions([record]))
    if lost:
        parts.append(f"{lost} dropped out")
    for name, words in METRICS:
        value = metric(record, name)
        if value is not None:
            parts.append(f"{words} {value:.3f}")
    for subset in subsets_of([record]):
        train, valid = blending(record, subset, "training_loss"), blending(record, subset, "validation_loss")
        parts.append(f"{plain(subset, 80)} {number(train)}/{number(valid)}")
    if not record.get("blending"):
        parts.append("no statistics")
    return ", ".join(parts)
