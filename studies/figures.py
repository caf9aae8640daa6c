"""A study's figures as SVG files: what each variant comes to with its interval, and figures by round. Pure.

They lie in docs/ and are shown as images, so that each carries its own colours, for light and dark pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

import numpy as np

from studies.axes import Linear
from studies.catalogue import Study
from studies.cells import Cell, CellResult
from studies.charts import Area, Frame, Line, line_chart, words_at, wrap
from studies.outcomes import Row, complete_splits

PANELS: Final = (("balanced_accuracy", "balanced accuracy"), ("auroc", "AUROC"))
STYLE: Final = """<style>
svg { --ink:#1b2430; --soft:#4d5a6a; --card:#f5f7fa; --rule:#d3dae3; --c0:#005fa3; --c1:#b3470a; --c2:#00755a;
  --c3:#8a3b86; --c4:#7a6200; --c5:#3d7fb8; --c6:#a8325e; --c7:#59636f; background:var(--card); }
@media (prefers-color-scheme: dark) { svg { --ink:#e6ebf1; --soft:#aab6c4; --card:#1b232d; --rule:#35414f; --c0:#6cb8ff;
  --c1:#ff9d5c; --c2:#4fd3a8; --c3:#e39de0; --c4:#e2c34d; --c5:#a6d3ff; --c6:#ff8fb4; --c7:#aab6c4; } }
text { font:12px system-ui,-apple-system,"Segoe UI","Liberation Sans",Arial,sans-serif; fill:var(--ink); }
.title { font-weight:650; } .tick { font-size:11px; fill:var(--soft); } .label { fill:var(--soft); }
.grid { stroke:var(--rule); } .axis { stroke:var(--soft); } .reference { stroke:var(--soft); stroke-dasharray:4 4; }
.line { fill:none; stroke:var(--c); stroke-width:2; stroke-linejoin:round; } .band { fill:var(--c); opacity:.13; }
.whisker { stroke:var(--c); stroke-width:1.6; } .dot { fill:var(--c); }
.c0 { --c:var(--c0); } .c1 { --c:var(--c1); stroke-dasharray:7 4; } .c2 { --c:var(--c2); stroke-dasharray:2 4; }
.c3 { --c:var(--c3); stroke-dasharray:10 3 2 3; } .c4 { --c:var(--c4); stroke-dasharray:5 2; } .c5 { --c:var(--c5); }
.c6 { --c:var(--c6); stroke-dasharray:1 3; } .c7 { --c:var(--c7); stroke-dasharray:3 3; }
.whisker, .dot, .band { stroke-dasharray:none; }
</style>"""

_ROW: Final = 22
_LETTER: Final = 7.0
_GAP: Final = 44


def standalone(svg: str) -> str:
    """An SVG file: the plot with its own style sheet."""
    head, rest = svg.split(">", 1)
    return f"{head}>{STYLE}{rest}\n"


def forest(study: Study, rows: Sequence[Row]) -> str:
    """Each variant's balanced accuracy and AUROC with their intervals; a line at what they are paired with.

    Args:
        study: whose rows these are.
        rows: of it, at least one.
    """
    names = [v.name for v in study.variants if any(r.method == v.name for r in rows)]
    left, wide = 16 + max(map(len, names)) * _LETTER, 300.0
    tall = 58 + _ROW * len(names) + 42
    one = rows[0]
    splits = f"{one.seeds} seeds × {one.folds} folds, {one.data} patients"
    frame = Frame(f"{study.name}: {splits}", study.question, width=int(left + 2 * (wide + _GAP)), height=int(tall))
    parts = [words_at(left - 8, 58 + _ROW * (k + 0.68), name, "", "end") for k, name in enumerate(names)]
    for panel, (metric, title) in enumerate(PANELS):
        own = {r.method: r for r in rows if r.metric == metric}
        start = left + panel * (wide + _GAP)
        area = Area(start, 54.0, start + wide, 58.0 + _ROW * len(names))
        scale = Linear.around([v for r in own.values() for v in (r.low, r.high)], least_span=0.04, wanted=5)
        parts.append(words_at((area.left + area.right) / 2, 46, title, "label", "middle"))
        for place, label in scale.ticks():
            x = area.x(place)
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{area.top}" x2="{x:.1f}" y2="{area.bottom}"/>')
            parts.append(words_at(x, area.bottom + 16, label, "tick", "middle"))
        if study.against in own:
            x = area.x(scale.place(own[study.against].mean))
            parts.append(f'<line class="reference" x1="{x:.1f}" y1="{area.top}" x2="{x:.1f}" y2="{area.bottom}"/>')
        for k, name in enumerate(names):
            if name in own:
                parts += _whisker(own[name], scale, area, area.top + 4 + _ROW * (k + 0.5), study)
    said = f"mean, 95% interval over splits; dashed: {study.against}; orange: the paired difference's excludes zero"
    parts.append(words_at(left, tall - 8, said, "tick"))
    return standalone(wrap(frame, parts))


def _whisker(row: Row, scale: Linear, area: Area, y: float, study: Study) -> list[str]:
    low, high = row.paired_low, row.paired_high
    sure = low is not None and high is not None and low < high and not low <= 0 <= high
    style = 7 if row.method == study.against else 1 if sure else 0
    start, mid, end = (area.x(scale.place(v)) for v in (row.low, row.mean, row.high))
    told = f"{row.method}: {row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return [
        f'<line class="whisker c{style}" x1="{start:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}"/>',
        f'<circle class="dot c{style}" cx="{mid:.1f}" cy="{y:.1f}" r="4"><title>{escape(told)}</title></circle>',
    ]


def by_round(study: Study, results: Mapping[Cell, CellResult], metric: str, data: str) -> str | None:
    """A figure of the test patients by round, each federated variant's mean over splits; None where nothing has one.

    A run that stopped early keeps its last value.

    Args:
        study: whose cells these are.
        results: of any cells.
        metric: of `CellResult.curve`.
        data: what the patients are called.
    """
    splits = complete_splits(study, results)
    lines: list[Line] = []
    for variant in study.variants:
        curves = [[r[metric] for r in results[cell].curve] for split in splits for cell in study.of(variant, *split)]
        if not curves or not all(curves) or any(v is None for curve in curves for v in curve):
            continue
        whole = np.array([[*c, *[c[-1]] * (study.rounds - len(c))] for c in curves], np.float64)
        points = [(k + 1, float(v)) for k, v in enumerate(whole.mean(axis=0))]
        lines.append(Line(f"{variant.name}   ", points, len(lines)))  # wider letters than the legend counts on
    if not lines:
        return None
    name = metric.replace("_", " ").replace("auroc", "AUROC")
    title = f"{study.name}: {name} by round, {data} test patients, mean of {len(splits)} splits"
    frame = Frame(title, study.question, "round", name, 720, 340)
    return standalone(line_chart(frame, lines, least_span=0.02))


def losses_by_round(study: Study, variant: str, results: Mapping[Cell, CellResult], data: str) -> str | None:
    """Training and validation losses of each subset by round, the mean over splits: which modality overfits when.

    Args:
        study: whose cells these are.
        variant: the name of one of its variants.
        results: of any cells.
        data: what the patients are called.
    """
    chosen = next(v for v in study.variants if v.name == variant)
    runs = [results[cell].losses for split in complete_splits(study, results) for cell in study.of(chosen, *split)]
    subsets = [s for s in (runs[0][0] if runs and runs[0] else {}) if all(s in r for run in runs for r in run)]
    lines = []
    for style, subset in enumerate(subsets):
        for part in ("training", "validation"):
            points = []
            for k in range(study.rounds):
                values = [run[k][subset][part] for run in runs if k < len(run)]
                known = [v for v in values if v is not None]
                points.append((k + 1, float(np.mean(known)) if known else None))
            lines.append(Line(f"{subset}, {part}", points, style * 2 + (part == "validation")))
    if not lines:
        return None
    title = f"{variant}: losses by round, {data} patients, mean of {len(runs)} runs"
    frame = Frame(title, "Training and validation losses of each subset.", "round", "cross-entropy, nats", 720, 380)
    return standalone(line_chart(frame, lines))
