"""The report's plots and tables, each from records or predictions; an empty text where there is nothing to draw."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from deploy.figures import (
    PHASES,
    Record,
    alive,
    blended_combinations,
    blending,
    metric,
    presence,
    proximity,
    subsets_of,
    weights,
)
from deploy.matrices import ReliabilityBin, confusion_matrix, presence_grid, reliability_curve
from deploy.verdicts import METHOD_NAMES, METRIC_NAMES
from federation.blending import BlendingSettings
from federation.evaluation import calibration_error, reliability_histogram
from studies.axes import Linear
from studies.charts import Frame, Line, Point, horizontal_bars, line_chart, stacked_bars

Titled = Callable[[str], str]

BARS: int = 60
"""Bars in a plot by round at most; more rounds share a bar, as their mean."""


class Predicted(Protocol):
    """What a prediction must tell."""

    @property
    def truth(self) -> int: ...
    @property
    def probabilities(self) -> Sequence[float]: ...


def _words(lines: Sequence[Line], percent: bool = False) -> str:
    """A plot in words: first and last value of each line."""

    def shown(value: float) -> str:
        return f"{value:.1%}" if percent else f"{value:.3g}"

    parts = []
    for line in lines:
        known = [(x, v) for x, v in line.points if v is not None]
        if known:
            (first, a), (last, b) = known[0], known[-1]
            parts.append(f"{line.label}: {shown(a)} in round {first}, {shown(b)} in round {last}")
    return "; ".join(parts) + "."


def learning(titled: Titled, records: Sequence[Record], curve: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Accuracy, balanced accuracy and AUROC by round: federated validation, and test by method with its spread."""
    drawn: list[str] = []
    for name, words in METRIC_NAMES.items():
        lines = []
        validation: list[Point] = [(r["round"], metric(r, name)) for r in records]
        if any(v is not None for _, v in validation):
            lines.append(Line("federated validation", validation, 7))
        order = [*METHOD_NAMES, *sorted(set(curve) - set(METHOD_NAMES))]
        for style, method in enumerate(m for m in order if m in curve):
            cells = [(int(row["round"]), row.get(name) or {}) for row in curve[method]]
            points: list[Point] = [(r, cell.get("mean")) for r, cell in cells]
            if any(v is not None for _, v in points):
                band = [
                    (r, c["mean"] - c["std"], c["mean"] + c["std"])
                    for r, c in cells
                    if c.get("mean") is not None and c.get("std") is not None
                ]
                lines.append(Line(f"test: {METHOD_NAMES.get(method, method)}", points, style, band))
        if lines:
            percent = name != "auroc"
            title = titled(f"{words[0].upper()}{words[1:]} by round")
            wide = 520 if drawn else 1060  # accuracy, the first, takes the whole row
            frame = Frame(title, _words(lines, percent), "round", "", wide, 320)
            drawn.append(line_chart(frame, lines, percent=percent, least_span=0.1))
    return drawn


def losses(titled: Titled, records: Sequence[Record]) -> list[str]:
    """Training and validation loss of each subset, on one scale."""
    subsets = subsets_of(records)
    by_subset: dict[str, list[Line]] = {}
    for subset in subsets:
        by_subset[subset] = [
            Line(words, [(r["round"], blending(r, subset, figure, fresh_only=True)) for r in records], style)
            for words, figure, style in (("training", "training_loss", 0), ("validation", "validation_loss", 1))
        ]
    values = [v for lines in by_subset.values() for line in lines for _, v in line.points if v is not None]
    scale = Linear.around(values, least_span=0.1)
    return [
        line_chart(Frame(titled(f"Loss, {s}"), _words(lines), "round", "", 340, 250), lines, y_scale=scale)
        for s, lines in by_subset.items()
    ]


def blending_figures(
    titled: Titled, records: Sequence[Record], combinations: Iterable[str], settings: BlendingSettings
) -> list[str]:
    """DGB's weights by combination, its scores and DOGR by subset, and PCW's proximity."""
    drawn = []
    subsets = subsets_of(records)
    style = {s: i for i, s in enumerate(subsets)}
    for combination in blended_combinations(records, combinations):
        lines = [Line(s, points, style.get(s, 7)) for s, points in weights(records, combination, settings).items()]
        frame = Frame(titled(f"DGB weight (step factor) at {combination}"), _words(lines), "round", "", 520, 320)
        drawn.append(line_chart(frame, lines, zero=True))
    for figure, title, logarithmic in (("score", "DGB score", True), ("dogr", "DOGR", True)):
        lines = [Line(s, [(r["round"], blending(r, s, figure)) for r in records], style[s]) for s in subsets]
        if any(v is not None for line in lines for _, v in line.points):
            frame = Frame(titled(f"{title} by subset"), _words(lines), "round", "", 520, 320)
            drawn.append(line_chart(frame, lines, logarithmic=logarithmic))
    near = [Line(s, [(r["round"], proximity(r, s)) for r in records], style[s]) for s in subsets]
    if any(v is not None for line in near for _, v in line.points):
        frame = Frame(titled("Proximity by subset (PCW, mean)"), _words(near), "round", "", 520, 320)
        drawn.append(line_chart(frame, near, zero=True))
    return drawn


