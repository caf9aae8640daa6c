"""The feature schema: the same from any split of the patients, silent about columns below the floors, never NaN."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import log1p

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.features import (
    FEATURE_SUMS,
    FeatureCounts,
    FeatureHolders,
    FeatureMeans,
    FeatureSchema,
    FeatureTableError,
    SchemaError,
    counts_vector,
    holders_vector,
    largest_schema,
    means_vector,
    missing_columns,
    sensitivity,
    squares_vector,
    summed_modalities,
    vector_bounds,
    vector_length,
)
from federation.plan import Plan
from federation.tables import RawTable
from security.errors import ProtocolError
from tests.plans import example_plan

FLOORS = {"min_institutions": 1, "min_patients": 1, "rare_category": 0}
MODALITIES = ("mrna", "image", "clinical")


def table(plan: Plan, modality: str, patients: int, seed: int, missing: float = 0.2) -> RawTable:
    """Values in and beyond the plan's ranges, some missing; categories in and beyond the plan's list."""
    rng = np.random.default_rng(seed)
    numeric: dict[str, np.ndarray] = {}
    categorical: dict[str, tuple[str | None, ...]] = {}
    for column in next(m for m in plan.modalities if m.name == modality).columns:
        gone = rng.random(patients) < missing
        if column.kind == "numeric":
            span = column.high - column.low
            values = rng.uniform(column.low - 0.1 * span, column.high + 0.1 * span, patients)
            numeric[column.name] = np.where(gone, np.nan, values)
        else:
            texts = rng.choice([*column.categories, "elsewhere"], patients)
            categorical[column.name] = tuple(None if g else str(t) for g, t in zip(gone, texts, strict=True))
    return RawTable(tuple(f"p{i}" for i in range(patients)), numeric, categorical)


def holders_of(plan: Plan, tables: Sequence[dict[str, RawTable]]) -> FeatureHolders:
    sums = {m: np.sum([holders_vector(plan, m, t[m]) for t in tables], axis=0) for m in MODALITIES}
    return FeatureHolders.from_sums(plan, sums)


def federate(plan: Plan, tables: Sequence[dict[str, RawTable]]) -> tuple[FeatureCounts, FeatureMeans, FeatureSchema]:
    """The sums in order, in plain text, over institutions that each hold every modality."""
    holders = holders_of(plan, tables)
    counts = FeatureCounts.from_sums(
        plan, holders, {m: np.sum([counts_vector(plan, holders, m, t[m]) for t in tables], axis=0) for m in MODALITIES}
    )
    means = FeatureMeans.from_sums(
        plan, counts, {m: np.sum([means_vector(plan, counts, m, t[m]) for t in tables], axis=0) for m in MODALITIES}
    )
    squares = {m: np.sum([squares_vector(plan, counts, means, m, t[m]) for t in tables], axis=0) for m in MODALITIES}
    return counts, means, FeatureSchema.build(plan, counts, means, squares)


def pooled(plan: Plan, patients: int, seed: int) -> dict[str, RawTable]:
    return {m: table(plan, m, patients, seed + k) for k, m in enumerate(MODALITIES)}


@settings(deadline=None, max_examples=40)
@given(
    patients=st.integers(15, 60),
    parts=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_split_gives_the_pooled_schema(patients: int, parts: int, seed: int) -> None:
    plan = example_plan(features=FLOORS)
    whole = pooled(plan, patients, seed)
    where = np.random.default_rng(seed).integers(parts, size=patients)
    split = [{m: t.select(np.flatnonzero(where == k).tolist()) for m, t in whole.items()} for k in range(parts)]

    counts, _, schema = federate(plan, split)
    pooled_counts, _, expected = federate(plan, [whole])

    for m in MODALITIES:
        assert counts.modalities[m].patients == pooled_counts.modalities[m].patients == patients
        assert schema.labels(m) == expected.labels(m)
        assert len(schema.to_bytes()) <= largest_schema(plan)
        np.testing.assert_allclose(schema.transform(m, whole[m]), expected.transform(m, whole[m]), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(patients=st.integers(15, 80), seed=st.integers(0, 2**32 - 1))
def test_training_inputs_are_standardised(patients: int, seed: int) -> None:
    plan = example_plan(features=FLOORS)
    whole = pooled(plan, patients, seed)
    _, _, schema = federate(plan, [whole])
    for m in MODALITIES:
        x = schema.transform(m, whole[m])
        assert x.dtype == np.float32
        assert x.shape == (patients, schema.width(m))
        assert np.all(np.isfinite(x))
    for column in ("age", "marker"):
        if column in schema.labels("clinical"):
            values = schema.transform("clinical", whole["clinical"])[:, schema.labels("clinical").index(column)]
            held = values[~np.isnan(whole["clinical"].numeric[column])]
            assert abs(float(held.mean())) < 1e-4
            assert float(held.std()) == pytest.approx(1.0, abs=1e-3)


def test_values_by_hand() -> None:
    plan = example_plan(features=FLOORS)
    marker = np.array([0.0, 3.0, np.nan, 5000.0])
    clinical = RawTable(("a", "b", "c", "d"), {"marker": marker}, {"smoker": ("yes", "yes", None, "pipe")})
    others = {m: table(plan, m, 4, 1) for m in ("mrna", "image")}
    counts, means, schema = federate(plan, [{**others, "clinical": clinical}])

    # age; marker; smoker, and of it yes, no, other; of counts the patients before them
    holders = holders_of(plan, [{**others, "clinical": clinical}])
    assert holders.modalities["clinical"].tolist() == [0, 1, 1, 1, 0, 1]
    assert counts_vector(plan, holders, "clinical", clinical).tolist() == [4, 0, 3, 3, 2, 0, 1]
    scaled = np.array([0.0, log1p(3.0), log1p(1000.0)]) / log1p(1000.0) * 2 - 1  # 5000 is clipped to 1000
    assert means.modalities["clinical"].tolist() == pytest.approx([0.0, scaled.mean()])
    assert schema.labels("clinical") == ("marker", "marker=missing", "smoker=yes", "smoker=other", "smoker=missing")
    z = (scaled - scaled.mean()) / scaled.std()
    expected = [[z[0], 0, 1, 0, 0], [z[1], 0, 1, 0, 0], [0, 1, 0, 0, 1], [z[2], 0, 0, 1, 0]]
    np.testing.assert_allclose(schema.transform("clinical", clinical), expected, atol=1e-6)
    assert missing_columns(plan, "clinical", clinical) == ("age",)
    assert not counts.modalities["clinical"].columns[0].used


@pytest.mark.parametrize(("floor", "value"), [("min_institutions", 3), ("min_patients", 41)])
def test_a_column_below_a_floor_stays_out_of_every_later_sum(floor: str, value: int) -> None:
    """Two institutions with 20 patients each hold `age`: either floor keeps every later sum silent about it."""
    plan = example_plan(features={**FLOORS, floor: value})
    tables = [pooled(plan, 20 if k < 2 else 60, seed=k) for k in range(3)]
    for k in range(3):
        clinical = tables[k]["clinical"]
        ages = np.full(20, 50.0) if k < 2 else np.full(60, np.nan)
        tables[k]["clinical"] = RawTable(clinical.ids, {**clinical.numeric, "age": ages}, clinical.categorical)

    counts, means, schema = federate(plan, tables)

    assert counts.modalities["clinical"].columns[0].patients == (40 if floor == "min_patients" else 0)
    assert not counts.modalities["clinical"].columns[0].used
    for t in tables:
        assert means_vector(plan, counts, "clinical", t["clinical"])[0] == 0.0
        assert squares_vector(plan, counts, means, "clinical", t["clinical"])[0] == 0.0
        assert means_vector(plan, counts, "clinical", t["clinical"])[1] != 0.0
    assert "age" not in schema.labels("clinical")
    assert "marker" in schema.labels("clinical")


def test_a_column_or_category_that_few_institutions_have_is_not_even_counted() -> None:
    """Two of four institutions have `age` and smokers of a pipe: a count of them would be nearly one hospital's own."""
    plan = example_plan(features={**FLOORS, "min_institutions": 3})
    tables = [pooled(plan, 20, seed=k) for k in range(4)]
    for k in range(4):
        clinical = tables[k]["clinical"]
        ages = np.full(20, 50.0 if k < 2 else np.nan)
        smoker = ("yes",) * 10 + ("pipe" if k < 2 else "no",) * 10
        tables[k]["clinical"] = RawTable(clinical.ids, {**clinical.numeric, "age": ages}, {"smoker": smoker})

    holders = holders_of(plan, tables)
    counts, _, schema = federate(plan, tables)

    assert holders.modalities["clinical"].tolist() == [2, 4, 4, 4, 2, 2]
    for t in tables:
        sent = counts_vector(plan, holders, "clinical", t["clinical"])
        assert sent[[0, 1, 3, 4, 5, 6]].tolist() == [20, 0, 20, 10, 0, 0]
    assert counts.modalities["clinical"].columns[0].patients == 0
    assert "age" not in schema.labels("clinical")
    assert {"smoker=yes", "smoker=other"} <= set(schema.labels("clinical"))
    assert "smoker=no" not in schema.labels("clinical")


