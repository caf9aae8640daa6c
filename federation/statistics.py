"""The vectors of sum B and of the weights: what stands where, how large it can be, how it becomes words.

Losses are weighted with `p_i` (METHOD.md, "One round", step 6); behind them stands, with the same weight, the
validation loss at each temperature of a fixed grid, from which the exported model's calibration is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from federation.losses import LossSums
from federation.statistic_words import StatisticsEncoding, decode_statistics, encode_statistics
from federation.temperature import GRID, best_temperature

LOSSES_LENGTH: Final = 5 + len(GRID)
MAX_PATIENTS: Final = 2**20
"""Most patients of one institution."""

RELIABILITY_BINS: Final = 10

Vector = npt.NDArray[np.float64]


def encoding(bound: float, contributors: int) -> StatisticsEncoding:
    """The finest encoding in the 64-bit ring of values up to `bound`, at most 40 binary digits.

    Args:
        bound: largest |value| of one institution.
        contributors: institutions whose words are added.
    """
    bits = math.floor(61 - math.log2(contributors * max(bound, 1.0)))
    return StatisticsEncoding(bound, contributors, min(40, max(0, bits)))


@dataclass(frozen=True)
class LossRow:
    """What one institution sends of one subset, or the sum of it over institutions."""

    sums: LossSums
    by_temperature: tuple[float, ...]

    def vector(self) -> Vector:
        """float64[LOSSES_LENGTH]."""
        s = self.sums
        head = (s.weight, s.training, s.validation, s.training_delta, s.validation_delta)
        return np.array([*head, *self.by_temperature])

    @staticmethod
    def from_vector(values: Vector) -> LossRow:
        """The row of an opened vector."""
        weight, training, validation, training_delta, validation_delta = (float(v) for v in values[:5])
        sums = LossSums(training, validation, training_delta, validation_delta, weight)
        return LossRow(sums, tuple(float(v) for v in values[5:]))

    @property
    def temperature(self) -> float | None:
        """The temperature with the smallest validation loss; None without any weight."""
        if self.sums.weight <= 0:
            return None
        return best_temperature(np.array(self.by_temperature), floor=1e-6)


def loss_encoding(contributors: int, largest_weight: float, loss_max: float) -> StatisticsEncoding:
    """Encoding of a LossRow: weights up to `largest_weight`, losses up to `loss_max`."""
    return encoding(largest_weight * max(1.0, loss_max), contributors)


@dataclass(frozen=True)
class MetricRow:
    """Counts of the validation patients of one or many institutions.

    Attributes:
        confusion: int64[C, C], true class by predicted class.
        histograms: int64[C, 2, bins], of the score of each class, for patients of it and for the others.
        reliability: float64[RELIABILITY_BINS, 3].
    """

    confusion: npt.NDArray[np.int64]
    histograms: npt.NDArray[np.int64]
    reliability: Vector

    def vector(self) -> Vector:
        """float64[metrics_length]."""
        parts: Sequence[npt.NDArray[np.float64]] = (
            self.confusion.astype(np.float64).ravel(),
            self.histograms.astype(np.float64).ravel(),
            self.reliability.ravel(),
        )
        return np.concatenate(parts)

    @staticmethod
    def from_vector(values: Vector, classes: int, bins: int) -> MetricRow:
        """The row of an opened vector; counts are whole, and noise cannot make one negative."""
        counts = np.maximum(np.rint(values), 0).astype(np.int64)
        first, second = classes * classes, classes * classes + classes * 2 * bins
        return MetricRow(
            counts[:first].reshape(classes, classes),
            counts[first:second].reshape(classes, 2, bins),
            np.maximum(values[second:], 0.0).reshape(RELIABILITY_BINS, 3),
        )

    def __add__(self, other: MetricRow) -> MetricRow:
        return MetricRow(
            self.confusion + other.confusion,
            self.histograms + other.histograms,
            self.reliability + other.reliability,
        )


def metrics_length(classes: int, bins: int) -> int:
    """Words of a MetricRow."""
    return classes * classes + classes * 2 * bins + RELIABILITY_BINS * 3


def count_encoding(contributors: int) -> StatisticsEncoding:
    """Encoding of a MetricRow, and of patients: whole counts come back exactly."""
    return encoding(float(MAX_PATIENTS), contributors)


def clipped_encoding(contributors: int) -> StatisticsEncoding:
    """Encoding of the number of clipped values of a component."""
    return encoding(float(2**40), contributors)


def encode(values: Vector, how: StatisticsEncoding) -> npt.NDArray[np.uint64]:
    """Words of one institution's vector; see `encode_statistics` for the errors."""
    return encode_statistics(values, how)


def decode(words: npt.NDArray[np.uint64], how: StatisticsEncoding) -> Vector:
    """The summed vector behind opened words."""
    return decode_statistics(words, how)
