"""The secure sums from which institutions agree on features: `holders`, `counts`, `means`, `squares`, in this order.

Each sum has one part per modality, summed over the modality's holders; the lengths and bounds of its vectors follow
from the plan alone. Each is silent, all zeros, about whatever the sum before did not bring over the plan's floors: a
column or category that too few institutions have is never counted, and one with too few patients has no mean. A
modality with fewer holders than `secure_sum.k_min` is never summed (METHOD.md, "The privacy floor"); its features come
from the plan's ranges alone.

Layout of a `holders` vector: per column in plan order, whether there is any value (0 or 1) and, for a categorical
column, whether each of the plan's categories, and "other", has at least `rare_category` patients and one. A `counts`
vector: the number of patients; then, where `holders` has a flag, how many patients that is. A `means` or `squares`
vector has one element per numeric column in plan order, and at least one element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log1p, sqrt
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from federation.plan import Column, Modality, Plan
from federation.tables import RawTable
from security.errors import ConsiliumError, ProtocolError

FeatureSum = Literal["holders", "counts", "means", "squares"]
FEATURE_SUMS: Final[tuple[FeatureSum, ...]] = ("holders", "counts", "means", "squares")

MAX_PATIENTS: Final = 2**20
"""Most patients of one institution; what makes the vectors' bounds public constants."""

Vector = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class FeatureTableError(ConsiliumError):
    """A table does not fit the plan's modality."""

    code = "feature-table"


@dataclass(frozen=True)
class FeatureHolders:
    """How many institutions have each column and category: the opened `holders`, int64[n] by summed modality."""

    modalities: Mapping[str, npt.NDArray[np.int64]]

    @classmethod
    def from_sums(cls, plan: Plan, sums: Mapping[str, Vector]) -> FeatureHolders:
        """Reads the opened sums.

        Args:
            plan: a checked plan.
            sums: modality to its opened sum, float64[vector_length]; a modality that is not there was not summed.

        Raises:
            ProtocolError: an unknown modality, a wrong length, or a value that is not finite.
        """
        check_sums(plan, "holders", sums, [m.name for m in plan.modalities])
        # With noise (DP) a sum may be fractional or negative; without it, rounding only undoes float dust.
        return cls({name: np.maximum(0, np.rint(opened).astype(np.int64)) for name, opened in sums.items()})

    def counted(self, plan: Plan, modality: str) -> Flags:
        """bool[n]: what may be counted: columns that enough institutions have, and of these, such categories."""
        floor = max(1, plan.features.min_institutions)
        enough = self.modalities[modality] >= floor
        at = 0
        for column in _modality(plan, modality).columns:
            slots = 1 + _category_slots(column)
            enough[at : at + slots] &= enough[at]
            at += slots
        return enough


@dataclass(frozen=True)
class ColumnCounts:
    """What the opened counts say of one column.

    Attributes:
        patients: patients with a value, over all institutions.
        institutions: institutions with any value.
        used: both reach the plan's floors; only then is anything more computed from the column.
        categories: patients per plan category and, last, of "other"; 0 where too few institutions have it, and
            institutions' rare counts are not in them.
    """

    patients: int
    institutions: int
    used: bool
    categories: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModalityCounts:
    """Patients of a modality over all institutions, and its columns in plan order."""

    patients: int
    columns: tuple[ColumnCounts, ...]


@dataclass(frozen=True)
class FeatureCounts:
    """The opened `counts`, by summed modality in plan order."""

    modalities: Mapping[str, ModalityCounts]

    @classmethod
    def from_sums(cls, plan: Plan, holders: FeatureHolders, sums: Mapping[str, Vector]) -> FeatureCounts:
        """Reads the opened sums and decides which columns are used.

        Args:
            plan: a checked plan.
            holders: the first sum.
            sums: modality to its opened sum, float64[vector_length].

        Raises:
            ProtocolError: not exactly the modalities of `holders`, a wrong length, or a value that is not finite.
        """
        check_sums(plan, "counts", sums, list(holders.modalities), complete=True)
        found: dict[str, ModalityCounts] = {}
        for modality in plan.modalities:
            if modality.name in sums:
                numbers = np.maximum(0, np.rint(sums[modality.name]).astype(np.int64))
                found[modality.name] = _read_counts(plan, modality, holders, numbers)
        return cls(found)