def test_no_category_of_a_column_that_few_have_is_counted_whatever_a_coordinator_says_of_it() -> None:
    plan = example_plan(features={**FLOORS, "min_institutions": 3})
    told = {m: np.full(vector_length(plan, "holders", m), 9.0) for m in MODALITIES}
    told["clinical"] = np.array([9.0, 9.0, 2.0, 9.0, 9.0, 9.0])
    counted = FeatureHolders.from_sums(plan, told).counted(plan, "clinical")
    assert counted.tolist() == [True, True, False, False, False, False]


def test_under_differential_privacy_the_flags_tell_of_the_table_and_of_no_patient() -> None:
    plan = example_plan(features=FLOORS)
    private = plan.model_copy(
        update={"differential_privacy": plan.differential_privacy.model_copy(update={"enabled": True})}
    )
    one = RawTable(("a",), {"age": np.array([np.nan])}, {"smoker": (None,)})
    two = RawTable(("a", "b"), {"age": np.array([1.0, 2.0])}, {"smoker": ("yes", "pipe")})
    for table_ in (one, two):
        assert holders_vector(private, "clinical", table_).tolist() == [1, 0, 1, 1, 1, 1]
    assert sensitivity(private, "holders", "clinical") == 0.0


def test_rare_categories_are_zeroed_before_they_leave() -> None:
    plan = example_plan(features={**FLOORS, "rare_category": 3})
    smoker = ("yes",) * 2 + ("no",) * 3 + ("pipe",)
    clinical = RawTable(tuple("abcdef"), {}, {"smoker": smoker})
    others = {m: table(plan, m, 6, 1) for m in ("mrna", "image")}
    holders = holders_of(plan, [{**others, "clinical": clinical}])
    assert holders.modalities["clinical"].tolist() == [0, 0, 1, 0, 1, 0]
    assert counts_vector(plan, holders, "clinical", clinical).tolist()[3:] == [6, 0, 3, 0]
    _, _, schema = federate(plan, [{**others, "clinical": clinical}])
    assert schema.labels("clinical") == ("smoker=no", "smoker=other")
    np.testing.assert_array_equal(schema.transform("clinical", clinical), [[0, 1]] * 2 + [[1, 0]] * 3 + [[0, 1]])


