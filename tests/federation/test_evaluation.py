"""Evaluation against scikit-learn, on counts that were made apart and added up."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from federation import evaluation as ev
from security.errors import ConsiliumError

predictions = st.tuples(st.integers(2, 4), st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans())


def draw(case: tuple[int, int, int, bool]) -> tuple[np.ndarray, np.ndarray]:
    classes, n, seed, coarse = case
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    if coarse:  # many ties
        probabilities = rng.integers(0, 3, (n, classes)) + 0.5
    else:
        probabilities = rng.random((n, classes)) + 0.5 * np.eye(classes)[labels]
    return labels, probabilities / probabilities.sum(axis=1, keepdims=True)


def sklearn_auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    classes = scores.shape[1]
    chosen = [1] if classes == 2 else range(classes)
    values = [metrics.roc_auc_score(labels == c, scores[:, c]) for c in chosen if 0 < np.sum(labels == c) < labels.size]
    return float(np.mean(values)) if values else None


@settings(max_examples=60)
@given(predictions)
def test_exact_scores_are_scikit_learns(case: tuple[int, int, int, bool]) -> None:
    labels, p = draw(case)
    scores, predicted = ev.scores_exact(labels, p), p.argmax(axis=1)
    assert scores.patients == labels.size
    assert scores.accuracy == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert scores.macro_f1 == pytest.approx(metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn remarks on classes without patients
        assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert scores.auroc == pytest.approx(sklearn_auroc(labels, p))
    expected = metrics.confusion_matrix(labels, predicted, labels=range(p.shape[1]))
    assert np.array_equal(ev.confusion_counts(labels, p), expected)


@settings(max_examples=60)
@given(predictions, st.integers(1, 64), st.integers(1, 4))
def test_summed_counts_give_what_pooled_predictions_give(
    case: tuple[int, int, int, bool], bins: int, institutions: int
) -> None:
    labels, p = draw(case)
    owner = np.arange(labels.size) % institutions
    parts = [(labels[owner == k], p[owner == k]) for k in range(institutions)]
    got = ev.scores_from_counts(
        sum((ev.confusion_counts(*part) for part in parts), np.zeros((p.shape[1],) * 2, np.int64)),
        sum((ev.score_histograms(*part, bins) for part in parts), np.zeros((p.shape[1], 2, bins), np.int64)),
        sum((ev.reliability_histogram(*part, bins) for part in parts), np.zeros((bins, 3))),
    )
    pooled = ev.scores_exact(labels, p, reliability_bins=bins)
    assert (got.patients, got.accuracy, got.balanced_accuracy, got.macro_f1) == (
        pooled.patients,
        pooled.accuracy,
        pooled.balanced_accuracy,
        pooled.macro_f1,
    )
    assert got.calibration_error == pytest.approx(pooled.calibration_error)
    binned = np.minimum(np.floor(p * bins), bins - 1)
    assert got.auroc == pytest.approx(sklearn_auroc(labels, binned))


def test_scikit_learns_multi_class_auroc() -> None:
    labels, p = draw((4, 60, 3, False))
    assert ev.auroc_exact(labels, p) == pytest.approx(metrics.roc_auc_score(labels, p, multi_class="ovr"))


def test_calibration_error_by_hand() -> None:
    """Two bins. Bin [0, 0.5): none. Bin [0.5, 1]: 0.6 right, 0.9 wrong, 1.0 right; |2 − 2.5| / 3."""
    p = np.array([[0.6, 0.4], [0.9, 0.1], [0.0, 1.0]])
    histogram = ev.reliability_histogram(np.array([0, 1, 1]), p, 2)
    assert histogram.tolist() == [[0, 0, 0], [3, 2, pytest.approx(2.5)]]
    assert ev.calibration_error(histogram) == pytest.approx(0.5 / 3)


def test_a_tie_goes_to_the_lower_class_and_the_last_bin_holds_one() -> None:
    p = np.array([[0.5, 0.5], [0.0, 1.0]])
    labels = np.array([1, 1])
    assert ev.confusion_counts(labels, p).tolist() == [[0, 0], [1, 1]]
    assert ev.score_histograms(labels, p, 4)[1, 0].tolist() == [0, 0, 1, 1]


def test_without_patients_there_is_no_metric() -> None:
    labels, p = np.zeros(0, np.int64), np.zeros((0, 3))
    nothing = ev.Scores(0, None, None, None, None, None)
    assert ev.scores_exact(labels, p) == nothing
    counts = ev.confusion_counts(labels, p), ev.score_histograms(labels, p, 5), ev.reliability_histogram(labels, p, 5)
    assert ev.scores_from_counts(*counts) == nothing


def test_one_class_has_no_auroc_and_an_empty_class_is_left_out() -> None:
    labels, p = np.array([0, 0]), np.array([[0.9, 0.1], [0.2, 0.8]])
    scores = ev.scores_exact(labels, p)
    assert (scores.auroc, scores.balanced_accuracy) == (None, 0.5)
    three = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    scores = ev.scores_exact(np.array([0, 1]), three)
    assert (scores.accuracy, scores.balanced_accuracy, scores.macro_f1, scores.auroc) == (1.0, 1.0, 1.0, 1.0)
    assert scores.calibration_error == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("labels", "probabilities"),
    [
        (np.array([0, 2]), np.full((2, 2), 0.5)),
        (np.array([0, -1]), np.full((2, 2), 0.5)),
        (np.array([0.0, 1.0]), np.full((2, 2), 0.5)),
        (np.array([0]), np.full((2, 2), 0.5)),
        (np.array([0, 1]), np.full((2, 1), 0.5)),
        (np.array([0, 1]), np.full(2, 0.5)),
        (np.array([0, 1]), np.array([[0.5, 0.5], [math.nan, 0.5]])),
        (np.array([0, 1]), np.array([[0.5, 0.5], [1.2, 0.5]])),
        (np.array([0, 1]), np.array([[0.5, 0.5], [-0.2, 0.5]])),
    ],
)
def test_bad_predictions_are_refused(labels: np.ndarray, probabilities: np.ndarray) -> None:
    for count in (ev.confusion_counts, ev.auroc_exact, ev.scores_exact):
        with pytest.raises(ev.PredictionError):
            count(labels, probabilities)


def test_no_bins_are_refused() -> None:
    for count in (ev.score_histograms, ev.reliability_histogram):
        with pytest.raises(ConsiliumError):
            count(np.array([0]), np.array([[0.5, 0.5]]), 0)


def test_noised_counts_below_zero_count_as_zero() -> None:
    confusion = np.array([[3.5, -1.0], [0.5, 2.0]])
    histograms = np.array([[[2.0, -3.0], [0.0, 1.0]], [[-0.5, 1.0], [2.0, -2.0]]])
    reliability = np.array([[-2.0, -1.0, 0.5], [4.0, 3.0, 2.5]])
    scores = ev.scores_from_counts(confusion, histograms, reliability)
    assert scores.patients == 6
    assert scores.accuracy == pytest.approx(5.5 / 6)
    assert scores.balanced_accuracy == pytest.approx((1 + 0.8) / 2)
    assert scores.auroc == 1.0
    assert scores.calibration_error == pytest.approx((0.5 + 0.5) / 4)
    nothing = ev.scores_from_counts(-confusion * 0, histograms * 0, -np.ones((2, 3)))
    assert nothing == ev.Scores(0, None, None, None, None, None)