@dataclass(frozen=True)
class FeatureMeans:
    """The mean of each numeric column, in scaled units [-1, 1], float64[vector_length]; 0 for unused columns."""

    modalities: Mapping[str, Vector]

    @classmethod
    def from_sums(cls, plan: Plan, counts: FeatureCounts, sums: Mapping[str, Vector]) -> FeatureMeans:
        """Divides the opened sums by the counts.

        Raises:
            ProtocolError: not exactly the modalities of `counts`, a wrong length, or a value that is not finite.
        """
        check_sums(plan, "means", sums, list(counts.modalities), complete=True)
        means: dict[str, Vector] = {}
        for name in counts.modalities:
            used, patients = used_numeric(_modality(plan, name), counts)
            means[name] = np.where(used, np.clip(sums[name] / patients, -1.0, 1.0), 0.0)
        return cls(means)


def summed_modalities(plan: Plan) -> tuple[str, ...]:
    """Modalities with at least `k_min` holders, in plan order: those that the feature sums have a part for."""
    holders = {m.name: sum(m.name in i.modalities for i in plan.institutions) for m in plan.modalities}
    return tuple(name for name, count in holders.items() if count >= plan.secure_sum.k_min)


def vector_length(plan: Plan, sum_name: FeatureSum, modality: str) -> int:
    """Elements of one part: known from the plan before the run."""
    return len(vector_bounds(plan, sum_name, modality))


def vector_bounds(plan: Plan, sum_name: FeatureSum, modality: str) -> Vector:
    """float64[vector_length]: the largest absolute value of each element that one institution can send."""
    columns = _modality(plan, modality).columns
    if sum_name == "holders":
        return np.ones(_flags(columns))
    if sum_name == "counts":
        return np.full(1 + _flags(columns), float(MAX_PATIENTS))
    unit = 1.0 if sum_name == "means" else 4.0
    return np.full(_numeric_slots(columns), unit * MAX_PATIENTS)


def sensitivity(plan: Plan, sum_name: FeatureSum, modality: str) -> float:
    """Most that adding or removing one patient moves an institution's vector, as an L2 norm.

    For plans with differential privacy. Holders: 0, they tell of the table's header and of no patient. Counts: one for
    the patient and for each value, and for a category up to `rare_category`, since one patient more can lift a zeroed
    count to the floor. Means: |x| ≤ 1 per numeric column. Squares: (x - mean)² ≤ 4 per numeric column, the mean being
    public by then.
    """
    columns = _modality(plan, modality).columns
    if sum_name == "holders":
        return 0.0
    if sum_name == "counts":
        jump = max(1, plan.features.rare_category)
        return sqrt(1 + sum(1 + (jump**2 if c.kind == "categorical" else 0) for c in columns))
    return (1.0 if sum_name == "means" else 4.0) * sqrt(sum(c.kind == "numeric" for c in columns))


def holders_vector(plan: Plan, modality: str, table: RawTable) -> Vector:
    """float64[n] of zeros and ones: which columns and categories an institution has, over its training patients.

    Under differential privacy, where one patient may not show, it is which columns the table has by name, and for each
    of them all of its categories.

    Raises:
        FeatureTableError: as `counts_vector`.
    """
    tally = _tally(plan, modality, table)
    if not plan.differential_privacy.enabled:
        return (tally > 0).astype(np.float64)
    gone = set(missing_columns(plan, modality, table))
    columns = _modality(plan, modality).columns
    return np.concatenate([np.full(1 + _category_slots(c), float(c.name not in gone)) for c in columns])


def counts_vector(plan: Plan, holders: FeatureHolders, modality: str, table: RawTable) -> Vector:
    """float64[n] of exact integers: an institution's `counts` of one modality, over its training patients.

    A column that the table does not have counts as missing everywhere (`missing_columns` names them).

    Raises:
        FeatureTableError: more than `MAX_PATIENTS` patients, a column of the wrong kind or length.
    """
    counted = holders.counted(plan, modality)
    return np.concatenate([[len(table)], np.where(counted, _tally(plan, modality, table), 0)]).astype(np.float64)


