"""Intervals over splits: the published formula, known cases, and what a simulation says of their coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from federation.evaluation import scores_exact
from studies.federation import StudyError
from studies.significance import (
    Predictions,
    bootstrap_differences,
    corrected_interval,
    smallest_seen,
    smallest_seen_by,
    splits_to_see,
    weighted,
)


def test_the_variance_is_widened_by_what_training_sets_share() -> None:
    values = [0.01, 0.03, 0.02, 0.04, 0.00]
    found = corrected_interval(values, test_share=0.2)
    error = np.std(values, ddof=1) * math.sqrt(1 / 5 + 0.25)
    assert found.mean == pytest.approx(0.02)
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 4) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(0.02 / error, 4))
    assert not found.excludes_zero  # without the correction it would: t = 2.83


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.floats(0.05, 0.5))
def test_more_shared_training_patients_make_it_no_narrower(values: list[float], share: float) -> None:
    wide, narrow = corrected_interval(values, share), corrected_interval(values, share / 2)
    assert wide.high - wide.low >= narrow.high - narrow.low
    assert wide.low <= wide.mean <= wide.high


def test_one_split_tells_nothing_of_the_spread() -> None:
    found = corrected_interval([0.3], 0.2)
    assert (found.low, found.high, found.p, found.excludes_zero) == (0.3, 0.3, 1.0, False)


@pytest.mark.parametrize("values", [[], [math.nan, 0.1], [math.inf, 0.1]], ids=["none", "nan", "infinite"])
def test_figures_that_make_no_interval_are_refused(values: list[float]) -> None:
    with pytest.raises(StudyError):
        corrected_interval(values, 0.2)


def test_where_shared_patients_are_all_of_the_spread_more_splits_find_nothing() -> None:
    assert splits_to_see(0.01, 0.02, 0.2) is None
    enough = splits_to_see(0.05, 0.03, 0.2)
    assert enough is not None
    assert smallest_seen(0.03, enough + 3, 0.2) <= 0.05 * 1.05


def test_the_smallest_difference_follows_from_an_interval_too() -> None:
    values = [0.01, 0.03, -0.02, 0.05, 0.02]
    interval = corrected_interval(values, 0.2)
    by_spread = smallest_seen(float(np.std(values, ddof=1)), 5, 0.2)
    assert smallest_seen_by(interval.high - interval.mean, 5) == pytest.approx(by_spread)


def predictions(seed: int, patients: int = 40, classes: int = 2, shift: float = 0.5) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, patients)
    scores = rng.normal(size=(patients, classes)).round(1)  # rounded: ties
    scores[np.arange(patients), labels] += shift
    odds = np.exp(scores)
    return Predictions([f"p{k}" for k in range(patients)], labels, odds / odds.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 3])
def test_with_everybody_counted_once_the_figures_are_the_exact_ones(classes: int) -> None:
    of = predictions(1, classes=classes)
    exact = scores_exact(of.labels, of.probabilities)
    ones = np.ones((1, len(of.labels)))
    for metric in ("accuracy", "balanced_accuracy", "auroc"):
        assert weighted(metric, of, ones)[0] == pytest.approx(getattr(exact, metric))


@given(st.integers(0, 10_000))
def test_a_weight_is_as_good_as_that_many_copies(seed: int) -> None:
    of = predictions(seed, patients=20)
    counts = np.random.default_rng(seed).integers(0, 3, 20)
    copies = np.repeat(np.arange(20), counts)
    for metric in ("accuracy", "balanced_accuracy", "auroc"):
        found = weighted(metric, of, counts[None, :].astype(np.float64))[0]
        if len(set(of.labels[copies])) == 2:
            assert found == pytest.approx(getattr(scores_exact(of.labels[copies], of.probabilities[copies]), metric))


def test_a_method_against_itself_differs_by_nothing() -> None:
    split = [predictions(1), predictions(2)]
    assert not bootstrap_differences(split, split, "auroc", 50, 1).any()


def test_the_bootstrap_finds_a_plain_difference_and_repeats_itself() -> None:
    good, bad = ([predictions(s, 200, shift=x) for s in range(4)] for x in (2.0, 0.0))
    found = bootstrap_differences(good, bad, "auroc", 200, 7)
    assert np.quantile(found, 0.025) > 0.2
    assert np.array_equal(found, bootstrap_differences(good, bad, "auroc", 200, 7))


def test_methods_on_other_patients_are_not_compared() -> None:
    with pytest.raises(StudyError, match="same patients"):
        bootstrap_differences([predictions(1)], [predictions(1, patients=41)], "auroc", 10, 1)
    with pytest.raises(StudyError, match="no bootstrap"):
        bootstrap_differences([predictions(1)], [predictions(1)], "macro_f1", 10, 1)
