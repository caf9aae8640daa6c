"""What an institution sends into sum B: weighted losses, metrics and clip counts, as words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from federation import statistics
from federation.evaluation import confusion_counts, reliability_histogram, score_histograms
from federation.fixed_point import StatisticsEncoding
from federation.losses import LossSums
from federation.plan import Plan
from federation.settings import proximity_settings
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


def encode_losses(
    plan: Plan,
    losses: SubsetLosses,
    logits: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    proximity: float,
    last: tuple[float, float] | None,
    training_patients: int,
    contributors: int,
) -> Encoded:
    """The loss row of one subset (METHOD.md, "One round", step 6).

    Args:
        plan: the plan.
        losses: at the published w(t+1).
        logits: float32[validation patients, classes] of this subset.
        labels: int64[validation patients].
        proximity: `p_i`; an institution without validation patients sends zeros throughout.
        last: the institution's own (training, validation) losses before; None: none.
        training_patients: n_i.
        contributors: of the part, for its encoding.
    """
    largest = plan.proximity.loss_max
    patients = len(labels)
    held = losses.validation
    if held is None or not patients:
        row = LossRow(LossSums(0.0, 0.0, 0.0, 0.0, 0.0), (0.0,) * (statistics.LOSSES_LENGTH - 5))
    else:
        sums = LossSums.contribution(proximity, losses.training, held, last, largest)
        grid = nll_grid(logits, labels, loss_max=largest) * (proximity / patients)
        row = LossRow(sums, tuple(float(x) for x in grid))
    how = statistics.loss_encoding(contributors, proximity_settings(plan).largest, largest)
    # A patient moves a mean loss by at most largest / (n − 1), its change over a round by twice that; a validation
    # patient moves the loss at every temperature as well.
    training = sqrt(1 + 4) * largest / max(1, training_patients - 1)
    validation = sqrt(1 + 4 + len(row.by_temperature)) * largest / max(1, patients - 1)
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


def encode_clipped(count: int, contributors: int) -> Encoded:
    """How many values of a component's update were clipped: of the noised update, so it costs nothing under DP."""
    how = statistics.clipped_encoding(contributors)
    return Encoded(statistics.encode(np.array([float(count)]), how), how, 0.0)


Parts = Mapping[str, Encoded]
