"""Plots of counts: a confusion matrix, a reliability curve, and who was in which round. Inline SVG, as in `charts`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from deploy.figures import Presence
from studies.axes import Linear
from studies.charts import Area, Frame, axes_of, legend_of, words_at, wrap

_WORST: Final[Sequence[Presence]] = ("in", "updates only", "absent", "lost")
SHOWN_ROUNDS: Final = 100


def confusion_matrix(frame: Frame, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Patients by true class (row) and predicted class (column), with each row's shares."""
    names = [name if len(name) <= 14 else name[:13] + "…" for name in classes]
    left = 34 + max(len(name) for name in names) * 6.6
    top = 62.0
    size = min(112.0, (frame.width - left - 12) / len(names))
    tall = size * 0.72
    parts = [words_at(left + size * len(names) / 2, 40, "predicted", "label", "middle")]
    for column, name in enumerate(names):
        parts.append(words_at(left + size * (column + 0.5), 56, name, "", "middle"))
    middle = top + tall * len(names) / 2
    parts.append(words_at(12, middle, "true", "label", "middle", f' transform="rotate(-90 12 {middle:.1f})"'))
    for row, name in enumerate(names):
        parts.append(words_at(left - 8, top + tall * (row + 0.5) + 4, name, "", "end"))
        total = sum(counts[row])
        for column, count in enumerate(counts[row]):
            share = count / total if total else 0.0
            x, y = left + size * column, top + tall * row
            right = " right" if row == column else ""
            parts += [
                f'<rect class="cell{right}" x="{x:.1f}" y="{y:.1f}" width="{size - 2:.1f}" height="{tall - 2:.1f}" '
                f'style="fill-opacity:{0.05 + 0.4 * share:.2f}"/>',
                words_at(x + size / 2, y + tall / 2, str(count), "count", "middle"),
                words_at(x + size / 2, y + tall / 2 + 17, f"{share:.0%}" if total else "–", "share", "middle"),
            ]
    return wrap(frame, parts, top + tall * len(names) + 8)


@dataclass(frozen=True)
class ReliabilityBin:
    """Patients whose predicted class got a probability in one interval."""

    patients: int
    correct: float
    confidence: float

    @property
    def share(self) -> float:
        """Part that was right."""
        return self.correct / self.patients

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's 95% interval of `share` (JASA 1927): what so few patients leave open."""
        n, p = self.patients, self.share
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)


def reliability_curve(frame: Frame, curves: Sequence[tuple[str, Sequence[ReliabilityBin]]], lowest: float) -> str:
    """How often the model was right by how sure it was; the first curve with its intervals.

    Args:
        frame: title, words, size.
        curves: name and non-empty bins, from unsure to sure.
        lowest: the least probability that a predicted class can have, 1 over the number of classes.
    """
    x = Linear(math.floor(lowest * 10) / 10, 1.0, percent=True)
    y = Linear(0.0, 1.0, percent=True)
    legend, used = legend_of(frame, [(name, i) for i, (name, _) in enumerate(curves)], "line")
    area = Area(58, 34 + used, frame.width - 18, frame.height - 42)
    parts = [*legend, *axes_of(frame, area, x, y)]
    parts.append(
        f'<line class="reference" x1="{area.x(0):.1f}" y1="{area.y(y.place(x.low)):.1f}" '
        f'x2="{area.x(1):.1f}" y2="{area.y(1):.1f}"/>'
    )
    for style, (_, bins) in enumerate(curves):
        places = [(area.x(x.place(b.confidence)), area.y(y.place(b.share))) for b in bins]
        parts.append(f'<polyline class="line c{style}" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>')
        for (at, high), b in zip(places, bins, strict=True):
            if style == 0:
                low, up = (area.y(y.place(v)) for v in b.interval())
                parts.append(f'<line class="whisker c0" x1="{at:.1f}" y1="{low:.1f}" x2="{at:.1f}" y2="{up:.1f}"/>')
            parts.append(f'<circle class="dot c{style}" cx="{at:.1f}" cy="{high:.1f}" r="{3 if style else 4}"/>')
    return wrap(frame, parts)


def presence_grid(
    frame: Frame, institutions: Sequence[str], rounds: Sequence[int], grid: Sequence[Sequence[Presence]]
) -> str:
    """Who was in which round; beyond a hundred rounds, neighbours share a column that shows the worst of them.

    Args:
        frame: title, words, width; the plot is as tall as it must be.
        institutions: rows.
        rounds: columns.
        grid: a row of states per institution.
    """
    group = max(1, -(-len(rounds) // SHOWN_ROUNDS))
    columns = [range(i, min(i + group, len(rounds))) for i in range(0, len(rounds), group)]
    left = 16 + max((len(name) for name in institutions), default=0) * 6.3
    slot = min(26.0, (frame.width - left - 12) / max(1, len(columns)))
    parts, y = [], 64.0
    x = 8.0
    for state, words in (
        ("in", "took part"),
        ("updates only", "left before its statistics"),
        ("lost", "left before its update"),
        ("absent", "not there"),
    ):
        parts += [_mark(state, x, 30, 12, 14), words_at(x + 18, 41, words)]
        x += 40 + len(words) * 6.3
    for name, states in zip(institutions, grid, strict=True):
        parts.append(words_at(left - 8, y + 11, name, "", "end"))
        for i, column in enumerate(columns):
            state = max((states[r] for r in column), key=_WORST.index)
            parts.append(_mark(state, left + slot * i, y, max(1.5, slot - 1.5), 14))
        y += 18
    every = max(1, -(-len(columns) // 12))
    for i in range(0, len(columns), every):
        words = str(rounds[columns[i][0]])
        parts.append(words_at(left + slot * (i + 0.5), y + 13, words, "tick", "middle"))
    label = "round" if group == 1 else f"round ({group} rounds a column, the worst of them shown)"
    parts.append(words_at(left + slot * len(columns) / 2, y + 31, label, "label", "middle"))
    return wrap(frame, parts, y + 40)


def _mark(state: str, x: float, y: float, wide: float, tall: float) -> str:
    kind = escape(state.replace(" ", "-"))
    box = f'<rect class="at {kind}" x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{tall:.1f}"/>'
    if state == "lost":  # a cross too: colour alone is not enough
        ends = (x + 1, y + 2, x + wide - 1, y + tall - 2)
        box += "".join(
            f'<line class="cross" x1="{ends[0]:.1f}" y1="{a:.1f}" x2="{ends[2]:.1f}" y2="{b:.1f}"/>'
            for a, b in ((ends[1], ends[3]), (ends[3], ends[1]))
        )
    if state == "updates only":
        box += f'<rect class="half" x="{x:.1f}" y="{y + tall / 2:.1f}" width="{wide:.1f}" height="{tall / 2:.1f}"/>'
    return box
