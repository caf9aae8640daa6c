"""From the opened sums of round 0 to the feature schema and the patient totals: coordinator and nodes alike.

Each node computes these itself from the opened sums and holds them against what the coordinator says (rule 6).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from federation import statistics, subgroups
from federation.feature_sums import (
    FEATURE_SUMS,
    FeatureCounts,
    FeatureHolders,
    FeatureMeans,
    FeatureSum,
    counts_vector,
    holders_vector,
    means_vector,
    squares_vector,
    vector_bounds,
)
from federation.features import FeatureSchema
from federation.plan import Plan
from federation.statistic_words import StatisticsEncoding
from federation.tables import RawTable
from security.errors import ProtocolError
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

    Attributes:
        holders, counts, means: of the modalities that were opened in every sum so far; None before.
        schema: complete once `squares` is taken.
    """

    def __init__(self, plan: Plan, sums: Mapping[str, Sum]) -> None:
        self._plan = plan
        self._sums = sums
        self.holders: FeatureHolders | None = None
        self.counts: FeatureCounts | None = None
        self.means: FeatureMeans | None = None
        self.schema: FeatureSchema | None = None

    def vector(self, sum_name: FeatureSum, modality: str, table: RawTable) -> Vector | None:
        """What an institution with this table sends into a sum, float64[vector_length].

        Returns:
            None: an earlier sum of the modality stayed shut (rule 9), so nothing more is told of it.

        Raises:
            ProtocolError: the sums before it were not taken.
            FeatureTableError: the table does not fit the plan's modality.
        """
        if sum_name == "holders":
            return holders_vector(self._plan, modality, table)
        holders, counts, means = self.holders, self.counts, self.means
        if sum_name == "counts" and holders is not None:
            return counts_vector(self._plan, holders, modality, table) if modality in holders.modalities else None
        if sum_name == "means" and counts is not None:
            return means_vector(self._plan, counts, modality, table) if modality in counts.modalities else None
        if sum_name == "squares" and counts is not None and means is not None:
            there = modality in means.modalities
            return squares_vector(self._plan, counts, means, modality, table) if there else None
        raise _out_of_order(sum_name)

    def take(self, sum_name: FeatureSum, words: Words) -> None:
        """Takes an opened sum.

        Raises:
            ProtocolError: a modality of the sum before is missing: too many institutions vanished in between.
            SchemaError: a modality in which no column is left.
        """
        vectors = feature_vectors(self._plan, sum_name, self._sums[sum_name], words)
        if sum_name == "holders":
            self.holders = FeatureHolders.from_sums(self._plan, vectors)
            return
        if self.holders is None:
            raise _out_of_order(sum_name)
        # A modality whose first sum stayed shut (rule 9) is not summed at all; zeros were sent for it.
        vectors = {m: v for m, v in vectors.items() if m in self.holders.modalities}
        if sum_name == "counts":
            self.counts = FeatureCounts.from_sums(self._plan, self.holders, vectors)
        elif self.counts is None:
            raise _out_of_order(sum_name)
        elif sum_name == "means":
            self.means = FeatureMeans.from_sums(self._plan, self.counts, vectors)
        elif self.means is None:
            raise _out_of_order(sum_name)
        else:
            self.schema = FeatureSchema.build(self._plan, self.counts, self.means, vectors)


def feature_sum(name: str) -> FeatureSum:
    """The feature sum of this name.

    Raises:
        ProtocolError: there is none.
    """
    for known in FEATURE_SUMS:
        if known == name:
            return known
    raise ProtocolError(f"{name!r} is no sum of the features.", remedy="Both sides must run the same version.")


def _out_of_order(sum_name: str) -> ProtocolError:
    return ProtocolError(
        f"the {sum_name} of the features come before the sums that they build on.",
        remedy="Both sides must run the same version.",
    )


def patients_of(which: Sum, words: Words) -> dict[str, int]:
    """Σñ by cohort, from the opened sum `weights`; cohorts that stayed shut are missing."""
    return {
        part.name: round(float(statistics.decode(words[part.name], patient_encoding(part.contributors))[0]))
        for part in which.parts
        if part.name in words and not part.name.startswith(subgroups.PREFIX)
    }


def patient_encoding(contributors: frozenset[str]) -> StatisticsEncoding:
    """How a patient count becomes a word."""
    return statistics.count_encoding(len(contributors))