def test_inputs_that_training_never_saw_stay_zero() -> None:
    plan = example_plan(features=FLOORS)
    whole = {m: table(plan, m, 30, 3, missing=0.0) for m in MODALITIES}
    smoker = ("yes", "no") * 15
    clinical = whole["clinical"]
    whole["clinical"] = RawTable(clinical.ids, clinical.numeric, {"smoker": smoker})
    _, _, schema = federate(plan, [whole])
    assert schema.labels("clinical") == ("age", "marker", "smoker=yes", "smoker=no")
    stranger = RawTable(("x", "y"), {"age": np.array([np.nan, np.inf])}, {"smoker": (None, "pipe")})
    x = schema.transform("clinical", stranger)
    assert x[0].tolist() == [0, 0, 0, 0]
    assert np.all(np.isfinite(x))
    assert x[1, 2:].tolist() == [0, 0]


def test_a_column_without_spread_is_left_out_and_a_modality_without_columns_refused() -> None:
    plan = example_plan(features=FLOORS)
    whole = {m: table(plan, m, 30, 3) for m in MODALITIES}
    constant = {name: np.full(30, 1.0) for name in whole["image"].numeric}
    whole["image"] = RawTable(whole["image"].ids, {**constant, "f1": whole["image"].numeric["f1"]}, {})
    _, _, schema = federate(plan, [whole])
    assert set(schema.labels("image")) <= {"f1", "f1=missing"}
    whole["image"] = RawTable(whole["image"].ids, constant, {})
    with pytest.raises(SchemaError, match="image"):
        federate(plan, [whole])


