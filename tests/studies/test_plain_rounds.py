"""Rounds without keys and masks give the service's bits, also when they begin from another run's round 0."""

from __future__ import annotations

from typing import Any

import pytest

from federation.plan import Plan
from studies.federation import StudyError
from studies.methods import changed, plan_of
from studies.plain_rounds import PlainRun, settle
from studies.settled import Settled
from studies.simulate import institution_data, institution_randomness, simulate, with_keys
from tests.studies.small_study import small_plan, study


def settled(plan: Plan, seed: int = 1) -> Settled:
    shards = {shard.name: shard for shard in study(seed).shards}
    data = {name: institution_data(shards[name], plan) for name in plan.roster}
    return settle(plan, data, lambda name: institution_randomness(seed, name))


def run_to_end(run: PlainRun) -> list[dict[str, Any]]:
    records = []
    while not run.ended:
        records.append(run.step())
    return records


def weights(run: PlainRun) -> dict[str, bytes]:
    return {name: bytes(run.content.open(c.weights).view()) for name, c in run.state.components.items()}


CASES: list[dict[str, Any]] = [
    {},
    {"server_optimiser": {"kind": "fedadam", "learning_rate": 0.1}},
    {"blending": {"kind": "local"}, "proximity": {"kind": "size"}, "preset": "custom"},
    {"secure_sum": {"half_words": True}},
]


@pytest.mark.parametrize("changes", CASES, ids=["default", "fedadam", "hgb", "half words"])
def test_the_model_and_the_figures_are_those_of_the_masked_run(changes: dict[str, Any]) -> None:
    plan, keys = with_keys(changed(small_plan(rounds=3), changes))
    masked = simulate(plan, study(), 1, identities=keys)
    start = settled(plan)
    run = PlainRun(plan, start.data, start.randomness)
    records = run_to_end(run)
    assert weights(run) == {name: vector.tobytes() for name, vector in masked.final.components.items()}
    for mine, theirs in zip(records, masked.records, strict=True):
        assert mine == {key: theirs[key] for key in mine}


def test_a_run_that_begins_from_a_settled_round_0_is_the_same() -> None:
    plan = small_plan(rounds=2)
    start = settled(plan)
    whole, later = PlainRun(plan, start.data, start.randomness), PlainRun(plan, start.data, start.randomness, start)
    assert run_to_end(whole)[1:] == run_to_end(later)
    assert weights(whole) == weights(later)


def test_other_methods_begin_from_it_too() -> None:
    plan = small_plan(rounds=2)
    start = settled(plan)
    other = plan_of("cm-fl", plan)
    whole, later = PlainRun(other, start.data, start.randomness), PlainRun(other, start.data, start.randomness, start)
    run_to_end(whole)
    run_to_end(later)
    assert weights(whole) == weights(later) != weights(PlainRun(plan, start.data, start.randomness, start))


REFUSED: list[dict[str, Any]] = [
    {"run": "another"},
    {"features": {"min_patients": 31}},
    {"training": {"validation_fraction": 0.4}},
    {"training": {"count_noise": 1.0}},
    {"model": {"heads": False}},
]


@pytest.mark.parametrize("changes", REFUSED, ids=["run", "floors", "validation", "noise", "cohorts"])
def test_a_plan_that_settles_otherwise_is_refused(changes: dict[str, Any]) -> None:
    plan = small_plan(rounds=2)
    start = settled(plan)
    with pytest.raises(StudyError):
        PlainRun(changed(plan, changes), start.data, start.randomness, start)


def test_a_run_without_gain_ends_early() -> None:
    plan = changed(small_plan(rounds=30), {"evaluation": {"patience": 1}, "training": {"learning_rate": 1e-9}})
    start = settled(plan)
    run = PlainRun(plan, start.data, start.randomness, start)
    assert len(run_to_end(run)) < 30
    assert run.state.selection.without_gain == 1
