"""Evaluation: counts that an institution sends into a secure sum, and the metrics made from their totals.

Local: confusion counts, score histograms (for AUROC), reliability histograms (for the calibration error). All
add up over institutions. Aggregate: accuracy, balanced accuracy, macro F1, AUROC and expected calibration
error from the summed counts. Exact: the same from pooled predictions, where somebody rightly holds them all.

A metric that the data cannot give (no patients, one class only) is None, never NaN. As in scikit-learn: a
class without patients is left out of balanced accuracy; one without patients and predictions is left out of
macro F1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError, ConsiliumError

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
Counts = Int64Array | Float64Array
Labels = npt.NDArray[np.integer[Any]]
Probabilities = npt.NDArray[np.floating[Any]]


class PredictionError(ConsiliumError):
    """Labels or probabilities from which no counts can be made."""

    code: ClassVar[str] = "predictions"


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of one set of predictions; None where the data cannot give one.

    Args:
        patients: how many were predicted.
        accuracy, balanced_accuracy, macro_f1: in [0, 1].
        auroc: of the second class (two classes), or the mean over classes of one against the rest.
        calibration_error: expected calibration error of the predicted class's probability, in [0, 1].
    """

    patients: int
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    auroc: float | None
    calibration_error: float | None


# -------------------------------------------------------------------------------------------- one institution


def _check(labels: Labels, probabilities: Probabilities, bins: int = 1) -> tuple[Int64Array, Float64Array]:
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or labels.shape != probabilities.shape[:1]:
        raise PredictionError(
            f"labels of shape {labels.shape} with probabilities of shape {probabilities.shape}.",
            remedy="Give n labels and n rows of at least two class probabilities.",
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise PredictionError(f"labels are {labels.dtype.name}.", remedy="Give class numbers as integers.")
    if bins < 1:
        raise ConfigurationError(f"{bins} bins.", remedy="Use at least 1 bin.")
    if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= probabilities.shape[1]):
        raise PredictionError("a label is not the number of a class.", remedy="Classes are numbered from 0.")
    p = probabilities.astype(np.float64)
    if not bool(np.all((p >= 0) & (p <= 1 + 1e-6))):  # NaN fails too; softmax in float32 can pass 1 by a bit
        raise PredictionError("a probability is NaN or outside [0, 1].", remedy="Apply softmax in the model's output.")
    return labels.astype(np.int64), p


def _bin(values: Float64Array, bins: int) -> Int64Array:
    return np.minimum((values * bins).astype(np.int64), bins - 1)