def test_outliers_are_held() -> None:
    plan = example_plan(features=FLOORS)
    whole = {m: table(plan, m, 400, 3, missing=0.0) for m in MODALITIES}
    values = np.random.default_rng(0).normal(0, 1e-3, 400)
    whole["mrna"] = RawTable(whole["mrna"].ids, {**whole["mrna"].numeric, "g0": values}, {})
    _, _, schema = federate(plan, [whole])
    assert schema.transform("mrna", RawTable(("x",), {"g0": np.array([5.0])}, {}))[0, 0] == 10.0


def test_a_modality_below_the_privacy_floor_is_not_summed() -> None:
    """With k_min 6 and six holders each the sums exist; with 7 they do not, and the plan's ranges serve."""
    assert summed_modalities(example_plan(secure_sum={"k_min": 6})) == MODALITIES
    plan = example_plan(secure_sum={"k_min": 7}, features=FLOORS)
    assert summed_modalities(plan) == ()
    counts = FeatureCounts.from_sums(plan, FeatureHolders({}), {})
    schema = FeatureSchema.build(plan, counts, FeatureMeans.from_sums(plan, counts, {}), {})
    assert schema.labels("clinical") == (
        "age", "age=missing", "marker", "marker=missing", "smoker=yes", "smoker=no", "smoker=other", "smoker=missing",
    )  # fmt: skip
    x = schema.transform("clinical", RawTable(("x",), {"age": np.array([120.0])}, {"smoker": ("no",)}))
    assert x[0].tolist() == [2, 0, 0, 1, 0, 1, 0, 0]
    assert FeatureSchema.from_bytes(schema.to_bytes()) == schema


@settings(deadline=None, max_examples=40)
@given(patients=st.integers(0, 25), seed=st.integers(0, 2**32 - 1), rare=st.integers(0, 6), row=st.integers(0, 1000))
def test_bounds_lengths_and_sensitivity_hold(patients: int, seed: int, rare: int, row: int) -> None:
    plan = example_plan(features={**FLOORS, "rare_category": rare})
    private = plan.model_copy(
        update={"differential_privacy": plan.differential_privacy.model_copy(update={"enabled": True})}
    )
    # Enough other patients that every column is used.
    holders = holders_of(plan, [pooled(plan, 50, 7)])
    counts, means, _ = federate(plan, [pooled(plan, 50, 7)])
    for m in MODALITIES:
        more = table(plan, m, patients + 1, seed)
        gone = row % (patients + 1)
        fewer = more.select([i for i in range(patients + 1) if i != gone])
        for name in FEATURE_SUMS:
            vectors = []
            for t in (more, fewer):
                if name == "holders":
                    vectors.append(holders_vector(private, m, t))
                elif name == "counts":
                    vectors.append(counts_vector(plan, holders, m, t))
                elif name == "means":
                    vectors.append(means_vector(plan, counts, m, t))
                else:
                    vectors.append(squares_vector(plan, counts, means, m, t))
            assert vectors[0].shape == (vector_length(plan, name, m),)
            assert np.all(np.abs(vectors[0]) <= vector_bounds(plan, name, m))
            assert np.linalg.norm(vectors[0] - vectors[1]) <= sensitivity(plan, name, m) * (1 + 1e-12)


