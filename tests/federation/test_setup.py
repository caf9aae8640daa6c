"""Round 0 comes to the schema of the pooled tables, and its cohorts never tell one institution's patients."""

from __future__ import annotations

import numpy as np
import pytest

from federation.feature_sums import FEATURE_SUMS, FeatureSum
from federation.features import FeatureSchema
from federation.rounds import Cohorts, Figures, RoundError
from federation.setup import FeatureSums, feature_encoding, feature_vectors, patient_encoding, patients_of
from federation.statistics import decode, encode
from federation.tables import RawTable
from security.errors import ProtocolError
from security.secure_sum.cohorts import subtracts_below
from tests.plans import example_plan
from tests.small_federation import SmallFederation, finished, patients, small_plan


def pooled(federation: SmallFederation, modality: str) -> RawTable:
    """All training patients of a modality as if one institution had them."""
    tables = [
        data.tables[modality].select(federation.works[name]._train_rows.tolist())
        for name, data in federation.data.items()
        if modality in data.tables
    ]
    numeric = {c: np.concatenate([t.numeric[c] for t in tables]) for c in tables[0].numeric}
    categorical = {c: sum((tuple(t.categorical[c]) for t in tables), ()) for c in tables[0].categorical}
    return RawTable(tuple(i for t in tables for i in t.ids), numeric, categorical)


def test_the_schema_is_the_one_of_the_pooled_tables() -> None:
    """The counts exactly, the rest within the rounding of the fixed point."""
    plan = small_plan(7, rounds=1, features={"rare_category": 0})
    federation = finished(plan)
    schema = FeatureSchema.from_bytes(federation.content(federation.run.state.setup.schema, np.uint8).tobytes())
    cohorts = Cohorts(plan)
    sums = {s.name: s for s in cohorts.setup_sums()}
    alone = FeatureSums(plan, sums)
    tables = {m.name: pooled(federation, m.name) for m in plan.modalities}
    holders = {p.name.removeprefix("features/"): len(p.contributors) for p in sums["holders"].parts}
    for name in FEATURE_SUMS:
        words = {}
        for modality, table in tables.items():
            vector = alone.vector(name, modality, table)
            assert vector is not None
            encoded = encode(vector, feature_encoding(plan, name, modality, holders[modality]))
            # Everybody has every column: the pooled table's one flag is one of each institution.
            words[f"features/{modality}"] = encoded * np.uint64(holders[modality] if name == "holders" else 1)
        alone.take(name, words)
    assert alone.schema is not None
    assert schema.widths == alone.schema.widths
    for modality, table in tables.items():
        ours, theirs = schema.transform(modality, table), alone.schema.transform(modality, table)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_patient_totals_are_exact_and_a_cohort_that_stays_shut_is_missing() -> None:
    which = Cohorts(small_plan(7)).setup_sums()[-1]
    part = which.parts[0]
    words = {part.name: encode(np.array([1234.0]), patient_encoding(part.contributors))}
    assert patients_of(which, words) == {part.name: 1234}


@pytest.mark.parametrize("sum_name", FEATURE_SUMS)
def test_cohorts_of_the_features_cannot_be_subtracted_from_each_other(sum_name: str) -> None:
    """An institution counts the same patients in each modality: three cohorts of one number, not three numbers."""
    plan = example_plan(6)  # image less clinical would be two institutions' patients
    cohorts = Cohorts(plan)
    everybody = frozenset(plan.roster)
    from security.secure_sum.spec import Context

    attempt = cohorts.attempt(Context("example", bytes(32), 0, 1, bytes(32)), cohorts.setup_sums())
    opened = attempt.opened_parts(sum_name, everybody, everybody)
    assert len(opened) < len(attempt.sum(sum_name).parts)
    assert subtracts_below(plan.secure_sum.k_min, [p.contributors for p in opened]) is None


def test_a_modality_that_is_missing_from_a_later_sum_is_a_protocol_error() -> None:
    plan = small_plan(7)
    sums = {s.name: s for s in Cohorts(plan).setup_sums()}
    told = FeatureSums(plan, sums)
    name = plan.roster[0]
    data = patients(plan, name)
    holders = {m: 7 if m == "mrna" else 4 for m in data.tables}

    def words(sum_name: FeatureSum) -> dict[str, np.ndarray]:
        made = {}
        for m, t in data.tables.items():
            vector = told.vector(sum_name, m, t)
            assert vector is not None
            made[f"features/{m}"] = encode(vector, feature_encoding(plan, sum_name, m, holders[m]))
        return made

    with pytest.raises(ProtocolError):
        told.take("counts", words("holders"))
    first = words("holders")
    told.take("holders", first)
    with pytest.raises(ProtocolError):
        told.take("counts", {})
    assert feature_vectors(plan, "holders", sums["holders"], first)["mrna"][0] == 1
    with pytest.raises(ProtocolError):
        told.vector("means", "mrna", data.tables["mrna"])


def test_figures_come_back_as_they_were_published() -> None:
    figures = Figures({"mrna": 0.5, "image": None}, 1e-3)
    assert Figures.from_bytes(figures.to_bytes()) == figures
    with pytest.raises(RoundError):
        Figures.from_bytes(b'{"scores": {"mrna": Infinity}, "median_squared_overfitting": null}')


def test_counts_encode_exactly() -> None:
    how = patient_encoding(frozenset({"a", "b", "c"}))
    values = np.array([0.0, 1.0, 2.0**20])
    assert np.array_equal(decode(encode(values, how), how), values)
