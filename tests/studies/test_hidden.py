"""Modalities hidden patient by patient: what is hidden, and that runs on such patients are the service's."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from federation.plan import Plan
from institution_node.data import load_institution_data
from institution_node.predict import predict
from studies.cohorts import ID_COLUMN
from studies.comparison import DemoPlans
from studies.hidden import KEPT, complete_only, hide
from studies.lockstep import run_together
from studies.plain_rounds import PlainRun, settle
from studies.simulate import SimulatedRun, institution_data, institution_randomness, simulate, with_keys
from studies.synthetic import synthetic
from studies.tcga import Federation, federate, write_shards
from tests.studies.small_study import EVERYTHING, PLANS, SHAPE

FULL = "mrna+image+clinical"


@cache
def everybody() -> Federation:
    return federate(synthetic(1, SHAPE), "synthetic", 1, ((EVERYTHING,) * 3,))


@cache
def hidden(chance: float = 0.4, seed: int = 1) -> Federation:
    return hide(everybody(), chance, seed)


def planned(made: Federation, rounds: int = 2) -> Plan:
    return DemoPlans(rounds, overrides=PLANS.overrides)(made, 1)


@cache
def simulated() -> SimulatedRun:
    plan, keys = with_keys(planned(hidden()))
    return simulate(plan, hidden(), 1, identities=keys)


def held(made: Federation) -> dict[tuple[str, str], set[str]]:
    """Institution and modality to the patients who have it."""
    return {(s.name, m): set(t.ids) for s in made.shards for m, t in s.tables.items()}


@pytest.mark.parametrize("chance", [0.1, 0.4, 0.7])
def test_each_modality_is_hidden_with_the_chance_and_nobody_has_none(chance: float) -> None:
    made = hidden(chance)
    gone = total = 0
    for whole, shard in zip(everybody().shards, made.shards, strict=True):
        assert shard.stages == whole.stages
        assert set().union(*(table.ids for table in shard.tables.values())) == set(whole.stages)
        complete = set(whole.stages).intersection(*(table.ids for table in shard.tables.values()))
        for stages in made.task.classes.values():
            assert sum(shard.stages[p] in stages for p in complete) >= KEPT
        for modality, table in shard.tables.items():
            total, gone = total + len(whole.stages), gone + len(whole.stages) - len(table)
            kept = {p: k for k, p in enumerate(whole.tables[modality].ids)}
            for name, values in table.numeric.items():
                rows = [kept[p] for p in table.ids]
                assert np.array_equal(values, whole.tables[modality].numeric[name][rows], equal_nan=True)
    # Less is gone than drawn: nobody loses everything, and some keep all.
    assert chance * 0.7 < gone / total < chance + 0.02
    assert {shard.combinations for shard in made.shards} == {made.shards[0].combinations}
    assert FULL in made.shards[0].combinations
    assert all(
        a.tables.keys() == b.tables.keys() for a, b in zip(made.test.values(), everybody().test.values(), strict=True)
    )


def test_a_smaller_chance_hides_a_part_of_what_a_larger_one_does() -> None:
    less, more = held(hidden(0.1)), held(hidden(0.4))
    assert all(more[key] <= less[key] for key in more)
    assert held(hidden(0.4)) == more != held(hidden(0.4, seed=2))


def test_complete_patients_alone_are_those_with_everything() -> None:
    made = complete_only(hidden())
    for shard, whole in zip(made.shards, hidden().shards, strict=True):
        assert not shard.combinations
        assert set(shard.stages) == set(whole.stages).intersection(*(t.ids for t in whole.tables.values()))
        assert all(table.ids == tuple(shard.stages) for table in shard.tables.values())
    planned(made)  # passes its check


def test_a_node_reads_from_files_what_a_study_trains_on(tmp_path: Path) -> None:
    made, plan = hidden(), planned(hidden())
    folders = write_shards(made, tmp_path)
    for shard in made.shards[:2]:
        files = {m: folders[shard.name] / f"{m}.parquet" for m in shard.tables}
        read = load_institution_data(plan, shard.name, files, folders[shard.name] / "labels.csv", ID_COLUMN)
        data = institution_data(shard, plan)
        assert (read.ids, read.combinations) == (data.ids, data.combinations)
        for modality, table in data.tables.items():
            for name, values in table.numeric.items():
                assert np.array_equal(values, read.tables[modality].numeric[name], equal_nan=True)


def test_rounds_without_masks_and_in_company_are_the_masked_ones() -> None:
    masked = simulated()
    made, plan = hidden(), masked.plan
    data = {shard.name: institution_data(shard, plan) for shard in made.shards}
    start = settle(plan, data, lambda name: institution_randomness(1, name))
    plain, beside = (PlainRun(plan, start.data, start.randomness, start) for _ in range(2))
    run_together([beside], lambda k, record: None)
    while not plain.ended:
        plain.step()
    for run in (plain, beside):
        weights = {name: bytes(run.content.open(c.weights).view()) for name, c in run.state.components.items()}
        assert weights == {name: vector.tobytes() for name, vector in masked.final.components.items()}


def test_a_new_patient_is_staged_by_what_it_has() -> None:
    made, model = hidden(), simulated().final
    shard = made.shards[0]
    predicted = {row.id: row for row in predict(model, shard.tables).staged}
    assert set(predicted) == set(shard.stages)
    data = institution_data(shard, simulated().plan)
    for patient, combination in zip(data.ids, data.combinations, strict=True):
        having = [m for m in EVERYTHING if patient in shard.tables[m].ids]
        if combination == "+".join(having):
            assert predicted[patient].basis == f"classifier/{combination}"
        else:
            assert predicted[patient].basis == f"heads: {', '.join(having)}"
