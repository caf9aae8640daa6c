"""A running federation on the operator's screen: a live table in a terminal, plain lines elsewhere.

`render` is pure: a status and what came before it give something that `rich` can draw. Nothing from the wire is read as
markup or reaches the terminal as a control character: a coordinator may lie, and must not be able to draw.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from consilium.v1 import service_pb2 as pb
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.figures import (
    UNCLAMPED,
    Record,
    blended_combinations,
    blending,
    losses_of_institutions,
    metric,
    proximity,
    subsets_of,
    training_rounds,
    weights,
)
from federation.blending import BlendingSettings
from security.errors import ConsiliumError, ProtocolError

__all__ = ["History", "RecordError", "render", "log_lines", "watch", "sparkline"]

ENDED: Final = frozenset({"finished", "stopped", "failed"})
WIDE: Final = 124
"""Columns from which the tables stand side by side."""

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SUMS: Final = {
    "updates": "training",
    "statistics": "evaluation",
    "weights": "set-up, patient weights",
}
_PHASES: Final = {
    "keys": "exchanging keys",
    "shares": "dealing shares",
    "uploads": "institutions compute and send, masked",
    "signatures": "institutions sign who is in",
    "openings": "opening the sum",
    "opening": "adding up",
    "done": "committing",
}
_MARKS: Final = {  # status: mark, mark in ASCII, style
    "in": ("●", "*", "green"),
    "enrolled": ("●", "*", "cyan"),
    "invited": ("○", "o", "dim"),
    "late": ("◐", "?", "bold yellow"),
    "gone": ("✕", "x", "bold red"),
    "refused": ("✕", "x", "bold red"),
    "sits out": ("–", "-", "magenta"),
}
_PRESENT: Final = frozenset({"invited", "enrolled", "in"})
"""Between these an institution passes in every round; whatever else it is, it is away."""
_STATUS_STYLES: Final = {"finished": "bold green", "failed": "bold red", "stopped": "bold yellow"}
_METRICS: Final = (("accuracy", "accuracy"), ("balanced_accuracy", "balanced acc."), ("auroc", "AUROC"))


def plain(words: str, limit: int = 160) -> str:
    """Text from the wire without control characters, bounded: none may move the cursor or end a line."""
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words[: limit + 1])
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


class RecordError(ProtocolError):
    """A record that is not that of a committed round."""

    code = "record"


def _parsed(text: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(text)
        # Read once, all that is drawn later: what cannot be read stops here and not in the middle of a screen.
        following = record | {"round": int(record["round"]) + 1}
        _round_line(record, 1)
        losses_of_institutions([record])
        for subset in record.get("blending") or {}:
            proximity(record, subset)
            blending(record, subset, "dogr")
            weights([record, following], subset)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, ConsiliumError):
        raise RecordError(
            "the coordinator sent a round's record that cannot be read.",
            remedy="Use a command of the coordinator's own version.",
        ) from None
    return record


@dataclass
class History:
    """Records of the committed rounds that have come so far.

    Args:
        settings: the plan's DGB settings, where they are known; plain shares without.
    """

    settings: BlendingSettings = UNCLAMPED
    _records: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Of training rounds, in order."""
        return training_rounds(self._records.values())

    def take(self, status: pb.RunStatus) -> list[Record]:
        """Adds a status's records, each round once, and returns those that are new, in order.

        Raises:
            RecordError: a record is not that of a round.
        """
        new = []
        for text in status.records:
            record = _parsed(text)
            if record["round"] not in self._records:
                self._records[record["round"]] = record
                new.append(record)
        return sorted(new, key=lambda r: int(r["round"]))


def sparkline(values: Sequence[float | None], width: int = 16) -> str:
    """The last values as small blocks, from their least to their largest; gaps are blanks."""
    shown = list(values)[-width:]
    known = [v for v in shown if v is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if v is None else _SPARKS[round((v - low) / span * 7) if span > 1e-12 else 3] for v in shown)


def clock(seconds: float) -> str:
    """1:05, or 2:03:04."""
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def phase_words(phase: str) -> str:
    """A phase for people: `updates: uploads` is `training: institutions compute and send, masked`."""
    name, found, rest = phase.rpartition(": ")
    words = _PHASES.get(rest, plain(rest, 40))
    return f"{_SUMS.get(name, 'set-up, ' + plain(name, 30))}: {words}" if found else words


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.1e}"


