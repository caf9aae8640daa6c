"""A run in one process: it repeats itself, whatever the keys, and says what went wrong where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from federation.model_archive import Model, pack
from federation.plan import Plan
from institution_node.data import load_institution_data
from institution_node.service import node_randomness
from studies.federation import StudyError
from studies.methods import changed
from studies.simulate import Record, SimulatedRun, institution_data, institution_randomness, simulate, with_keys
from studies.tcga import Federation, write_shards
from tests.studies.small_study import small_plan, study


def _components(model: Model) -> dict[str, bytes]:
    return {name: vector.tobytes() for name, vector in model.components.items()}


@pytest.fixture(scope="module")
def heard() -> list[tuple[Model, Record]]:
    return []


@pytest.fixture(scope="module")
def run(heard: list[tuple[Model, Record]]) -> SimulatedRun:
    return simulate(small_plan(rounds=3), study(), 1, lambda model, record: heard.append((model, record)))


def test_every_round_is_told_and_the_last_is_final(run: SimulatedRun, heard: list[tuple[Model, Record]]) -> None:
    assert [record["round"] for record in run.records] == [0, 1, 2, 3]
    assert [model.round for model, _ in heard] == [1, 2, 3]
    assert [record for _, record in heard] == list(run.records[1:])
    assert run.final.round == 3
    assert _components(heard[-1][0]) == _components(run.final) != _components(heard[0][0])


def test_the_exported_model_is_the_best_by_validation(run: SimulatedRun, heard: list[tuple[Model, Record]]) -> None:
    metric = run.plan.evaluation.metric
    scores = [record["metrics"]["all"][metric] for record in run.records[1:]]
    assert run.exported is run.best
    assert run.best.round == 1 + int(np.argmax(scores))
    assert _components(run.best) == _components(heard[run.best.round - 1][0])
    assert run.best.temperatures == heard[run.best.round - 1][0].temperatures
    pack(run.best)  # whole, and of one plan


def test_the_model_follows_from_plan_patients_and_seed_but_not_from_keys(run: SimulatedRun) -> None:
    again = simulate(small_plan(rounds=3), study(), 1)
    assert again.plan.to_bytes() != run.plan.to_bytes()  # other keys
    assert _components(again.final) == _components(run.final)
    assert [r.get("metrics") for r in again.records] == [r.get("metrics") for r in run.records]
    other = simulate(small_plan(rounds=1), study(), 2)
    assert _components(other.final) != _components(simulate(small_plan(rounds=1), study(), 1).final)


def test_given_keys_leave_the_plan_as_it_is() -> None:
    plan, keys = with_keys(small_plan(rounds=1))
    assert simulate(plan, study(), 1, identities=keys).plan.to_bytes() == plan.to_bytes()


@pytest.mark.parametrize("institution", ["brca-1", "lusc-2"])
def test_randomness_is_that_of_a_seeded_node(institution: str) -> None:
    assert institution_randomness(7, institution).bytes(32) == node_randomness(7, institution).bytes(32)


def test_patients_are_those_that_a_node_reads_from_its_files(tmp_path: Path) -> None:
    federation, plan = study(), small_plan()
    for name, folder in write_shards(federation, tmp_path).items():
        tables = {m: folder / f"{m}.parquet" for m in plan.institution(name).modalities}
        read = load_institution_data(plan, name, tables, folder / "labels.csv", "case_id")
        made = institution_data(next(s for s in federation.shards if s.name == name), plan)
        assert (made.ids, made.labels.tolist()) == (read.ids, read.labels.tolist())
        for modality, table in read.tables.items():
            _same(made.tables[modality].numeric, table.numeric)
            assert {n: made.tables[modality].categorical[n] for n in table.categorical} == dict(table.categorical)


def _same(made: Mapping[str, np.ndarray], read: Mapping[str, np.ndarray]) -> None:
    assert set(made) == set(read)
    for name, values in read.items():
        np.testing.assert_array_equal(made[name], values)


def test_an_institution_that_has_to_leave_fails_the_study_by_name() -> None:
    plan = small_plan(rounds=1, optimiser="sgd", learning_rate=100.0, local_steps=60, gradient_clip=0.0)
    with pytest.raises(StudyError, match="left the run") as told:
        simulate(plan, study(), 1)
    assert told.value.place in plan.roster


def test_a_plan_of_another_roster_is_refused() -> None:
    plan: Plan = small_plan()
    federation: Federation = study()
    with pytest.raises(StudyError, match="roster"):
        simulate(changed(plan, {"institutions": plan.institutions[:5]}), federation, 1)
