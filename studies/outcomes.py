"""What a study's cells come to: figures with their intervals, paired with the variant they are held against. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from federation.evaluation import Scores, scores_exact
from studies.catalogue import Study, Variant
from studies.cells import Cell, CellResult
from studies.scoring import ALL
from studies.significance import Interval, corrected_interval
from studies.tcga import TEST_PART

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "calibration_error")
BEST: Final = "best round"
"""Prefix of the largest figure of all rounds on the test patients: what papers report, and nobody should choose by."""


@dataclass(frozen=True)
class Row:
    """One figure of one variant: a row of docs/results.json.

    Attributes:
        study, method: names; `method` is the variant's.
        data: "real" or "synthetic".
        metric: `auroc`, `auroc (BRCA)`, `best round auroc`.
        mean, low, high: over splits, with the corrected resampled interval (`studies.significance`).
        seeds, folds: of the splits.
        paired_mean, paired_low, paired_high: minus the variant that it is held against, split by split; None for that.
        paired_p: of no difference, two-sided; None as above.
    """

    study: str
    data: str
    method: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: int
    folds: int
    paired_mean: float | None = None
    paired_low: float | None = None
    paired_high: float | None = None
    paired_p: float | None = None


Split = tuple[int, int]
"""Seed and fold."""


def rows_of(study: Study, results: Mapping[Cell, CellResult], data: str) -> list[Row]:
    """All figures of a study, over the splits that have every variant.

    Args:
        study: whose cells these are.
        results: of any cells; those of other studies are passed over.
        data: "real" or "synthetic".

    Returns:
        Empty where no split is complete.
    """
    splits = complete_splits(study, results)
    if not splits:
        return []
    by_variant = {v.name: _figures(study, v, splits, results) for v in study.variants}
    base, seeds = by_variant[study.against], len({seed for seed, _ in splits})
    rows: list[Row] = []
    for name, figures in by_variant.items():
        for metric, values in figures.items():
            i = corrected_interval(values, TEST_PART)
            paired: Interval | None = None
            if name != study.against and metric in base:
                paired = corrected_interval([a - b for a, b in zip(values, base[metric], strict=True)], TEST_PART)
            rows.append(
                Row(
                    study.name, data, name, metric, i.mean, i.low, i.high, seeds, len(splits) // seeds,
                    *((paired.mean, paired.low, paired.high, paired.p) if paired else ()),
                )
            )  # fmt: skip
    return rows


def complete_splits(study: Study, results: Mapping[Cell, CellResult]) -> list[Split]:
    """Seed and fold of the splits that every variant has, in order; only seeds with as many folds as the others."""
    found: dict[int, list[int]] = {}
    for seed, fold in sorted({(cell.seed, cell.fold) for cell in results}):
        if all(cell in results for v in study.variants for cell in study.of(v, seed, fold)):
            found.setdefault(seed, []).append(fold)
    most = max(map(len, found.values()), default=0)
    return [(seed, fold) for seed, folds in found.items() if len(folds) == most for fold in folds]


def _figures(
    study: Study, variant: Variant, splits: Sequence[Split], results: Mapping[Cell, CellResult]
) -> dict[str, list[float]]:
    """Metric to its value in every split; a metric that some split cannot give is left out."""
    each = [_mean([_of_split(results[cell]) for cell in study.of(variant, *split)]) for split in splits]
    return {m: [split[m] for split in each] for m in each[0] if all(m in split for split in each)}


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the figures that all have."""
    return {m: sum(f[m] for f in figures) / len(figures) for m in figures[0] if all(m in f for f in figures)}


def _of_split(result: CellResult) -> dict[str, float]:
    found = predictions_scores(result)
    figures = {
        metric if row == ALL else f"{metric} ({row})": value
        for row, scores in found.items()
        for metric in METRICS
        if (value := getattr(scores, metric)) is not None
    }
    for metric in METRICS[:3]:
        known = [r[metric] for r in result.curve]
        best = [value for value in known if value is not None]
        if best and len(best) == len(known):
            figures[f"{BEST} {metric}"] = max(best)
    return figures


def predictions_scores(result: CellResult) -> dict[str, Scores]:
    """`all`, then each cohort, to the scores of the exported model."""
    of, cohorts = result.predictions, np.array(result.cohorts)
    found = {ALL: scores_exact(of.labels, of.probabilities)}
    for name in dict.fromkeys(result.cohorts):
        own = cohorts == name
        found[name] = scores_exact(of.labels[own], of.probabilities[own])
    return found
