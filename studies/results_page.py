"""The figures of studies for people: a table on the terminal, and docs/results.md. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from studies.catalogue import STUDIES, Study
from studies.outcomes import METRICS, Row

SHOWN: Final = METRICS[:3]


def table(study: Study, rows: Sequence[Row]) -> Table:
    """The main figures of one study, for a terminal."""
    splits = f"{rows[0].seeds} seeds, {rows[0].folds} folds, {rows[0].data} patients" if rows else "no complete split"
    t = Table(title=f"{study.name}: {splits}", box=SIMPLE_HEAD, caption=study.question, caption_justify="left")
    t.add_column("method")
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
    if row is None or row.paired_mean is None or row.paired_low is None or row.paired_high is None:
        return "–"
    sure = row.paired_low > 0 or row.paired_high < 0
    return f"{row.paired_mean:+.3f} [{row.paired_low:+.3f}, {row.paired_high:+.3f}]{' *' if sure else ''}"


def page(rows: Sequence[Row], missing: int) -> str:
    """docs/results.md.

    Args:
        rows: of all studies.
        missing: runs that the budget did not allow.
    """
    lines = [
        "# Results",
        "",
        "Made by `make studies`; every row is in [results.json](results.json) and made again by",
        "`python -m studies.run STUDY`. Figures are of the exported round, which validation patients choose, on test",
        "patients who have all modalities; `best round` is the largest figure of all rounds on the test patients, as",
        "papers report it. Brackets: 95% intervals over splits by the corrected resampled variance (Nadeau and Bengio",
        "2003), which knows that splits share patients; a star where the paired interval excludes zero.",
        "",
    ]
    if missing:
        lines += [f"**{missing} runs were not made: the budget was spent.** Only complete splits are counted.", ""]
    for name, study in STUDIES.items():
        own = [r for r in rows if r.study == name]
        lines += [f"## {name}", "", study.question, ""]
        if not own:
            lines += ["Not run.", ""]
            continue
        lines += [f"{own[0].seeds} seeds, {own[0].folds} folds each, {own[0].data} patients.", ""]
        metrics = list(dict.fromkeys(r.metric for r in own))
        for metric in metrics:
            each = [r for r in own if r.metric == metric]
            lines += [f"| {metric.replace('_', ' ')} | mean | minus {study.against} |", "|---|---|---|"]
            lines += [f"| {r.method} | {_mean(r)} | {_paired(r)} |" for r in each] + [""]
    return "\n".join(lines)
