"""What methods are held against: alone and pooled train as an institution does, and know what a constant does not."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest

from federation.evaluation import scores_exact
from federation.features import FeatureSchema, NumericInput
from federation.layout import layout
from institution_node.local_run import LocalRun
from institution_node.training import LocalTrainer
from security.privacy.randomness import SeededRandomness
from studies.baselines import alone, cohort_only, constant, patients_of, pooled, schema_of
from studies.federation import StudyError
from studies.methods import changed
from studies.pooled_training import Group, PooledTrainer
from studies.scoring import ALL, TestPatients, mean_scores, stacked
from studies.simulate import StudyMemory, institution_data, institution_randomness, simulate
from tests.plans import with_combinations
from tests.studies.small_study import small_plan, study

LONGER = {"rounds": 6, "local_steps": 10}


class _NoLibrary:
    def fetch(self, digest: str, at_most: int) -> bytearray:
        raise AssertionError(digest)

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        raise AssertionError(digest)

    def pieces(self, digest: str, length: int) -> Generator[memoryview]:
        raise AssertionError(digest)


def test_patients_are_divided_as_a_seeded_run_divides_them() -> None:
    plan, federation = small_plan(), study()
    for name, patients in patients_of(plan, federation, 5).items():
        shard = next(s for s in federation.shards if s.name == name)
        work = LocalRun(
            plan.to_bytes(),
            name,
            institution_data(shard, plan),
            _NoLibrary(),
            StudyMemory(),
            institution_randomness(5, name),
        )
        assert work._train_rows.tolist() == patients.training.tolist()
        assert work._validation_rows.tolist() == patients.validation.tolist()


def test_the_schema_is_the_federations_own() -> None:
    plan, federation = small_plan(rounds=1), study()
    patients = patients_of(plan, federation, 1)
    tables = {
        m: stacked([p.training_table(m) for n, p in patients.items() if m in plan.institution(n).modalities])
        for m in plan.modality_order
    }
    made = schema_of(changed(plan, {"features": {"min_institutions": 1, "rare_category": 0}}), tables)
    summed = simulate(plan, federation, 1).final.schema
    for modality in ("mrna", "image"):
        assert _names(made, modality) == _names(summed, modality)
        for a, b in zip(made.modalities[modality], summed.modalities[modality], strict=True):
            assert isinstance(a, NumericInput)
            assert isinstance(b, NumericInput)
            np.testing.assert_allclose((a.mean, a.std), (b.mean, b.std), atol=1e-6)


def _names(schema: FeatureSchema, modality: str) -> list[str]:
    return [each.name for each in schema.modalities[modality]]


def test_pooling_a_single_institution_is_training_there() -> None:
    whole, federation = small_plan(), study()
    name = "brca-1"
    plan = changed(whole, {"institutions": (whole.institution(name),)})
    shard = next(s for s in federation.shards if s.name == name)
    patients = patients_of(plan, replace(federation, shards=(shard,)), 1)[name]
    floors = {"min_institutions": 1, "min_patients": 5, "rare_category": 0}
    schema = schema_of(
        changed(plan, {"features": floors}), {m: patients.training_table(m) for m in plan.modality_order}
    )
    made = layout(plan, schema.widths)
    features = {m: schema.transform(m, patients.data.tables[m]) for m in plan.modality_order}
    labels, rows = patients.data.labels, (patients.training, patients.validation)
    local = LocalTrainer(plan, made, name, features, labels, *rows)
    group = Group(plan, made, name, features, labels, *rows, everybody=labels[patients.training])
    weights = {n: c.initial(1) for n, c in made.components.items()}
    updates = local.train(weights, {}, 0.01, SeededRandomness(3, "training")).updates
    after = PooledTrainer(plan, made, [group]).train(weights, 0.01, SeededRandomness(3, "training"))
    assert any(np.abs(update).max() > 1e-3 for update in updates.values())
    for component, vector in after.items():
        np.testing.assert_allclose(vector, weights[component] + updates[component], atol=1e-5)


def test_class_weights_of_the_pooled_party_are_balanced_over_everybody() -> None:
    plan, federation = small_plan(), study()
    patients = patients_of(plan, federation, 1)["lusc-2"]
    plan = changed(plan, {"features": {"min_institutions": 1, "min_patients": 5}})
    everything = patients_of(plan, federation, 1)["lusc-1"]
    schema = schema_of(plan, {m: everything.training_table(m) for m in plan.modality_order})
    made = layout(plan, schema.widths)
    features = {m: schema.transform(m, patients.data.tables[m]) for m in ("mrna",)}
    rows = (patients.training, patients.validation)
    own = patients.data.labels[patients.training]
    balanced = changed(plan, {"training": {"class_weights": "balanced"}})

    def losses(everybody: np.ndarray) -> list[float]:
        group = Group(balanced, made, "lusc-2", features, patients.data.labels, *rows, everybody=everybody)
        group.model.load({n: made.components[n].initial(1) for n in made.owned("lusc-2")})
        values = group.patient_losses(*group.batch(np.arange(group.patients)), None)
        return [float(v) for v in values.detach()]

    skewed = np.concatenate([own, np.zeros(10 * len(own), np.int64)])
    rarer = np.array(losses(skewed)) / np.array(losses(own))
    first = patients.data.labels[patients.training] == 0
    assert (rarer[first] < 0.95).all()
    assert (rarer[~first] > 1.5).all()


def test_planted_stages_are_found_by_pooled_and_alone_and_not_by_constants() -> None:
    plan, federation = small_plan(rounds=LONGER["rounds"], local_steps=LONGER["local_steps"]), study()
    test = TestPatients.of(federation, plan)
    nothing = test.scores(constant(plan, federation, test))
    by_cohort = test.scores(cohort_only(plan, federation, test))
    model = pooled(plan, federation, 1)
    together = test.scores(test.predict(model))
    apart = alone(plan, federation, 1, test)
    mean = mean_scores([test.scores(p) for p in apart.values()])
    assert set(apart) == set(plan.roster)
    assert 1 <= model.round <= LONGER["rounds"]
    assert (nothing[ALL].balanced_accuracy, nothing[ALL].auroc) == (0.5, 0.5)
    for cohort in federation.test:
        assert by_cohort[cohort].auroc == 0.5
    for row in together:
        assert (together[row].auroc or 0) > 0.8 > 0.65 > (by_cohort[row].auroc or 0)
    assert (mean[ALL].auroc or 0) > 0.7
    one = test.scores(apart["brca-1"])[ALL].accuracy
    assert one is not None
    assert mean[ALL].accuracy != one


def test_baselines_repeat_themselves() -> None:
    plan, federation = small_plan(), study()
    test = TestPatients.of(federation, plan)
    np.testing.assert_array_equal(test.predict(pooled(plan, federation, 1)), test.predict(pooled(plan, federation, 1)))
    first, second = (alone(plan, federation, 1, test) for _ in range(2))
    for name, probabilities in first.items():
        np.testing.assert_array_equal(probabilities, second[name])
    assert (test.predict(pooled(plan, federation, 2)) != test.predict(pooled(plan, federation, 1))).any()


@pytest.mark.parametrize("baseline", [alone, pooled])
def test_patients_of_several_combinations_are_refused_with_a_remedy(baseline: Callable[..., object]) -> None:
    federation = study()
    plan = small_plan()
    name = next(i.name for i in plan.institutions if len(i.modalities) > 1)
    listed = with_combinations(plan, {name: ("mrna", plan.combination(name))})
    arguments = [listed, federation, 1, TestPatients.of(federation, plan)]
    with pytest.raises(StudyError, match=f"those of {name} come in several") as error:
        baseline(*arguments[: len(signature(baseline).parameters)])
    assert "complete_only" in error.value.remedy


def test_constants_are_the_training_patients_frequencies() -> None:
    plan, federation = small_plan(), study()
    test = TestPatients.of(federation, plan)
    every = [stage for shard in federation.shards for stage in shard.stages.values()]
    majority = 0 if every.count(1) >= every.count(2) else 1
    assert constant(plan, federation, test)[:, majority].tolist() == [1.0] * len(test.ids)
    lusc = [stage for shard in federation.shards if shard.cohort == "LUSC" for stage in shard.stages.values()]
    place = test.cohorts.index("LUSC")
    assert cohort_only(plan, federation, test)[place, 1] == lusc.count(2) / len(lusc)


def test_scores_are_of_complete_test_patients_only() -> None:
    plan, federation = small_plan(), study()
    test = TestPatients.of(federation, plan)
    assert list(test.ids) == [p for t in federation.test.values() for p in t.complete]
    assert test.labels.tolist() == [t.stages[p] - 1 for t in federation.test.values() for p in t.complete]
    for table in test.tables.values():
        assert table.ids == test.ids
    guess = np.stack([1.0 - 0.9 * test.labels, 0.9 * test.labels], axis=1)
    guess /= guess.sum(axis=1, keepdims=True)
    scores = test.scores(guess)
    assert scores[ALL] == scores_exact(test.labels, guess)
    assert sum(scores[c].patients for c in federation.test) == scores[ALL].patients == len(test.ids)
