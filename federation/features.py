"""The feature schema: what turns a raw table into a model's input, agreed by secure sums and part of the model.

Made once per run from `feature_sums`, equal at every institution, and used unchanged by `predict`.

Inputs of a modality, column by column in plan order:
- a used numeric column: its standardised value (0 where missing), then, if any training patient had no value, an
  indicator that is 1 where it is missing;
- a used categorical column: one 0/1 input per category that enough patients have, then "other" if any training
  patient had another value, then "missing" if any had none.
A column without spread is left out: it would carry nothing in training and explode at the first other value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from federation.content_hash import content_digest
from federation.feature_sums import (
    FEATURE_SUMS,
    ColumnCounts,
    FeatureCounts,
    FeatureHolders,
    FeatureMeans,
    FeatureSum,
    FeatureTableError,
    ModalityCounts,
    Vector,
    category_codes,
    check_sums,
    counts_vector,
    holders_vector,
    means_vector,
    missing_columns,
    numeric_values,
    scale,
    sensitivity,
    squares_vector,
    summed_modalities,
    used_numeric,
    vector_bounds,
    vector_length,
)
from federation.plan import Column, Modality, Plan
from federation.tables import RawTable
from security.errors import ConsiliumError

__all__ = [
    "FEATURE_SUMS", "FeatureSum", "FeatureHolders", "FeatureCounts", "FeatureMeans", "FeatureSchema",
    "FeatureTableError", "SchemaError", "holders_vector", "counts_vector", "means_vector", "squares_vector",
    "summed_modalities", "largest_schema",
    "vector_length", "vector_bounds", "sensitivity", "missing_columns",
]  # fmt: skip

FORMAT: Final = 1
SPREAD_FLOOR: Final = 1e-6
"""Smallest standard deviation of a used column, in scaled units: half the width of its range is 1."""
Z_LIMIT: Final = 10.0
"""Standardised values are held within ±Z_LIMIT: one outlier must not drown the others' gradients."""
PLAN_SPREAD: Final = 0.5
"""Standard deviation assumed, in scaled units, where a modality is not summed and only the plan is known."""


class SchemaError(ConsiliumError):
    """Bytes that are not a feature schema of this format, or a schema without any input."""

    code = "feature-schema"


@dataclass(frozen=True)
class NumericInput:
    """A used numeric column: clipped to [low, high], transformed, scaled to [-1, 1], then (x - mean) / std."""

    name: str
    low: float
    high: float
    transform: str
    mean: float
    std: float
    indicator: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        return (self.name, f"{self.name}=missing") if self.indicator else (self.name,)


@dataclass(frozen=True)
class CategoricalInput:
    """A used categorical column: one input per category kept, then "other" and "missing" where there are any."""

    name: str
    categories: tuple[str, ...]
    other: bool
    missing: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""
        extra = [text for text, there in (("other", self.other), ("missing", self.missing)) if there]
        return tuple(f"{self.name}={text}" for text in (*self.categories, *extra))


Input = NumericInput | CategoricalInput


