"""How sure a mean over splits is: intervals and tests that know that splits share patients.

Resampled test sets overlap, and so do training sets; treating splits as independent makes intervals far too narrow.
Nadeau and Bengio (2003, "Inference for the Generalization Error", section 4) widen the variance by what training sets
have in common. The bootstrap over patients says what other patients of the same cohorts would have given.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import stats

from studies.federation import StudyError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LEVEL: Final = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Attributes:
        mean: over splits.
        low, high: of the interval at `LEVEL`; the mean itself where one split tells nothing of the spread.
        p: two-sided, of a mean of zero; 1 where nothing can be said.
        splits: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    splits: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside."""
        return self.splits > 1 and not self.low <= 0.0 <= self.high


def corrected_interval(values: Sequence[float], test_share: float, level: float = LEVEL) -> Interval:
    """Mean of figures of J random splits, with the corrected resampled t-interval.

    The variance of the mean is taken as s²·(1/J + n_test/n_train), Student's t with J − 1 degrees of freedom (Nadeau
    and Bengio 2003, the corrected resampled t-test).

    Args:
        values: one a split; of a difference between methods, one a split that both saw.
        test_share: n_test / (n_test + n_train) of a split, above 0, below 1.
        level: of the interval, above 0, below 1.

    Raises:
        StudyError: there is no value, one is not finite, or a share is out of range.
    """
    if not values or not all(map(math.isfinite, values)):
        raise StudyError("an interval needs figures, all of them finite.", remedy="Run every split of the study.")
    if not (0.0 < test_share < 1.0 and 0.0 < level < 1.0):
        raise StudyError("the share of test patients and the level are above 0 and below 1.")
    count, mean = len(values), statistics.fmean(values)
    if count == 1:
        return Interval(mean, mean, mean, 1.0, 1)
    variance = statistics.variance(values, mean)
    error = math.sqrt(variance * (1.0 / count + test_share / (1.0 - test_share)))
    if error == 0.0:
        return Interval(mean, mean, mean, 1.0 if mean == 0.0 else 0.0, count)
    half = float(stats.t.ppf(0.5 + level / 2, count - 1)) * error
    return Interval(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, count - 1)), count)


def splits_to_see(difference: float, spread: float, test_share: float, power: float = 0.8) -> int | None:
    """Splits after which the corrected test at `LEVEL` finds a true difference with this chance.

    The part of the variance that splits have in common does not fall with their number, so that some differences are
    never found by more splits, only by more patients.

    Args:
        difference: the true mean difference, not 0.
        spread: standard deviation of the difference over splits, above 0.
        test_share: as in `corrected_interval`.
        power: the chance, above 0, below 1.

    Returns:
        None: no number of splits is enough.
    """
    needed = float(stats.norm.ppf(0.5 + LEVEL / 2) + stats.norm.ppf(power))
    left = (difference / (needed * spread)) ** 2 - test_share / (1.0 - test_share)
    return max(2, math.ceil(1.0 / left)) if left > 0 else None


def smallest_seen(spread: float, splits: int, test_share: float, power: float = 0.8) -> float:
    """The smallest true difference that so many splits find with this chance; see `splits_to_see`."""
    needed = float(stats.t.ppf(0.5 + LEVEL / 2, splits - 1) + stats.norm.ppf(power))
    return needed * spread * math.sqrt(1.0 / splits + test_share / (1.0 - test_share))


def smallest_seen_by(half: float, splits: int, power: float = 0.8) -> float:
    """`smallest_seen` of a study whose paired interval is this wide.

    Args:
        half: half the width of its `corrected_interval`, at least 0.
        splits: of the study, at least 2.
        power: the chance, above 0, below 1.
    """
    quantile = float(stats.t.ppf(0.5 + LEVEL / 2, splits - 1))
    return half * (1.0 + float(stats.norm.ppf(power)) / quantile)


# -- bootstrap over patients --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictions:
    """One method on one split's test patients.

    Attributes:
        patients: their identifiers, the same patient's the same in every split.
        labels: int64[n].
        probabilities: float64[n, classes].
    """

    patients: Sequence[str]
    labels: Int64
    probabilities: Float64