def means_vector(plan: Plan, counts: FeatureCounts, modality: str, table: RawTable) -> Vector:
    """float64[n]: Σ of scaled values per numeric column; 0 where the column is not used.

    Raises:
        FeatureTableError: a column of the wrong kind or length.
    """
    return _numeric_sums(plan, counts, modality, table, None)


def squares_vector(plan: Plan, counts: FeatureCounts, means: FeatureMeans, modality: str, table: RawTable) -> Vector:
    """float64[n]: Σ (scaled value - mean)² per numeric column; 0 where the column is not used.

    Raises:
        FeatureTableError: a column of the wrong kind or length.
    """
    return _numeric_sums(plan, counts, modality, table, means.modalities[modality])


def missing_columns(plan: Plan, modality: str, table: RawTable) -> tuple[str, ...]:
    """The plan's columns that a table does not have; `check` warns of them, training counts them as missing."""
    present = {*table.numeric, *table.categorical}
    return tuple(c.name for c in _modality(plan, modality).columns if c.name not in present)


def scale(values: Vector, low: float, high: float, transform: str) -> Vector:
    """Clips to [low, high], takes log1p if `transform` says so, and maps the range onto [-1, 1]; NaN stays NaN."""
    clipped = np.clip(values, low, high)
    bottom, top = low, high
    if transform == "log1p":
        clipped, bottom, top = np.log1p(clipped), log1p(low), log1p(high)
    # The clip holds float dust at the edges inside the bounds that the sums rely on.
    scaled: Vector = np.clip((clipped - bottom) / (top - bottom) * 2.0 - 1.0, -1.0, 1.0)
    return scaled


def numeric_values(column: Column, table: RawTable) -> Vector:
    """float64[patients] of a numeric column, NaN where missing; all NaN where the table does not have it.

    Raises:
        FeatureTableError: the table holds it as categorical, or with another length.
    """
    if column.name in table.categorical:
        raise _wrong_kind(column)
    values = table.numeric.get(column.name)
    if values is None:
        return np.full(len(table), np.nan)
    if values.shape != (len(table),):
        raise _wrong_length(column.name, len(values), len(table))
    return np.asarray(values, dtype=np.float64)


def category_codes(column: Column, table: RawTable) -> npt.NDArray[np.int64]:
    """int64[patients]: place in the column's categories, `len(categories)` for any other value, -1 where missing.

    Raises:
        FeatureTableError: the table holds it as numeric, or with another length.
    """
    if column.name in table.numeric:
        raise _wrong_kind(column)
    values: Sequence[str | None] | None = table.categorical.get(column.name)
    if values is None:
        return np.full(len(table), -1, dtype=np.int64)
    if len(values) != len(table):
        raise _wrong_length(column.name, len(values), len(table))
    place: dict[str | None, int] = {name: k for k, name in enumerate(column.categories)}
    place[None] = -1
    return np.array([place.get(value, len(column.categories)) for value in values], dtype=np.int64)


def _tally(plan: Plan, modality: str, table: RawTable) -> npt.NDArray[np.int64]:
    """Patients behind each flag of a `holders` vector; a category below the local floor is 0."""
    if len(table) > MAX_PATIENTS:
        raise FeatureTableError(
            f"{modality} has {len(table)} patients, more than the {MAX_PATIENTS} that a sum can take.",
            remedy="Split the table over several runs.",
        )
    patients: list[int] = []
    for column in _modality(plan, modality).columns:
        if column.kind == "numeric":
            patients.append(int(np.count_nonzero(~np.isnan(numeric_values(column, table)))))
        else:
            codes = category_codes(column, table)
            there = codes[codes >= 0]
            by_category = np.bincount(there, minlength=_category_slots(column))
            by_category[by_category < plan.features.rare_category] = 0
            patients += [len(there), *(int(x) for x in by_category)]
    return np.array(patients, dtype=np.int64)


