"""What an institution sends into sum B: weighted losses, metrics and clip counts, as words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from federation import statistics, subgroups
from federation.evaluation import confusion_counts, reliability_histogram, score_histograms
from federation.losses import LossSums
from federation.plan import Plan
from federation.settings import proximity_settings
from federation.statistic_words import StatisticsEncoding
from federation.statistics import LossRow, MetricRow
from federation.temperature import nll_grid


class SubsetLosses(Protocol):
    """Mean losses of one subset."""

    @property
    def training(self) -> float: ...
    @property
    def validation(self) -> float | None: ...


@dataclass(frozen=True)
class Encoded:
    """One part of sum B, ready but for its noise.

    Attributes:
        words: uint64[length].
        encoding: that made them.
        sensitivity: L2 change of the vector for one patient more or less; 0 where no patient is in it.
    """

    words: npt.NDArray[np.uint64]
    encoding: StatisticsEncoding
    sensitivity: float


@dataclass(frozen=True)
class Divisors:
    """What the sums of an institution's per-patient losses are divided by.

    Attributes:
        training: n_i; under differential privacy ñ_i, which is charged for and does not change with a patient.
        validation: validation patients; under differential privacy their expected number for ñ_i.
        public: whether they follow from ñ_i alone.
    """

    training: float
    validation: float
    public: bool = False

    @staticmethod
    def of_noised(noised_patients: int, validation_fraction: float) -> Divisors:
        """From ñ_i alone, so that a patient more or less moves a loss by at most `loss_max` over a public number."""
        held = noised_patients * validation_fraction / (1.0 - validation_fraction)
        return Divisors(float(max(1, noised_patients)), max(1.0, held), public=True)


def rescaled(loss: SubsetLosses, training_patients: int, validation_patients: int, divisors: Divisors) -> LossPair:
    """Mean losses of a subset, over `divisors` in place of the patients that they are means of.

    Without validation patients the validation loss is None, or 0 where `divisors` are public: that nobody was there
    must not show.
    """
    held = loss.validation
    if held is not None:
        held *= validation_patients / divisors.validation
    elif divisors.public:
        held = 0.0
    return LossPair(loss.training * training_patients / divisors.training, held)


@dataclass(frozen=True)
class LossPair:
    """Mean training and validation loss of one subset."""

    training: float
    validation: float | None


def encode_losses(
    plan: Plan,
    losses: SubsetLosses,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    proximity: float,
    last: tuple[float, float] | None,
    divisors: Divisors,
    contributors: int,
) -> Encoded:
    """The loss row of one subset (METHOD.md, "One round", step 6).

    Args:
        plan: the plan.
        losses: at the published w(t+1), over `divisors`.
        logits: float32[validation patients, classes] of this subset.
        labels: int64[validation patients].
        proximity: `p_i`; an institution without a validation loss sends zeros throughout.
        last: the institution's own (training, validation) losses before; None: none.
        divisors: what the losses are means over.
        contributors: of the part, for its encoding.
    """
    largest = plan.proximity.loss_max
    held = losses.validation
    if held is None:
        row = LossRow(LossSums(0.0, 0.0, 0.0, 0.0, 0.0), (0.0,) * (statistics.LOSSES_LENGTH - 5))
    else:
        sums = LossSums.contribution(proximity, losses.training, held, last, largest)
        grid = np.minimum(nll_grid(logits, labels, loss_max=largest) / divisors.validation, largest) * proximity
        row = LossRow(sums, tuple(float(x) for x in grid))
    how = statistics.loss_encoding(contributors, proximity_settings(plan).largest, largest)
    # A patient, who trains or validates, moves a loss by at most largest / divisor and its change over a round by twice
    # that; a validation patient moves the loss at every temperature as well.
    training = sqrt(1 + 4) * largest / divisors.training
    validation = sqrt(1 + 4 + len(row.by_temperature)) * largest / divisors.validation
    return Encoded(statistics.encode(row.vector(), how), how, proximity * max(training, validation))


def encode_metrics(
    plan: Plan, labels: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], contributors: int
) -> Encoded:
    """The metric row of the institution's own combination, on its validation patients."""
    bins = plan.evaluation.bins
    row = MetricRow(
        confusion_counts(labels, probabilities),
        score_histograms(labels, probabilities, bins),
        reliability_histogram(labels, probabilities, statistics.RELIABILITY_BINS),
    )
    how = statistics.count_encoding(contributors)
    # One cell of the confusion matrix, one of each class's histogram, and three sums of one bin of confidence.
    sensitivity = sqrt(1 + len(plan.label.classes) + 3)
    return Encoded(statistics.encode(row.vector(), how), how, sensitivity)


def encode_subgroups(
    plan: Plan,
    name: str,
    places: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    contributors: int,
) -> Encoded:
    """The validation patients by one attribute of the plan's subgroups.

    Args:
        plan: the plan.
        name: of the attribute.
        places: int64[n], the group that each is counted in.
        labels, probabilities: of the same patients.
        contributors: of the part, for its encoding.
    """
    vector = subgroups.counts_vector(plan, subgroups.attribute_of(plan, name), places, labels, probabilities)
    how = subgroups.encoding(contributors)
    # A patient is in one group: there in one cell of the confusion matrix, and in one of each class's histogram.
    sensitivity = sqrt(1 + (len(plan.label.classes) if plan.evaluation.subgroups.bins else 0))
    return Encoded(statistics.encode(vector, how), how, sensitivity)


def encode_clipped(counts: Sequence[int], contributors: int) -> Encoded:
    """How many values of each component's update were clipped: of the noised update, so it costs nothing under DP."""
    how = statistics.clipped_encoding(contributors)
    return Encoded(statistics.encode(np.array(counts, dtype=np.float64), how), how, 0.0)


Parts = Mapping[str, Encoded]
