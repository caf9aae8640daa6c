"""What a study's cells come to: figures with their intervals, paired with the variant they are held against. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from federation.evaluation import Scores, scores_exact
from studies.catalogue import Study, Variant
from studies.cells import Cell, CellResult
from studies.scoring import ALL
from studies.significance import Float64, Interval, bootstrap_means, corrected_interval
from studies.tcga import FOLDS, TEST_PART

METRICS: Final = ("accuracy", "balanced_accuracy", "auroc", "macro_f1", "calibration_error", "log_loss")
DRAWN: Final = ("accuracy", "balanced_accuracy", "auroc")
"""Figures that patients are drawn anew for, too."""
BEST: Final = "best round"
"""Prefix of the largest figure of all rounds on the test patients: what papers report, and nobody should choose by."""
LAST: Final = "last round"
"""Prefix of the figure of the run's last round, which nobody chose."""
UPLOADED: Final = "MB up a round"
"""Model words of all institutions together, in 10⁶ bytes."""
DRAWS: Final = 400


@dataclass(frozen=True)
class Row:
    """One figure of one variant: a row of docs/results.json.

    Attributes:
        study, method: names; `method` is the variant's.
        data: `tcga` and the like, or `synthetic`.
        metric: `auroc`, `auroc (BRCA)`, `best round auroc`.
        mean, low, high: over splits, with the corrected resampled interval (`studies.significance`).
        seeds, folds: of the splits.
        paired_mean, paired_low, paired_high: minus conventional multi-modal FL, split by split; None for that itself.
        paired_p: of no difference, two-sided.
        patients_low, patients_high: of the same difference, by the bootstrap over patients.
        beside_mean, beside_low, beside_high: minus the study's `beside`.
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
    patients_low: float | None = None
    patients_high: float | None = None
    beside_mean: float | None = None
    beside_low: float | None = None
    beside_high: float | None = None


Split = tuple[int, int]
"""Seed and fold."""


def rows_of(study: Study, results: Mapping[Cell, CellResult], data: str, draws: int = 0) -> list[Row]:
    """All figures of a study, over the splits that have every variant.

    Args:
        study: whose cells these are.
        results: of any cells; those of other studies are passed over.
        data: what the patients are called.
        draws: of patients, for the bootstrap; 0: none.

    Returns:
        Empty where no split is complete.
    """
    splits = complete_splits(study, results)
    if not splits:
        return []
    by_variant = {v.name: _figures(study, v, splits, results) for v in study.variants}
    drawn = {v.name: _drawn(study, v, splits, results, draws) for v in study.variants} if draws else {}
    base, seeds = by_variant[study.against], len({seed for seed, _ in splits})
    rows: list[Row] = []
    for name, figures in by_variant.items():
        for metric, values in figures.items():
            i = corrected_interval(values, TEST_PART)
            paired = _paired(values, base.get(metric)) if name != study.against else None
            beside = _paired(values, by_variant[study.beside].get(metric)) if name != study.beside != "" else None
            told = asdict(Row(study.name, data, name, metric, i.mean, i.low, i.high, seeds, len(splits) // seeds))
            if paired is not None:
                told |= {"paired_mean": paired.mean, "paired_low": paired.low, "paired_high": paired.high}
                told |= {"paired_p": paired.p}
                if metric in drawn.get(name, {}) and metric in drawn[study.against]:
                    low, high = np.quantile(drawn[name][metric] - drawn[study.against][metric], (0.025, 0.975))
                    told |= {"patients_low": float(low), "patients_high": float(high)}
            if beside is not None:
                told |= {"beside_mean": beside.mean, "beside_low": beside.low, "beside_high": beside.high}
            rows.append(Row(**told))
    return rows


def _paired(values: Sequence[float], base: Sequence[float] | None) -> Interval | None:
    if base is None:
        return None
    return corrected_interval([a - b for a, b in zip(values, base, strict=True)], TEST_PART)


def complete_splits(study: Study, results: Mapping[Cell, CellResult]) -> list[Split]:
    """Seed and fold of splits that every variant has, in order: of all choices of whole folds the one with most splits.

    Every seed counts as many folds as the others, or a seed with four would weigh as four.
    """
    there = {
        split
        for split in {(cell.seed, cell.fold) for cell in results}
        if all(cell in results for v in study.variants for cell in study.of(v, *split))
    }
    seeds = sorted({seed for seed, _ in there})
    chosen: list[Split] = []
    for folds in range(1, FOLDS + 1):
        whole = [s for s in seeds if all((s, fold) in there for fold in range(folds))]
        if len(whole) * folds > len(chosen):
            chosen = [(s, fold) for s in whole for fold in range(folds)]
    return chosen


def _figures(
    study: Study, variant: Variant, splits: Sequence[Split], results: Mapping[Cell, CellResult]
) -> dict[str, list[float]]:
    """Metric to its value in every split; a metric that some split cannot give is left out."""
    each = [_mean([_of_split(results[cell]) for cell in study.of(variant, *split)]) for split in splits]
    return {m: [split[m] for split in each] for m in each[0] if all(m in split for split in each)}


def _drawn(
    study: Study, variant: Variant, splits: Sequence[Split], results: Mapping[Cell, CellResult], draws: int
) -> dict[str, Float64]:
    """Metric to its mean over splits in every draw of patients; of each alone, the mean over institutions."""
    runs = [[results[cell].predictions for cell in study.of(variant, *split)] for split in splits]
    return {m: np.mean([bootstrap_means(own, m, draws, 1) for own in zip(*runs, strict=True)], axis=0) for m in DRAWN}


def _mean(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the figures that all have."""
    return {m: sum(f[m] for f in figures) / len(figures) for m in figures[0] if all(m in f for f in figures)}


def _of_split(result: CellResult) -> dict[str, float]:
    found = predictions_scores(result)
    figures = {
        metric if row == ALL else f"{metric} ({row})": value
        for row, scores in found.items()
        for metric in METRICS[:5]
        if (value := getattr(scores, metric)) is not None
    }
    if (loss := _log_loss(result)) is not None:
        figures["log_loss"] = loss
    if result.uploaded:
        figures[UPLOADED] = result.uploaded / len(result.curve) / 1e6
    for metric in DRAWN:
        known = [r[metric] for r in result.curve]
        best = [value for value in known if value is not None]
        if best and len(best) == len(known):
            figures[f"{BEST} {metric}"] = max(best)
            figures[f"{LAST} {metric}"] = best[-1]
    return figures


def _log_loss(result: CellResult) -> float | None:
    """Mean negative log-likelihood in nats; None where a patient's class was held impossible."""
    of = result.predictions
    likely = of.probabilities[np.arange(len(of.labels)), of.labels]
    return float(-np.log(likely).mean()) if likely.min() > 0.0 else None


def predictions_scores(result: CellResult) -> dict[str, Scores]:
    """`all`, then each cohort, to the scores of the exported model."""
    of, cohorts = result.predictions, np.array(result.cohorts)
    found = {ALL: scores_exact(of.labels, of.probabilities)}
    for name in dict.fromkeys(result.cohorts):
        own = cohorts == name
        found[name] = scores_exact(of.labels[own], of.probabilities[own])
    return found
