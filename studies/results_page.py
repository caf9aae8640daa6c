"""The figures of studies for people: a table on the terminal, and docs/results.md. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from studies.catalogue import STUDIES, Study
from studies.outcomes import BEST, LAST, METRICS, UPLOADED, Row
from studies.significance import smallest_seen_by

SHOWN: Final = METRICS[:3]
OURS: Final = "DGB + PCW"
HEAD: Final = """# Results

Made by `make studies`; every row is in [results.json](results.json) and made again by `python -m studies.run STUDY`.

How to read it:

- **Figures** are of the exported round, which validation patients choose, on test patients who were at no institution.
  Scored is who lacks none of the modalities that the patient's cohort has.
- **Brackets** are 95% intervals over splits with the corrected resampled variance (Nadeau and Bengio 2003), which knows
  that splits share patients. Ten splits of the same patients are worth little more than four: the intervals are wide,
  and honestly so.
- **minus CM-FL** is paired: the same split, initial model, batches and dropout; a star where the interval excludes
  zero; p is two-sided, and not corrected for how many comparisons stand here; "patients" is the interval of the same
  difference when patients are drawn anew (bootstrap) on these splits.
- **best round** is the largest figure of all rounds on the test patients, as papers report it; it is chosen on the test
  set and is no estimate of anything. **last round** is that of the run's last round, which nobody chose.
- *calibration error* is the expected calibration error, *log loss* the mean negative log-likelihood in nats; smaller is
  better for both.
"""


def table(study: Study, rows: Sequence[Row]) -> Table:
    """The main figures of one study, for a terminal."""
    splits = f"{rows[0].seeds} seeds, {rows[0].folds} folds, {rows[0].data} patients" if rows else "no complete split"
    t = Table(title=f"{study.name}: {splits}", box=SIMPLE_HEAD, caption=study.question, caption_justify="left")
    t.add_column("method", no_wrap=True)
    for metric in SHOWN:
        t.add_column(metric.replace("_", " "), justify="right", no_wrap=True)
        t.add_column(f"minus {study.against}", justify="right", no_wrap=True)
    for variant in study.variants:
        own = {r.metric: r for r in rows if r.method == variant.name}
        if own:
            t.add_row(variant.name, *(text for m in SHOWN for text in (_mean(own.get(m)), _paired(own.get(m)))))
    return t


def _mean(row: Row | None) -> str:
    return "–" if row is None else f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}]"


def _paired(row: Row | None) -> str:
    return "–" if row is None else _difference(row.paired_mean, row.paired_low, row.paired_high)


def _difference(mean: float | None, low: float | None, high: float | None) -> str:
    if mean is None or low is None or high is None:
        return "–"
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]{' *' if low < high and not low <= 0 <= high else ''}"


def _whole(row: Row | None) -> str:
    """A paired difference with all that is known of it."""
    if row is None or row.paired_mean is None or row.paired_p is None:
        return "–"
    text = f"{_paired(row)}, p {row.paired_p:.2g}"
    if row.patients_low is not None and row.patients_high is not None:
        text += f"; patients [{row.patients_low:+.3f}, {row.patients_high:+.3f}]"
    return text


def page(
    rows: Sequence[Row],
    missing: int,
    findings: Mapping[str, str] | None = None,
    figures: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """docs/results.md.

    Args:
        rows: of all studies.
        missing: runs that the budget did not allow.
        findings: study to what is to be said of it; `""` to what is to be said of all.
        figures: study to the paths of its figures, seen from the page.
    """
    said, drawn = findings or {}, figures or {}
    lines = [HEAD]
    if missing:
        lines += [f"**{missing} runs were not made: the budget was spent.** Only complete splits are counted.", ""]
    if "" in said:
        lines += ["## What it comes to", "", said[""].strip(), ""]
    for name, study in STUDIES.items():
        own = [r for r in rows if r.study == name]
        lines += [f"## {name}", "", study.question, ""]
        if not own:
            lines += ["Not run.", ""]
            continue
        one = own[0]
        task = f"{study.task.name}, {study.rounds} rounds" if study.rounds else study.task.name
        seeds = f"{one.seeds} seed{'s'[: one.seeds > 1]}, {one.folds} fold{'s'[: one.folds > 1]} each"
        lines += [f"{seeds}, {one.data} patients; {task}; `python -m studies.run {name}`.", ""]
        if one.seeds * one.folds == 1:
            lines += ["One split tells nothing of the spread: its brackets are no intervals.", ""]
        if name in said:
            lines += [said[name].strip(), ""]
        lines += [line for path in drawn.get(name, ()) for line in (f"![{name}]({path})", "")]
        lines += _tables(study, {(r.method, r.metric): r for r in own})
    return "\n".join(lines)


def _tables(study: Study, rows: Mapping[tuple[str, str], Row]) -> list[str]:
    methods = [v.name for v in study.variants]
    metrics = list(dict.fromkeys(metric for _, metric in rows))
    main = [m for m in (*METRICS, UPLOADED) if m in metrics]
    lines = _table(methods, main, [_words(m) for m in main], rows, _mean)
    lines += _table(methods, list(SHOWN), [f"{_words(m)}, minus {study.against}" for m in SHOWN], rows, _whole)
    lines += _power(study, rows)
    if study.beside:
        heads = [f"{_words(m)}, minus {study.beside}" for m in SHOWN]
        lines += _table(methods, list(SHOWN), heads, rows, _beside)
    cohorts = list(dict.fromkeys(m.split("(", 1)[1][:-1] for m in metrics if m.endswith(")")))
    if len(cohorts) > 1:
        for metric in METRICS[1:3]:
            each = [f"{metric} ({c})" for c in cohorts]
            lines += _table(methods, each, [f"{_words(metric)}, {c}" for c in cohorts], rows, _mean_and_paired)
    rounds = [f"{which} {m}" for which in (LAST, BEST) for m in SHOWN[1:] if f"{which} {m}" in metrics]
    return lines + _table(methods, rounds, [_words(m) for m in rounds], rows, _mean_and_paired)


def _power(study: Study, rows: Mapping[tuple[str, str], Row]) -> list[str]:
    """How small a difference such a study would have found, of the plan's own method."""
    found = []
    for metric in SHOWN:
        row = rows.get((OURS, metric))
        if row is None or row.paired_mean is None or row.paired_high is None or row.seeds * row.folds < 2:
            continue
        seen = smallest_seen_by(row.paired_high - row.paired_mean, row.seeds * row.folds)
        found.append(f"{_words(metric)} {seen:.3f}")
    if not found:
        return []
    told = f"smallest true difference that four of five such studies would find ({OURS} against {study.against})"
    return [f"Power: the {told} is {', '.join(found)}.", ""]


def _table(
    methods: Sequence[str],
    metrics: Sequence[str],
    heads: Sequence[str],
    rows: Mapping[tuple[str, str], Row],
    cell: Callable[[Row | None], str],
) -> list[str]:
    body = []
    for method in methods:
        texts = [cell(rows.get((method, m))) for m in metrics]
        if any(text != "–" for text in texts):
            body.append(f"| {method} | {' | '.join(texts)} |")
    if not body:
        return []
    return [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|", *body, ""]


def _beside(row: Row | None) -> str:
    return "–" if row is None else _difference(row.beside_mean, row.beside_low, row.beside_high)


def _mean_and_paired(row: Row | None) -> str:
    paired = _paired(row)
    return "–" if row is None else f"{row.mean:.3f}" + ("" if paired == "–" else f" ({paired})")


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace("auroc", "AUROC")