@dataclass(frozen=True)
class _Screen:
    """Everything of one moment; fits itself to the width and height it is drawn in."""

    status: pb.RunStatus
    history: History

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        ascii_only = options.ascii_only
        wide = options.max_width >= WIDE
        rows = len(self.status.institutions)
        subsets = len(subsets_of(self.history.records))
        below = max(rows, subsets + 8) if wide else rows + subsets + 12
        roomy = options.size.height >= below + 9
        yield self._header(ascii_only)
        people = self._institutions(ascii_only) if roomy else self._people_in_short(ascii_only)
        figures = self._figures(ascii_only, options.max_width)
        if wide and roomy:
            grid = Table.grid(expand=True, padding=(0, 1))
            grid.add_column(ratio=10)
            grid.add_column(ratio=14)
            grid.add_row(people, figures)
            yield grid
        else:
            yield Group(people, figures)
        if self.status.summary.status in ENDED:
            yield self._ending()

    def _header(self, ascii_only: bool) -> RenderableType:
        summary = self.status.summary
        title = Text(plain(summary.name, 60), "bold")
        if summary.data == "synthetic":
            title.append("  ")
            title.append(" SYNTHETIC DATA ", "bold white on red")
        else:
            title.append(f"  {plain(summary.data, 20)} data", "dim")
        state = summary.status
        title.append(f"  {plain(state, 20)}", _STATUS_STYLES.get(state, "bold cyan"))
        line = Table.grid(expand=True, padding=(0, 1))
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        done = len(self.history.records) if state not in ENDED else summary.round
        label = "set-up" if summary.round == 0 else f"round {summary.round}/{summary.rounds}"
        if state == "enrolling":
            label = "enrolling"
        times = f"elapsed {clock(self.status.elapsed_seconds)}"
        if state not in ENDED:
            left = self.status.remaining_seconds
            times += f"  about {clock(left)} left" if left > 0 else "  time left unknown"
        most = max(1, summary.rounds)
        bar = ProgressBar(most, min(done, most), complete_style="cyan", finished_style="green")
        line.add_row(Text(label, "bold"), Padding(bar, (0, 1)), Text(times))
        parts: list[RenderableType] = [title, line]
        if state not in ENDED:
            doing = Text(phase_words(self.status.phase))
            if self.status.attempt > 1:
                doing.append(f"   attempt {self.status.attempt}", "bold yellow")
            lost = len(losses_of_institutions(self.history.records))
            if lost:
                doing.append(f"   {lost} {'dropout' if lost == 1 else 'dropouts'} so far", "dim")
            parts.append(doing)
        return Panel(Group(*parts), border_style="red" if summary.data == "synthetic" else "blue", padding=(0, 1))

    def _institutions(self, ascii_only: bool) -> RenderableType:
        table = _table()
        table.add_column("institution", no_wrap=True)
        table.add_column("modalities", style="dim", overflow="fold", ratio=1)
        table.add_column("status", no_wrap=True)
        for one in self.status.institutions:
            table.add_row(plain(one.name, 63), plain(one.combination, 80), _mark(one, ascii_only))
        return table

    def _people_in_short(self, ascii_only: bool) -> RenderableType:
        """One line of counts, and the names of those who are not in: for a low terminal."""
        by_status: dict[str, list[str]] = {}
        for one in self.status.institutions:
            by_status.setdefault(one.status, []).append(plain(one.name, 63))
        line = Text("institutions: ")
        for i, (status, names) in enumerate(sorted(by_status.items(), key=lambda p: -len(p[1]))):
            mark, simple, style = _MARKS.get(status, ("?", "?", "bold"))
            line.append("   " if i else "")
            line.append(f"{simple if ascii_only else mark} {len(names)} {plain(status, 20)}", style)
            if status not in ("in", "enrolled", "invited"):
                line.append(f" ({', '.join(names)})", "dim")
        return Padding(line, (0, 2))

    def _figures(self, ascii_only: bool, width: int) -> RenderableType:
        records = self.history.records
        if not records:
            return Padding(Text("The first figures come with the first committed round.", "dim"), (1, 2))
        room = 16 if 96 <= width < WIDE or width >= WIDE + 30 else 12 if width >= WIDE + 10 else 8
        sparks = 0 if ascii_only else room
        return Group(self._metrics(records, sparks), self._blending(records, sparks))

    def _metrics(self, records: Sequence[Record], sparks: int) -> RenderableType:
        table = _table()
        table.add_column("federated validation", no_wrap=True, ratio=1)
        for name in ("now", "best", "in round"):
            table.add_column(name, justify="right", no_wrap=True)
        if sparks:
            table.add_column("course", no_wrap=True, style="cyan", min_width=sparks)
        for name, words in _METRICS:
            values = [metric(r, name) for r in records]
            known = [(v, int(r["round"])) for v, r in zip(values, records, strict=True) if v is not None]
            now = known[-1][0] if known else None
            best, when = max(known, key=lambda p: (p[0], -p[1])) if known else (None, None)
            cells = [words, _number(now), _number(best), "–" if when is None else str(when)]
            table.add_row(*cells, *([sparkline(values, sparks)] if sparks else []))
        return table

    def _blending(self, records: Sequence[Record], sparks: int) -> RenderableType:
        last = next((r for r in reversed(records) if r.get("blending")), None)
        if last is None:
            return Padding(Text("No round has opened its losses yet.", "dim"), (0, 2))
        combinations = blended_combinations(records, [one.combination for one in self.status.institutions])
        found = weights(records, combinations[0], self.history.settings) if combinations else {}
        table = _table()
        table.caption = _caption(last, combinations)
        table.add_column("losses, blending", overflow="fold", ratio=1)
        for name in ("train", "valid.", "weight", "DOGR", "prox."):
            table.add_column(name, justify="right", no_wrap=True)
        if sparks:
            table.add_column("course", no_wrap=True, style="cyan", min_width=sparks)
        for subset in subsets_of(records):
            course = [blending(r, subset, "validation_loss", fresh_only=True) for r in records]
            weight = found[subset][-1][1] if subset in found else None
            cells = [
                plain(subset, 80),
                _number(blending(last, subset, "training_loss")),
                _number(blending(last, subset, "validation_loss")),
                _number(weight, 2),
                _number(blending(last, subset, "dogr"), 2),
                _number(proximity(last, subset), 2),
            ]
            table.add_row(*cells, *([sparkline(course, sparks)] if sparks else []))
        return table

    def _ending(self) -> RenderableType:
        summary = self.status.summary
        text = Text(f" {plain(summary.status, 20)}", _STATUS_STYLES.get(summary.status, "bold"))
        text.append(f" after round {summary.round} of {summary.rounds}", "")
        if summary.reason:
            text.append(f": {plain(summary.reason)}", "")
        return text


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, expand=True, border_style="dim", header_style="bold", caption_justify="left")