def test_bytes_are_exact_and_strict() -> None:
    plan = example_plan(features=FLOORS)
    _, _, schema = federate(plan, [pooled(plan, 40, 5)])
    data = schema.to_bytes()
    again = FeatureSchema.from_bytes(data)
    assert again == schema
    assert again.to_bytes() == data
    assert again.digest == schema.digest
    document = json.loads(data)
    bad = {
        "format": {**document, "format": 2},
        "more": {**document, "more": 1},
        "no modalities": {"format": 1},
        "list": [1],
    }
    for each in bad.values():
        with pytest.raises(SchemaError):
            FeatureSchema.from_bytes(json.dumps(each, sort_keys=True, separators=(",", ":")).encode())
    for text in (
        b"",
        b"\xff",
        data + b" ",
        data.replace(b'"std":', b'"std":-', 1),
        data.replace(b'"mean":', b'"m":', 1),
    ):
        with pytest.raises(SchemaError):
            FeatureSchema.from_bytes(text)
    with pytest.raises(SchemaError, match="proteins"):
        schema.width("proteins")


def test_wrong_sums_are_a_protocol_error() -> None:
    plan = example_plan(features=FLOORS)
    whole = pooled(plan, 40, 5)
    holders = holders_of(plan, [whole])
    good = {m: counts_vector(plan, holders, m, t) for m, t in whole.items()}
    counts = FeatureCounts.from_sums(plan, holders, good)
    for bad in (
        {**good, "proteins": np.zeros(3)},
        {**good, "mrna": good["mrna"][:-1]},
        {**good, "mrna": good["mrna"] * np.nan},
    ):
        with pytest.raises(ProtocolError):
            FeatureCounts.from_sums(plan, holders, bad)
    with pytest.raises(ProtocolError):
        FeatureHolders.from_sums(plan, {"mrna": np.zeros(2)})
    with pytest.raises(ProtocolError):
        FeatureMeans.from_sums(plan, counts, {"mrna": np.zeros(4)})


def test_a_table_of_the_wrong_kind_is_refused() -> None:
    plan = example_plan()
    with pytest.raises(FeatureTableError, match="age"):
        holders_vector(plan, "clinical", RawTable(("a",), {}, {"age": ("old",)}))
    with pytest.raises(FeatureTableError, match="smoker"):
        holders_vector(plan, "clinical", RawTable(("a",), {"smoker": np.zeros(1)}, {}))
    with pytest.raises(FeatureTableError, match="2 values for 1"):
        holders_vector(plan, "clinical", RawTable(("a",), {"age": np.zeros(2)}, {}))


def test_noised_sums_still_make_a_schema() -> None:
    """Under DP the sums carry noise: negative counts and squares must not break anything."""
    plan = example_plan(features=FLOORS)
    whole = pooled(plan, 40, 5)
    rng = np.random.default_rng(0)

    def noised(vector: np.ndarray) -> np.ndarray:
        return vector + rng.normal(0, 8, vector.shape)

    holders = holders_of(plan, [whole])
    counts = FeatureCounts.from_sums(
        plan, holders, {m: noised(counts_vector(plan, holders, m, whole[m])) for m in MODALITIES}
    )
    means = FeatureMeans.from_sums(
        plan, counts, {m: noised(means_vector(plan, counts, m, whole[m])) for m in MODALITIES}
    )
    squares = {m: noised(squares_vector(plan, counts, means, m, whole[m])) for m in MODALITIES}
    schema = FeatureSchema.build(plan, counts, means, squares)
    for m in MODALITIES:
        assert np.all(np.abs(means.modalities[m]) <= 1)
        assert np.all(np.isfinite(schema.transform(m, whole[m])))
    assert FeatureSchema.from_bytes(schema.to_bytes()) == schema