@dataclass(frozen=True)
class FeatureSchema:
    """What turns raw tables into inputs.

    Attributes:
        modalities: modality to its used columns, in plan order. Equal schemas have equal bytes and digests.
    """

    modalities: Mapping[str, tuple[Input, ...]]

    @classmethod
    def build(
        cls, plan: Plan, counts: FeatureCounts, means: FeatureMeans, squares: Mapping[str, Vector]
    ) -> FeatureSchema:
        """The schema of a run, from its opened sums; equal sums give equal bytes everywhere.

        A modality that was not summed takes every column of the plan, centred on its range.

        Args:
            plan: a checked plan.
            counts: of the sum `counts`.
            means: of the sum `means`, of the same modalities.
            squares: the last sum: modality to Σ (x - mean)², float64[vector_length].

        Raises:
            ProtocolError: not exactly the modalities of `counts`, a wrong length, or a value that is not finite.
            SchemaError: a modality in which no column is left.
        """
        check_sums(plan, "squares", squares, list(counts.modalities), complete=True)
        built: dict[str, tuple[Input, ...]] = {}
        for modality in plan.modalities:
            if modality.name in counts.modalities:
                _, patients = used_numeric(modality, counts)
                std = np.sqrt(np.maximum(0.0, squares[modality.name] / patients))
                inputs = _summed_inputs(
                    modality, counts.modalities[modality.name], means.modalities[modality.name], std, plan
                )
            else:
                inputs = tuple(_planned_input(column) for column in modality.columns)
            if not any(each.labels for each in inputs):
                raise SchemaError(
                    f"no column of modality {modality.name} can be used.",
                    remedy="Lower the plan's feature floors, correct its columns' names, or leave the modality out.",
                )
            built[modality.name] = inputs
        return cls(built)

    def width(self, modality: str) -> int:
        """Number of inputs of a modality, at least 1."""
        return len(self.labels(modality))

    @property
    def widths(self) -> dict[str, int]:
        """Modality to its number of inputs: what `federation.layout.layout` takes."""
        return {name: self.width(name) for name in self.modalities}

    def labels(self, modality: str) -> tuple[str, ...]:
        """Names of a modality's inputs, in order: `age`, `age=missing`, `smoker=yes`, `smoker=other`."""
        return tuple(label for each in self._inputs(modality) for label in each.labels)

    def transform(self, modality: str, table: RawTable) -> npt.NDArray[np.float32]:
        """float32[patients, width], finite always. A column that the table does not have is missing everywhere.

        Raises:
            FeatureTableError: a column of the wrong kind or length.
            SchemaError: the schema has no such modality.
        """
        out = np.zeros((len(table), self.width(modality)), dtype=np.float32)
        at = 0
        for each in self._inputs(modality):
            end = at + len(each.labels)
            if isinstance(each, NumericInput):
                _write_numeric(each, table, out[:, at:end])
            else:
                _write_categorical(each, table, out[:, at:end])
            at = end
        return out

    def to_bytes(self) -> bytes:
        """JSON in one encoding: fixed key order, floats in their shortest exact form."""
        modalities = [
            # Not asdict, which copies every value deeply: at 20,000 columns that takes a second.
            {"name": name, "columns": [{"kind": _kind(each), **vars(each)} for each in inputs]}
            for name, inputs in self.modalities.items()
        ]
        document = {"format": FORMAT, "modalities": modalities}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FeatureSchema:
        """Reads what `to_bytes` wrote, and nothing else.

        Raises:
            SchemaError: not a schema, another format, or not the one encoding.
        """
        try:
            document = json.loads(data)
            if document["format"] != FORMAT:
                raise SchemaError(
                    f"the feature schema has format {document['format']}, not {FORMAT}.",
                    remedy="Use the release that made the model.",
                )
            schema = cls(
                {
                    each["name"]: tuple(_read_input(column) for column in each["columns"])
                    for each in document["modalities"]
                }
            )
            encoded = schema.to_bytes()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise _not_a_schema() from error
        if encoded != data:
            raise _not_a_schema()
        return schema

    @property
    def digest(self) -> str:
        """Content digest of `to_bytes`, 64 hex digits."""
        return content_digest(self.to_bytes())

    def _inputs(self, modality: str) -> tuple[Input, ...]:
        if modality not in self.modalities:
            raise SchemaError(
                f"the feature schema has no modality {modality!r}.",
                remedy=f"It knows: {', '.join(self.modalities)}.",
            )
        return self.modalities[modality]


def largest_schema(plan: Plan) -> int:
    """Bytes that no feature schema of this plan exceeds: what a node takes where it is told of one."""
    escaped = 6  # of a name's byte, as JSON writes it: at most \u and four digits
    size = 256
    for modality in plan.modalities:
        size += 256 + escaped * len(modality.name.encode())
        for column in modality.columns:
            # Kind, keys and four figures of at most 25 digits each; punctuation around each category.
            size += 512 + escaped * len(column.name.encode())
            size += sum(8 + escaped * len(category.encode()) for category in column.categories)
    return size