def confusion_counts(labels: Labels, probabilities: Probabilities) -> Int64Array:
    """Patients by true class (row) and predicted class (column; the most probable, the lower number on a
    tie).

    Args:
        labels: int[n], classes from 0.
        probabilities: float[n, C].

    Returns:
        int64[C, C].

    Raises:
        PredictionError: shapes do not fit, a label is no class, a probability is NaN or outside [0, 1].
    """
    y, p = _check(labels, probabilities)
    classes = p.shape[1]
    counts = np.bincount(y * classes + p.argmax(axis=1), minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def score_histograms(labels: Labels, probabilities: Probabilities, bins: int) -> Int64Array:
    """For each class, histograms of its probability: row 0 for patients of the class, row 1 for all others.

    Bin `b` holds probabilities in `[b/bins, (b+1)/bins)`, the last one 1 as well.

    Returns:
        int64[C, 2, bins].

    Raises:
        PredictionError: as in `confusion_counts`.
    """
    y, p = _check(labels, probabilities, bins)
    classes = p.shape[1]
    histograms = np.zeros((classes, 2, bins), np.int64)
    for c in range(classes):
        index = _bin(p[:, c], bins)
        histograms[c, 0] = np.bincount(index[y == c], minlength=bins)
        histograms[c, 1] = np.bincount(index[y != c], minlength=bins)
    return histograms


def reliability_histogram(labels: Labels, probabilities: Probabilities, bins: int) -> Float64Array:
    """For each bin of confidence (the predicted class's probability): patients, correct ones, sum of
    confidence.

    Returns:
        float64[bins, 3]; the first two columns are whole numbers.

    Raises:
        PredictionError: as in `confusion_counts`.
    """
    y, p = _check(labels, probabilities, bins)
    predicted = p.argmax(axis=1)
    confidence = np.minimum(p.max(axis=1, initial=0.0), 1.0)
    index = _bin(confidence, bins)
    histogram = np.zeros((bins, 3), np.float64)
    histogram[:, 0] = np.bincount(index, minlength=bins)
    histogram[:, 1] = np.bincount(index[predicted == y], minlength=bins)
    histogram[:, 2] = np.bincount(index, weights=confidence, minlength=bins)
    return histogram


# ---------------------------------------------------------------------------------------------- summed counts


def _counts(counts: Counts) -> Counts:
    """Under differential privacy a noised count can be negative or broken: below zero it counts as zero,
    which is post-processing and costs no privacy."""
    return np.maximum(counts, counts.dtype.type(0))


def accuracy(confusion: Counts) -> float | None:
    """Share of patients on the diagonal; None without patients."""
    counts = _counts(confusion)
    total = counts.sum().item()
    return float(np.trace(counts).item() / total) if total else None


def balanced_accuracy(confusion: Counts) -> float | None:
    """Mean recall over the classes that have patients; None without patients."""
    rows = _counts(confusion).tolist()
    recalls = [row[c] / sum(row) for c, row in enumerate(rows) if sum(row)]
    return sum(recalls) / len(recalls) if recalls else None


def macro_f1(confusion: Counts) -> float | None:
    """Mean over classes, with patients or predictions, of `2 TP / (2 TP + FP + FN)`; None without
    patients."""
    counts = _counts(confusion)
    sizes = (counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    values = [2 * counts[c, c].item() / size for c, size in enumerate(sizes) if size]
    return sum(values) / len(values) if values else None


def auroc(histograms: Counts) -> float | None:
    """AUROC from summed score histograms; exact for the binned scores, ties counting half.

    Args:
        histograms: int64[C, 2, bins].

    Returns:
        Two classes: of the second class. More: the mean over the classes that have both patients and others.
        None where no class has both.
    """
    counts = _counts(histograms)
    chosen = [1] if counts.shape[0] == 2 else range(counts.shape[0])
    values = [a for c in chosen if (a := _auroc_one(counts[c, 0], counts[c, 1])) is not None]
    return sum(values) / len(values) if values else None


def _auroc_one(positive: Counts, negative: Counts) -> float | None:
    """Mann-Whitney: pairs won plus half the pairs tied, over all pairs; of whole numbers in exact
    integers."""
    wins_doubled, positives, below = 0, 0, 0
    for p, n in zip(positive.tolist(), negative.tolist(), strict=True):
        wins_doubled += p * (2 * below + n)
        positives += p
        below += n
    pairs = positives * below
    return wins_doubled / (2 * pairs) if pairs else None


def calibration_error(histogram: Float64Array) -> float | None:
    """Expected calibration error: mean over patients of |accuracy − confidence| of their bin (Guo et al.,
    ICML 2017, arXiv 1706.04599); None without patients.

    Args:
        histogram: float64[bins, 3], summed `reliability_histogram`s.
    """
    counts = np.maximum(histogram, 0.0)
    patients = float(counts[:, 0].sum())
    return min(1.0, float(np.abs(counts[:, 1] - counts[:, 2]).sum()) / patients) if patients > 0 else None


def scores_from_counts(confusion: Counts, histograms: Counts, reliability: Float64Array) -> Scores:
    """All metrics from summed counts: int64, or float64 where they were noised."""
    return Scores(
        round(_counts(confusion).sum().item()),
        accuracy(confusion),
        balanced_accuracy(confusion),
        macro_f1(confusion),
        auroc(histograms),
        calibration_error(reliability),
    )


# ----------------------------------------------------------------------------------------- pooled predictions


def auroc_exact(labels: Labels, probabilities: Probabilities) -> float | None:
    """AUROC of unbinned scores, ties half: of the second class, or the mean over classes of one against the
    rest.

    Args:
        labels: int[n], classes from 0.
        probabilities: float[n, C].

    Raises:
        PredictionError: as in `confusion_counts`.
    """
    y, p = _check(labels, probabilities)
    classes = p.shape[1]
    values = []
    for c in [1] if classes == 2 else range(classes):
        # Equal scores share a bin of their own: then the histogram's AUROC is exact.
        _, index = np.unique(p[:, c], return_inverse=True)
        size = int(index.max(initial=-1)) + 1
        positive, negative = (np.bincount(index[y == c], minlength=size), np.bincount(index[y != c], minlength=size))
        value = _auroc_one(positive.astype(np.int64), negative.astype(np.int64))
        if value is not None:
            values.append(value)
    return sum(values) / len(values) if values else None


def scores_exact(labels: Labels, probabilities: Probabilities, reliability_bins: int = 10) -> Scores:
    """All metrics from pooled predictions: unbinned but for the calibration error, which is defined by its
    bins.

    Raises:
        PredictionError: as in `confusion_counts`.
    """
    confusion = confusion_counts(labels, probabilities)
    return Scores(
        int(confusion.sum()),
        accuracy(confusion),
        balanced_accuracy(confusion),
        macro_f1(confusion),
        auroc_exact(labels, probabilities),
        calibration_error(reliability_histogram(labels, probabilities, reliability_bins)),
    )