def bootstrap_differences(
    one: Sequence[Predictions], other: Sequence[Predictions], metric: str, draws: int, seed: int
) -> Float64:
    """float64[draws]: mean over splits of the first method's figure minus the second's, on patients drawn with
    replacement.

    A patient is drawn once for all splits that test it: splits of one draw see the same patients again. Splits without
    a drawn patient of some class are left out of that draw.

    Args:
        one, other: the same splits in the same order, with the same patients.
        metric: `accuracy`, `balanced_accuracy` or `auroc`.
        draws: how many.
        seed: of the draws.

    Raises:
        StudyError: the splits are not the same, or the metric is none.
    """
    if [p.patients for p in one] != [p.patients for p in other]:
        raise StudyError("methods were not scored on the same patients.", remedy="Compare them split by split.")
    return bootstrap_means(one, metric, draws, seed) - bootstrap_means(other, metric, draws, seed)


def bootstrap_means(splits: Sequence[Predictions], metric: str, draws: int, seed: int) -> Float64:
    """float64[draws]: a method's mean over splits, each time on patients drawn anew; see `bootstrap_differences`.

    The same patients and seed give the same draws, so that two methods' means may be subtracted draw by draw.

    Raises:
        StudyError: the metric is none.
    """
    if metric not in METRICS:
        raise StudyError(f"no bootstrap of {metric!r}.", remedy=f"Choose from: {', '.join(METRICS)}.")
    everybody = sorted({patient for p in splits for patient in p.patients})
    place = {patient: k for k, patient in enumerate(everybody)}
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(everybody), np.full(len(everybody), 1 / len(everybody)), size=draws)
    total, seen = np.zeros(draws), np.zeros(draws)
    for split in splits:
        weights = counts[:, [place[patient] for patient in split.patients]].astype(np.float64)
        # A class that nobody of is drawn is one that every method lacks in this draw: the label's, not the method's.
        figure = weighted(metric, split, weights)
        there = np.isfinite(figure)
        total += np.where(there, figure, 0.0)
        seen += there
    return np.asarray(total / np.maximum(seen, 1))


def weighted(metric: str, of: Predictions, weights: Float64) -> Float64:
    """float64[draws]: a figure where patient k counts `weights[draw, k]` times; NaN where a class has nobody.

    Args:
        metric: a name of `METRICS`.
        of: n patients.
        weights: float64[draws, n], at least 0.
    """
    return np.asarray(METRICS[metric](of, weights))


def _accuracy(of: Predictions, weights: Float64) -> Float64:
    right = of.probabilities.argmax(axis=1) == of.labels
    return np.asarray(_ratio(weights @ right, weights.sum(axis=1)))


def _balanced(of: Predictions, weights: Float64) -> Float64:
    right = of.probabilities.argmax(axis=1) == of.labels
    recalls = []
    for label in range(of.probabilities.shape[1]):
        own = of.labels == label
        if own.any():
            recalls.append(_ratio(weights @ (right & own), weights @ own))
    return np.asarray(np.mean(recalls, axis=0))


def _auroc(of: Predictions, weights: Float64) -> Float64:
    """Of the second class, or the mean of one class against the others; ties count half."""
    classes = of.probabilities.shape[1]
    each = [
        _auroc_one(of.probabilities[:, c], of.labels == c, weights) for c in ([1] if classes == 2 else range(classes))
    ]
    return np.asarray(np.mean(each, axis=0))


def _auroc_one(scores: Float64, positive: npt.NDArray[np.bool_], weights: Float64) -> Float64:
    order = np.argsort(scores, kind="stable")
    _, ties = np.unique(scores[order], return_inverse=True)
    groups = int(ties.max()) + 1
    wins, losses = np.zeros((groups, len(weights))), np.zeros((groups, len(weights)))
    sorted_weights, sorted_positive = weights[:, order].T, positive[order]
    np.add.at(wins, ties[sorted_positive], sorted_weights[sorted_positive])
    np.add.at(losses, ties[~sorted_positive], sorted_weights[~sorted_positive])
    below = np.cumsum(losses, axis=0) - losses
    won = (wins * (below + losses / 2)).sum(axis=0)
    return np.asarray(_ratio(won, wins.sum(axis=0) * losses.sum(axis=0)))


def _ratio(over: Float64, under: Float64) -> Float64:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(under > 0, over / under, np.nan))


METRICS: Final[Mapping[str, Callable[[Predictions, Float64], Float64]]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced,
    "auroc": _auroc,
}
