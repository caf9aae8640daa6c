"""A running federation on a terminal. `render` is pure: a status and what came before it give something to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from consilium.v1 import service_pb2 as pb
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.figures import (
    Record,
    blended_combinations,
    blending,
    losses_of_institutions,
    metric,
    proximity,
    subsets_of,
    weights,
)
from deploy.history import History
from deploy.status_words import (
    ENDED,
    METRICS,
    chosen_words,
    clock,
    combinations_of,
    combinations_words,
    number,
    phase_words,
    plain,
)

WIDE: Final = 124
"""Columns from which the tables stand side by side."""

_SPARKS: Final = "▁▂▃▄▅▆▇█"
_MARKS: Final = {  # status: mark, mark in ASCII, style
    "in": ("●", "*", "green"),
    "enrolled": ("●", "*", "cyan"),
    "invited": ("○", "o", "dim"),
    "late": ("◐", "?", "bold yellow"),
    "gone": ("✕", "x", "bold red"),
    "refused": ("✕", "x", "bold red"),
    "sits out": ("–", "-", "magenta"),
}
_STATUS_STYLES: Final = {"finished": "bold green", "failed": "bold red", "stopped": "bold yellow"}


def sparkline(values: Sequence[float | None], width: int = 16) -> str:
    """The last values as small blocks, from their least to their largest; gaps are blanks."""
    shown = list(values)[-width:]
    known = [v for v in shown if v is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if v is None else _SPARKS[round((v - low) / span * 7) if span > 1e-12 else 3] for v in shown)


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
        if words := chosen_words(self.status):
            parts.append(Text(words, "yellow"))
        return Panel(Group(*parts), border_style="red" if summary.data == "synthetic" else "blue", padding=(0, 1))

    def _institutions(self, ascii_only: bool) -> RenderableType:
        table = _table()
        table.add_column("institution", no_wrap=True)
        table.add_column("modalities", style="dim", overflow="fold", ratio=1)
        table.add_column("status", no_wrap=True)
        for one in self.status.institutions:
            table.add_row(plain(one.name, 63), combinations_words(one), _mark(one, ascii_only))
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
        for name, words in METRICS:
            values = [metric(r, name) for r in records]
            known = [(v, int(r["round"])) for v, r in zip(values, records, strict=True) if v is not None]
            now = known[-1][0] if known else None
            best, when = max(known, key=lambda p: (p[0], -p[1])) if known else (None, None)
            cells = [words, number(now), number(best), "–" if when is None else str(when)]
            table.add_row(*cells, *([sparkline(values, sparks)] if sparks else []))
        return table

    def _blending(self, records: Sequence[Record], sparks: int) -> RenderableType:
        last = next((r for r in reversed(records) if r.get("blending")), None)
        if last is None:
            return Padding(Text("No round has opened its losses yet.", "dim"), (0, 2))
        combinations = blended_combinations(
            records, [c for one in self.status.institutions for c in combinations_of(one)]
        )
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
                number(blending(last, subset, "training_loss")),
                number(blending(last, subset, "validation_loss")),
                number(weight, 2),
                number(blending(last, subset, "dogr"), 2),
                number(proximity(last, subset), 2),
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