def confusion(title: str, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix with its words."""
    total, right = sum(map(sum, counts)), sum(counts[i][i] for i in range(len(counts)))
    words = f"{right} of {total} test patients staged correctly. " + " ".join(
        f"Of {sum(row)} truly {name}, {', '.join(f'{n} as {p}' for p, n in zip(classes, row, strict=True))}."
        for name, row in zip(classes, counts, strict=True)
    )
    return confusion_matrix(Frame(title, words, width=260), classes, counts)


def _bins(histogram: Sequence[Sequence[float]]) -> list[ReliabilityBin]:
    return [ReliabilityBin(round(n), right, sure / n) for n, right, sure in histogram if n >= 1]


def reliability(
    titled: Titled, predictions: Sequence[Predicted], classes: int, records: Sequence[Record], bins: int = 10
) -> tuple[str, float | None]:
    """The reliability curve on the test patients and over the federation's validation patients, and the test's
    calibration error."""
    if not predictions:
        return "", None
    labels = np.array([p.truth for p in predictions], np.int64)
    histogram = reliability_histogram(labels, np.array([p.probabilities for p in predictions], np.float64), bins)
    curves = [("test patients", _bins(histogram.tolist()))]
    last = next((r["reliability"] for r in reversed(records) if r.get("reliability")), None)
    if last:
        summed = _bins(np.sum([np.asarray(rows, np.float64) for rows in last.values()], axis=0).tolist())
        if summed:
            curves.append(("federated validation", summed))
    tested = curves[0][1]
    words = " ".join(f"Where it gave {b.confidence:.0%}, {b.share:.0%} of {b.patients} were right." for b in tested)
    frame = Frame(titled("Reliability: how sure, and how often right"), words, "probability of the predicted stage",
                  "part that was right", 520, 340)  # fmt: skip
    return reliability_curve(frame, curves, 1 / classes), calibration_error(histogram)


def presence_by_round(titled: Titled, records: Sequence[Record], institutions: Sequence[str]) -> str:
    """Who was in which round."""
    if not records:
        return ""
    grid = [[presence(r, i) for r in records] for i in institutions]
    full = sum(all(row[i] == "in" for row in grid) for i in range(len(records)))
    words = f"All {len(institutions)} institutions took part in {full} of {len(records)} rounds."
    frame = Frame(titled("Institutions by round"), words, width=1060)
    return presence_grid(frame, institutions, [r["round"] for r in records], grid)


def burnt_rounds(records: Sequence[Record]) -> list[int]:
    """Round numbers that were given up: no record was committed under them."""
    numbers = {int(r["round"]) for r in records}
    return sorted(set(range(1, max(numbers, default=0) + 1)) - numbers)


def _phase_names(records: Sequence[Record]) -> list[str]:
    seen = dict.fromkeys(p for r in records for p in r.get("seconds") or {})
    return [p for p in PHASES if p in seen] + [p for p in seen if p not in PHASES]


def phases(titled: Titled, records: Sequence[Record]) -> str:
    """Seconds by round and phase."""
    names = _phase_names(records)
    if not names:
        return ""
    group = -(-len(records) // BARS)
    chunks = [records[i : i + group] for i in range(0, len(records), group)]
    series = [(p, [statistics.fmean((r.get("seconds") or {}).get(p, 0.0) for r in c) for c in chunks]) for p in names]
    total = sum(sum(v) for _, v in series) / len(chunks)
    shared = f" (mean of {group} rounds a bar)" if group > 1 else ""
    words = f"{total:.2f} seconds a round on average."
    frame = Frame(titled(f"Seconds by round and phase{shared}"), words, "round", "seconds", 1060, 300)
    return stacked_bars(frame, [str(c[0]["round"]) for c in chunks], series)


def phase_rows(records: Sequence[Record]) -> list[tuple[str, float, float, float]]:
    """Phase, median and longest seconds, and its part of all the time."""
    spent = {p: [float((r.get("seconds") or {}).get(p, 0.0)) for r in records] for p in _phase_names(records)}
    total = sum(map(sum, spent.values())) or 1.0
    return [(p, statistics.median(v), max(v), sum(v) / total) for p, v in spent.items()]


def memory(titled: Titled, processes: Mapping[str, float]) -> str:
    """Peak memory by process."""
    if not processes:
        return ""
    order = sorted(processes.items(), key=lambda p: (p[0] != "coordinator", p[0]))
    words = "; ".join(f"{name}: {mib:.0f} MiB" for name, mib in order) + "."
    return horizontal_bars(Frame(titled("Peak memory by process"), words, width=520), order, "MiB")


def round_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row a round: who took part, metrics, losses of each subset."""
    subsets = subsets_of(records)
    return [
        {
            "round": r["round"],
            "attempt": r.get("attempt", 1),
            "institutions": len(r.get("cohort", ())),
            "updates": len(alive(r, "updates")),
            "statistics": len(alive(r, "statistics")),
            "metrics": [metric(r, m) for m in METRIC_NAMES],
            "subsets": [
                (s, blending(r, s, "training_loss"), blending(r, s, "validation_loss"), blending(r, s, "score"))
                for s in subsets
            ],
        }
        for r in records
    ]