def _caption(last: Record, combinations: Sequence[str]) -> Text:
    words = f"round {last['round']}; course: validation loss"
    if combinations:
        words += f"; weights at {plain(combinations[0], 60)}"
    return Text(f"  {words}", "dim")


def _mark(one: pb.InstitutionStatus, ascii_only: bool) -> Text:
    mark, simple, style = _MARKS.get(one.status, ("?", "?", "bold"))
    text = Text(f"{simple if ascii_only else mark} {plain(one.status, 20)}", style)
    if one.reason:
        text.append(f" ({plain(one.reason, 40)})", "dim")
    return text


def render(status: pb.RunStatus, history: History) -> RenderableType:
    """The screen of one moment; `history` has taken the status's records already."""
    return _Screen(status, history)


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
        say(_round_line(record, summary.rounds))
    here = (summary.round, status.attempt, status.phase)
    if summary.status not in ENDED and (before is None or here != (before.summary.round, before.attempt, before.phase)):
        attempt = f", attempt {status.attempt}" if status.attempt > 1 else ""
        say(f"round {summary.round}{attempt}: {phase_words(status.phase)}")
    if summary.status in ENDED and (before is None or before.summary.status != summary.status):
        reason = f": {plain(summary.reason)}" if summary.reason else ""
        say(f"{plain(summary.status, 20)} after round {summary.round} of {summary.rounds}{reason}")
    return lines


def _round_line(record: Record, rounds: int) -> str:
    if record["round"] == 0:
        return "set-up committed: feature schema and weights agreed"
    parts = [f"round {record['round']}/{rounds} committed", f"{len(record.get('cohort', ()))} institutions"]
    lost = len(losses_of_institutions([record]))
    if lost:
        parts.append(f"{lost} dropped out")
    for name, words in _METRICS:
        value = metric(record, name)
        if value is not None:
            parts.append(f"{words} {value:.3f}")
    for subset in subsets_of([record]):
        train, valid = blending(record, subset, "training_loss"), blending(record, subset, "validation_loss")
        parts.append(f"{plain(subset, 80)} {_number(train)}/{_number(valid)}")
    if not record.get("blending"):
        parts.append("no statistics")
    return ", ".join(parts)


def watch(
    statuses: Iterable[pb.RunStatus],
    console: Console | None = None,
    *,
    settings: BlendingSettings = UNCLAMPED,
    now: Callable[[], float] = time.monotonic,
) -> pb.RunStatus | None:
    """Shows a run until its statuses end: a live table on a terminal, lines elsewhere.

    Args:
        statuses: in order, each with the records since the one before.
        console: where to; standard output by default.
        settings: the plan's DGB settings, where they are known.
        now: a clock in seconds, so that the elapsed time runs on between statuses.

    Returns:
        The last status; None if there was none.
    """
    console = console or Console(file=sys.stdout)
    history = History(settings)
    last: pb.RunStatus | None = None
    if not console.is_terminal:
        away: dict[str, str] = {}
        for status in statuses:
            for line in log_lines(last, status, history.take(status), away):
                console.print(Text(line), soft_wrap=True)
            last = status
        return last
    came = now()

    def current() -> RenderableType:
        return Text("waiting for the coordinator …", "dim") if last is None else render(at(last, now() - came), history)

    with Live(console=console, get_renderable=current, refresh_per_second=4, vertical_overflow="crop") as live:
        for status in statuses:
            history.take(status)
            last, came = status, now()
            live.refresh()
    return last


def at(status: pb.RunStatus, seconds: float) -> pb.RunStatus:
    """The status as it stands some seconds later, while nothing new has come."""
    if status.summary.status in ENDED or seconds <= 0:
        return status
    later = pb.RunStatus()
    later.CopyFrom(status)
    later.elapsed_seconds += seconds
    if later.remaining_seconds > 0:
        later.remaining_seconds = max(1.0, later.remaining_seconds - seconds)
    return later