def _numeric_sums(plan: Plan, counts: FeatureCounts, modality: str, table: RawTable, means: Vector | None) -> Vector:
    columns = _modality(plan, modality).columns
    sums = np.zeros(_numeric_slots(columns))
    k = 0
    for column, counted in zip(columns, counts.modalities[modality].columns, strict=True):
        if column.kind != "numeric":
            continue
        if counted.used:  # a column below the floors tells nothing more: its element stays zero
            values = scale(numeric_values(column, table), column.low, column.high, column.transform)
            present = values[~np.isnan(values)]
            sums[k] = present.sum() if means is None else np.square(present - means[k]).sum()
        k += 1
    return sums


def _read_counts(
    plan: Plan, modality: Modality, holders: FeatureHolders, numbers: npt.NDArray[np.int64]
) -> ModalityCounts:
    institutions, counted = holders.modalities[modality.name], holders.counted(plan, modality.name)
    # Under DP an element that nobody counted holds noise.
    patients = np.where(counted, numbers[1:], 0)
    columns: list[ColumnCounts] = []
    at = 0
    for column in modality.columns:
        slots = _category_slots(column)
        used = bool(counted[at]) and int(patients[at]) >= max(1, plan.features.min_patients)
        categories = tuple(int(x) for x in patients[at + 1 : at + 1 + slots])
        columns.append(ColumnCounts(int(patients[at]), int(institutions[at]), used, categories))
        at += 1 + slots
    return ModalityCounts(int(numbers[0]), tuple(columns))


def used_numeric(modality: Modality, counts: FeatureCounts) -> tuple[npt.NDArray[np.bool_], Vector]:
    """Which elements of a `means` vector are used, and the patients to divide by (1 where there are none)."""
    used = np.zeros(_numeric_slots(modality.columns), dtype=np.bool_)
    patients = np.ones(len(used))
    numeric = [
        counted
        for column, counted in zip(modality.columns, counts.modalities[modality.name].columns, strict=True)
        if column.kind == "numeric"
    ]
    for k, counted in enumerate(numeric):
        used[k], patients[k] = counted.used, max(1, counted.patients)
    return used, patients


def check_sums(
    plan: Plan, sum_name: FeatureSum, sums: Mapping[str, Vector], allowed: Sequence[str], *, complete: bool = False
) -> None:
    """Refuses opened sums of other modalities than `allowed` (all of them where `complete`) or of another shape."""
    if not set(sums) <= set(allowed) or (complete and len(sums) != len(allowed)):
        raise ProtocolError(
            f"the {sum_name} of the features were opened for modalities {sorted(sums)}, not {sorted(allowed)}.",
            remedy="Both sides must run the same plan and the same version.",
        )
    for name, opened in sums.items():
        if opened.shape != (vector_length(plan, sum_name, name),) or not np.all(np.isfinite(opened)):
            raise ProtocolError(
                f"the {sum_name} of modality {name} have shape {opened.shape} or values that are not finite.",
                remedy="Both sides must run the same plan and the same version.",
            )


def _category_slots(column: Column) -> int:
    return len(column.categories) + 1 if column.kind == "categorical" else 0


def _flags(columns: Sequence[Column]) -> int:
    return sum(1 + _category_slots(c) for c in columns)


def _numeric_slots(columns: Sequence[Column]) -> int:
    # A modality without numeric columns still has one element, always zero: no part of a sum is empty.
    return max(1, sum(c.kind == "numeric" for c in columns))


def _modality(plan: Plan, name: str) -> Modality:
    return next(m for m in plan.modalities if m.name == name)


def _wrong_kind(column: Column) -> FeatureTableError:
    return FeatureTableError(
        f"column {column.name!r} is not {column.kind}, as the plan says.",
        remedy=f"Read it as {column.kind}, or correct the column's kind in the plan.",
    )


def _wrong_length(name: str, found: int, expected: int) -> FeatureTableError:
    return FeatureTableError(
        f"column {name!r} has {found} values for {expected} patients.", remedy="Give one value per patient."
    )
