"""Round 0 comes to the schema of the pooled tables, and its cohorts never tell one institution's patients."""

from __future__ import annotations

import numpy as np
import pytest

from federation.feature_sums import FEATURE_SUMS, counts_vector, means_vector, squares_vector
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
    holders = {p.name.removeprefix("features/"): len(p.contributors) for p in sums["counts"].parts}
    for name in FEATURE_SUMS:
        words = {}
        for modality, table in tables.items():
            if name == "counts":
                vector = counts_vector(plan, modality, table)
                vector[2:] = np.where(vector[2:] == 1, holders[modality], vector[2:])  # one flag per institution
            elif name == "means":
                assert alone.counts is not None
                vector = means_vector(plan, alone.counts, modality, table)
            else:
                assert alone.counts is not None
                assert alone.means is not None
                vector = squares_vector(plan, alone.counts, alone.means, modality, table)
            words[f"features/{modality}"] = encode(vector, feature_encoding(plan, name, modality, holders[modality]))
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
    made = {
        f"features/{m}": encode(counts_vector(plan, m, t), feature_encoding(plan, "counts", m, 4 if m != "mrna" else 7))
        for m, t in data.tables.items()
    }
    told.take("counts", made)
    with pytest.raises(ProtocolError):
        told.take("means", {})
    read = feature_vectors(plan, "counts", sums["counts"], made)
    assert read["mrna"][0] == len(data)


def test_figures_come_back_as_they_were_published() -> None:
    figures = Figures({"mrna": 0.5, "image": None}, 1e-3)
    assert Figures.from_bytes(figures.to_bytes()) == figures
    with pytest.raises(RoundError):
        Figures.from_bytes(b'{"scores": {"mrna": Infinity}, "median_squared_overfitting": null}')


def test_counts_encode_exactly() -> None:
    how = patient_encoding(frozenset({"a", "b", "c"}))
    values = np.array([0.0, 1.0, 2.0**20])
    assert np.array_equal(decode(encode(values, how), how), values)