def _summed_inputs(
    modality: Modality, counts: ModalityCounts, mean: Vector, std: Vector, plan: Plan
) -> tuple[Input, ...]:
    inputs: list[Input] = []
    k = 0
    for column, counted in zip(modality.columns, counts.columns, strict=True):
        missing = counted.patients < counts.patients
        if column.kind == "categorical":
            if counted.used:
                inputs.append(_categorical_input(column, counted, missing, plan.features.min_patients))
            continue
        if counted.used and std[k] > SPREAD_FLOOR:
            spread = (float(mean[k]), float(std[k]))
            inputs.append(NumericInput(column.name, column.low, column.high, column.transform, *spread, missing))
        k += 1
    return tuple(inputs)


def _categorical_input(column: Column, counted: ColumnCounts, missing: bool, floor: int) -> CategoricalInput:
    kept = [(name, n) for name, n in zip(column.categories, counted.categories, strict=False) if n >= max(1, floor)]
    # What institutions zeroed as rare is still among the column's patients, and so makes an "other".
    other = counted.patients > sum(n for _, n in kept)
    return CategoricalInput(column.name, tuple(name for name, _ in kept), other, missing)


def _planned_input(column: Column) -> Input:
    if column.kind == "categorical":
        return CategoricalInput(column.name, column.categories, other=True, missing=True)
    return NumericInput(column.name, column.low, column.high, column.transform, 0.0, PLAN_SPREAD, indicator=True)


def _write_numeric(each: NumericInput, table: RawTable, out: npt.NDArray[np.float32]) -> None:
    values = numeric_values(Column(name=each.name), table)
    missing = np.isnan(values)
    standardised = (scale(values, each.low, each.high, each.transform) - each.mean) / each.std
    out[:, 0] = np.where(missing, 0.0, np.clip(standardised, -Z_LIMIT, Z_LIMIT))
    if each.indicator:
        out[:, 1] = missing


def _write_categorical(each: CategoricalInput, table: RawTable, out: npt.NDArray[np.float32]) -> None:
    codes = category_codes(Column(name=each.name, kind="categorical", categories=each.categories), table)
    kept = len(each.categories)
    # Without an "other" or "missing" input, which training never saw, such a patient is all zeros.
    places = np.where(codes == kept, kept if each.other else -1, codes)
    places = np.where(codes < 0, kept + int(each.other) if each.missing else -1, places)
    rows = np.flatnonzero(places >= 0)
    out[rows, places[rows]] = 1.0


def _kind(each: Input) -> str:
    return "numeric" if isinstance(each, NumericInput) else "categorical"


def _read_input(column: dict[str, Any]) -> Input:
    fields = {key: value for key, value in column.items() if key != "kind"}
    if column["kind"] == "numeric":
        read = NumericInput(**fields)
        numbers = (read.low, read.high, read.mean, read.std)
        sound = all(type(x) is float for x in numbers) and type(read.indicator) is bool and read.std > 0
        if not sound or read.transform not in ("none", "log1p") or not isinstance(read.name, str):
            raise ValueError
        if not read.low < read.high or (read.transform == "log1p" and read.low <= -1):
            raise ValueError
        return read
    category = CategoricalInput(**{**fields, "categories": tuple(fields["categories"])})
    texts = (category.name, *category.categories)
    if column["kind"] != "categorical" or not all(isinstance(text, str) for text in texts):
        raise ValueError
    if type(category.other) is not bool or type(category.missing) is not bool:
        raise ValueError
    return category


def _not_a_schema() -> SchemaError:
    return SchemaError("these bytes are not a feature schema.", remedy="Export the model again.")
