"""From the opened sums of round 0 to the feature schema and the patient totals: coordinator and nodes alike.

Each node computes these itself from the opened sums and holds them against what the coordinator says (rule 6).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from federation import statistics
from federation.feature_sums import FeatureCounts, FeatureMeans, FeatureSum, vector_bounds
from federation.features import FeatureSchema
from federation.fixed_point import StatisticsEncoding
from federation.plan import Plan
from security.secure_sum.spec import Sum

Words = Mapping[str, npt.NDArray[np.uint64]]
Vector = npt.NDArray[np.float64]


def feature_encoding(plan: Plan, sum_name: FeatureSum, modality: str, contributors: int) -> StatisticsEncoding:
    """How the vectors of one feature sum become words."""
    return statistics.encoding(float(np.max(vector_bounds(plan, sum_name, modality))), contributors)


def feature_vectors(plan: Plan, sum_name: FeatureSum, which: Sum, words: Words) -> dict[str, Vector]:
    """The opened vectors of one feature sum, by modality; what was not opened is missing."""
    found: dict[str, Vector] = {}
    for part in which.parts:
        modality = part.name.removeprefix("features/")
        if part.name in words:
            how = feature_encoding(plan, sum_name, modality, len(part.contributors))
            found[modality] = statistics.decode(words[part.name], how)
    return found


class FeatureSums:
    """What round 0 has told so far about the features; each sum in its turn.

    Args:
        plan: a checked plan.
        sums: the feature sums of the attempt by name, for their contributors.
    """

    def __init__(self, plan: Plan, sums: Mapping[str, Sum]) -> None:
        self._plan = plan
        self._sums = sums
        self.counts: FeatureCounts | None = None
        self.means: FeatureMeans | None = None
        self.schema: FeatureSchema | None = None

    def take(self, sum_name: FeatureSum, words: Words) -> None:
        """Takes an opened sum.

        Raises:
            ProtocolError: a modality of the sum before is missing: too many institutions vanished in between.
            SchemaError: a modality in which no column is left.
        """
        vectors = feature_vectors(self._plan, sum_name, self._sums[sum_name], words)
        if sum_name == "counts":
            self.counts = FeatureCounts.from_sums(self._plan, vectors)
            return
        assert self.counts is not None
        # A modality whose counts stayed shut (rule 9) is not summed at all; zeros were sent for it.
        vectors = {m: v for m, v in vectors.items() if m in self.counts.modalities}
        if sum_name == "means":
            self.means = FeatureMeans.from_sums(self._plan, self.counts, vectors)
            return
        assert self.means is not None
        self.schema = FeatureSchema.build(self._plan, self.counts, self.means, vectors)


def patients_of(which: Sum, words: Words) -> dict[str, int]:
    """Σñ by cohort, from the opened sum `weights`; cohorts that stayed shut are missing."""
    return {
        part.name: round(float(statistics.decode(words[part.name], patient_encoding(part.contributors))[0]))
        for part in which.parts
        if part.name in words
    }


def patient_encoding(contributors: frozenset[str]) -> StatisticsEncoding:
    """How a patient count becomes a word."""
    return statistics.count_encoding(len(contributors))
