"""Plots as inline SVG: text, no script, no outside reference, coloured by the page's own style sheet.

Why not a plotting library's SVG: these take the page's colours in light, dark and print, keep their words as words (for
screen readers and search), and weigh a few kB each. Series differ by colour *and* dash or pattern. Pure: values in,
text out; everything that comes from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Final

from studies.axes import Linear, Logarithmic, Scale

Point = tuple[int, float | None]
"""A round and its value; None is a gap."""

STYLES: Final = 8
"""Colours and dashes in the style sheet: classes `c0` … `c7`."""

_CHARACTER: Final = 6.3
"""Width of an average character of the 12-pixel text, generously."""


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Args:
        label: in the legend.
        points: round and value; None is a gap.
        style: colour and dash, by number.
        band: `(x, low, high)`: the spread, shaded.
    """

    label: str
    points: Sequence[Point]
    style: int = 0
    band: Sequence[tuple[int, float, float]] = field(default=())


@dataclass(frozen=True)
class Frame:
    """What every plot has: a title, a text for who cannot see it, axis labels and a size in pixels."""

    title: str
    description: str
    x_label: str = ""
    y_label: str = ""
    width: int = 520
    height: int = 300


def words_at(x: float, y: float, words: str, kind: str = "", anchor: str = "start", extra: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{chosen} text-anchor="{anchor}"{extra}>{escape(words)}</text>'


def wrap(frame: Frame, body: Sequence[str], height: float | None = None) -> str:
    """The SVG element around a plot's parts, with its title drawn and its description for screen readers."""
    tall = height or frame.height
    words = f"{frame.title}. {frame.description}"
    size = min(13.5, (frame.width - 16) / (0.58 * len(frame.title)))  # a long title gets smaller letters, never cut
    title = words_at(8, 19, frame.title, "title", extra=f' style="font-size:{size:.1f}px"')
    return (
        f'<svg class="plot" role="img" viewBox="0 0 {frame.width} {tall:.0f}" aria-label="{escape(words)}" '
        f'xmlns="http://www.w3.org/2000/svg">{title}{"".join(body)}</svg>'
    )


def legend_of(
    frame: Frame, entries: Sequence[tuple[str, int]], swatch: str, left: float = 8.0
) -> tuple[list[str], float]:
    """Entries in as many rows as they need; returns them and the height that they take."""
    parts: list[str] = []
    x, y = left, 40.0
    for label, style in entries:
        wide = 30 + len(label) * _CHARACTER + 14
        if x > left and x + wide > frame.width:
            x, y = left, y + 18
        mark = (
            f'<line class="line c{style % STYLES}" x1="{x:.0f}" y1="{y - 4:.0f}" x2="{x + 24:.0f}" y2="{y - 4:.0f}"/>'
            if swatch == "line"
            else f'<rect class="bar c{style % STYLES}" x="{x:.0f}" y="{y - 10:.0f}" width="14" height="11"/>'
        )
        parts += [mark, words_at(x + (30 if swatch == "line" else 20), y, label)]
        x += wide
    return parts, (y - 22 if entries else 0.0)


@dataclass(frozen=True)
class Area:
    left: float
    top: float
    right: float
    bottom: float

    def x(self, place: float) -> float:
        return self.left + place * (self.right - self.left)

    def y(self, place: float) -> float:
        return self.bottom - place * (self.bottom - self.top)


def axes_of(frame: Frame, area: Area, x: Scale | None, y: Scale, grid: bool = True) -> list[str]:
    parts = []
    for place, label in y.ticks():
        at = area.y(place)
        if grid:
            parts.append(f'<line class="grid" x1="{area.left:.1f}" y1="{at:.1f}" x2="{area.right:.1f}" y2="{at:.1f}"/>')
        parts.append(words_at(area.left - 6, at + 4, label, "tick", "end"))
    for place, label in x.ticks() if x is not None else []:
        parts.append(words_at(area.x(place), area.bottom + 16, label, "tick", "middle"))
    ends = f'x1="{area.left:.1f}" y1="{area.bottom:.1f}" x2="{area.right:.1f}" y2="{area.bottom:.1f}"'
    parts.append(f'<line class="axis" {ends}/>')
    if frame.x_label:
        parts.append(words_at((area.left + area.right) / 2, area.bottom + 34, frame.x_label, "label", "middle"))
    if frame.y_label:
        middle = (area.top + area.bottom) / 2
        turn = f' transform="rotate(-90 14 {middle:.1f})"'
        parts.append(words_at(14, middle, frame.y_label, "label", "middle", turn))
    return parts


def line_chart(
    frame: Frame,
    lines: Sequence[Line],
    *,
    percent: bool = False,
    zero: bool = False,
    logarithmic: bool = False,
    least_span: float = 0.0,
    reference: tuple[float, str] | None = None,
    y_scale: Scale | None = None,
) -> str:
    """Values by round.

    Args:
        frame: title, words, size.
        lines: at most eight differ in style.
        percent: values are parts of one.
        zero: keep 0 on the axis.
        logarithmic: decades, zeros at the bottom.
        least_span: smallest span of the axis, so that noise is not blown up to a drama.
        reference: a value with its name, drawn as a thin line.
        y_scale: a shared axis, for plots that are compared side by side.
    """
    xs = [x for line in lines for x, _ in line.points] or [0, 1]
    values = [v for line in lines for _, v in line.points if v is not None]
    values += [v for line in lines for _, low, high in line.band for v in (low, high)]
    values += [reference[0]] if reference else []
    y: Scale = y_scale or (
        Logarithmic.around(values)
        if logarithmic
        else Linear.around(values, percent=percent, zero=zero, least_span=least_span)
    )
    x = Linear(min(xs), max(xs), whole=True, wanted=8 if frame.width > 400 else 5)
    legend, used = legend_of(frame, [(line.label, line.style) for line in lines] if len(lines) > 1 else [], "line")
    area = Area(58 if frame.y_label else 48, 34 + used, frame.width - 14, frame.height - (42 if frame.x_label else 24))
    parts = [*legend, *axes_of(frame, area, x, y)]
    if reference:
        at = area.y(y.place(reference[0]))
        parts.append(f'<line class="reference" x1="{area.left}" y1="{at:.1f}" x2="{area.right}" y2="{at:.1f}"/>')
        parts.append(words_at(area.right - 2, at - 4, reference[1], "tick", "end"))
    for line in lines:
        parts += _drawn(line, area, x, y)
    return wrap(frame, parts)


def _drawn(line: Line, area: Area, x: Scale, y: Scale) -> list[str]:
    style = line.style % STYLES
    parts = []
    if line.band:
        upper = [f"{area.x(x.place(r)):.1f},{area.y(y.place(high)):.1f}" for r, _, high in line.band]
        lower = [f"{area.x(x.place(r)):.1f},{area.y(y.place(low)):.1f}" for r, low, _ in reversed(line.band)]
        parts.append(f'<polygon class="band c{style}" points="{" ".join(upper + lower)}"/>')
    for known, run in groupby(line.points, key=lambda p: p[1] is not None):
        if not known:
            continue
        places = [(area.x(x.place(r)), area.y(y.place(v))) for r, v in run if v is not None]
        if len(places) == 1:
            parts.append(f'<circle class="dot c{style}" cx="{places[0][0]:.1f}" cy="{places[0][1]:.1f}" r="3"/>')
        else:
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
            parts.append(f'<polyline class="line c{style}" points="{points}"/>')
    return parts


def stacked_bars(frame: Frame, rounds: Sequence[str], series: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Bars of several parts each, one bar a round; `series` are the parts, from the bottom."""
    totals = [sum(values[i] for _, values in series) for i in range(len(rounds))]
    y = Linear.around(totals, zero=True)
    legend, used = legend_of(frame, [(name, i) for i, (name, _) in enumerate(series)], "bar")
    area = Area(58, 34 + used, frame.width - 14, frame.height - 42)
    parts = [*legend, *axes_of(frame, area, None, y)]
    slot = (area.right - area.left) / max(1, len(rounds))
    every = max(1, -(-len(rounds) // 10))
    for i, name in enumerate(rounds):
        base = 0.0
        for style, (_, values) in enumerate(series):
            low, high = area.y(y.place(base)), area.y(y.place(base + values[i]))
            base += values[i]
            if low - high > 0.05:
                parts.append(
                    f'<rect class="bar c{style % STYLES}" x="{area.left + slot * (i + 0.1):.1f}" y="{high:.1f}" '
                    f'width="{slot * 0.8:.1f}" height="{low - high:.1f}"/>'
                )
        if i % every == 0:
            parts.append(words_at(area.left + slot * (i + 0.5), area.bottom + 16, name, "tick", "middle"))
    return wrap(frame, parts)


def horizontal_bars(frame: Frame, bars: Sequence[tuple[str, float]], unit: str) -> str:
    """A labelled bar for each entry; the plot is as tall as it must be."""
    wide = 16 + max((len(name) for name, _ in bars), default=0) * _CHARACTER
    largest = max((value for _, value in bars), default=0.0) or 1.0
    room = frame.width - wide - 90
    parts, y = [], 36.0
    for name, value in bars:
        length = max(1.0, room * value / largest)
        parts += [
            words_at(wide - 6, y + 12, name, "", "end"),
            f'<rect class="bar c0" x="{wide:.1f}" y="{y:.1f}" width="{length:.1f}" height="15"/>',
            words_at(wide + length + 6, y + 12, f"{value:,.0f} {unit}", "tick"),
        ]
        y += 22
    return wrap(frame, parts, y + 6)
