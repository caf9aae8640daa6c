"""Cells: what is kept of a run, that it is run once, and that a study goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.plan_check import find_problems
from security.errors import ConsiliumError
from studies.catalogue import STUDIES
from studies.cells import Cell, CellResult, changes_of
from studies.comparison import run_method
from studies.federation import StudyError
from studies.recipes import RECIPES, federation, fingerprint, institutions
from studies.run_cells import Source, run_batch, run_cells
from studies.store import ResultStore, StoredResultError, key_of
from studies.synthetic import Shape
from studies.tasks import DIGITS, STAGE_I_II, TOPICS, Task

SMALL = Shape(
    stages=(("BRCA", (70, 220, 40, 0)), ("LUSC", (100, 80, 40, 0)), ("LUAD", (90, 70, 40, 0))),
    genes=16,
    image_features=12,
    signal=1.0,
)
ROOMY = Shape(genes=16, image_features=12)
"""As many patients as TCGA has: 36 hospitals need them."""
SOURCE = Source(None, SMALL)
DATA = fingerprint(None, SMALL)
QUICK = changes_of(training={"local_steps": 2}, evaluation={"bins": 10})
CELL = Cell("nine", STAGE_I_II.name, "dgb+pcw", 1, 0, 2, QUICK)


def test_a_cell_is_the_run_of_its_plan() -> None:
    made = federation("nine", None, STAGE_I_II, 1, 0, SMALL)
    outcome = run_method("dgb+pcw", made, CELL.plan(made), 1)
    (result,) = run_batch([CELL], SOURCE)
    assert outcome.probabilities is not None
    np.testing.assert_allclose(result.predictions.probabilities, outcome.probabilities, atol=2e-5)
    assert result.exported == outcome.exported_round
    assert [r["auroc"] for r in result.curve] == pytest.approx([s["all"].auroc for _, s in outcome.curve], abs=1e-4)
    assert len(result.losses) == 2
    assert set(result.losses[0]) == {"mrna", "image", "clinical", "mrna+image+clinical"}


def test_methods_of_one_split_differ_and_are_scored_on_the_same_patients() -> None:
    cells = [CELL, replace(CELL, method="cm-fl"), replace(CELL, method="pooled"), replace(CELL, method="alone/brca-3")]
    found = [run_batch([cell], SOURCE)[0] for cell in cells]
    assert len({r.patients for r in found}) == 1
    assert len({r.probabilities for r in found}) == 4


def test_a_federated_result_tells_what_was_sent() -> None:
    (result,) = run_batch([CELL], SOURCE)
    made = federation("nine", None, STAGE_I_II, 1, 0, SMALL)
    assert 0 < result.uploaded < 2 * len(made.shards) * 4 * 20_000
    assert result.uploaded % 4 == 0


PRIVATE = {"enabled": True, "epsilon": 50.0, "noise_multiplier": 2.0, "feature_noise": 0.5, "statistics_noise": 8.0}


def test_a_private_cell_is_noised_from_round_0_on_and_repeats_itself() -> None:
    training = {"local_steps": 2, "class_weights": "none"}
    private = replace(CELL, changes=changes_of(training=training, differential_privacy=PRIVATE))
    plain = replace(CELL, changes=changes_of(training=training))
    one, again = (run_batch([private], Source(None, ROOMY))[0] for _ in range(2))
    (other,) = run_batch([plain], Source(None, ROOMY))
    assert one == again
    assert one.probabilities != other.probabilities
    assert len(one.curve) == 2  # rounds of training; round 0 has none


def test_a_private_cell_stops_at_its_epsilon() -> None:
    short = replace(CELL, changes=changes_of(differential_privacy={**PRIVATE, "epsilon": 0.5}))
    with pytest.raises(ConsiliumError, match="epsilon"):
        run_batch([short], Source(None, ROOMY))


def test_what_the_store_has_is_not_run_again(tmp_path: Path) -> None:
    store, told = ResultStore(tmp_path), list[str]()
    cells = [CELL, replace(CELL, method="constant"), CELL]

    def progress(done: int, all_: int, cell: Cell) -> None:
        told.append(f"{done}/{all_} {cell.method}")

    first = run_cells(cells, SOURCE, DATA, store, 1, progress)
    assert sorted(told) == ["1/2 dgb+pcw", "2/2 constant"]
    assert list(first) == cells[:2]
    again = run_cells([*cells, replace(CELL, method="cohort-only")], SOURCE, DATA, store, 1, progress)
    assert {cell: again[cell] for cell in first} == first
    assert told[2:] == ["1/1 cohort-only"]


def test_a_cell_of_other_patients_or_changes_is_another_one() -> None:
    keys = {
        key_of(cell.description(data))
        for cell in (CELL, replace(CELL, fold=1), replace(CELL, changes=changes_of(rounds=2)))
        for data in ("a", "b")
    }
    assert len(keys) == 6


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    (result,) = run_batch([CELL], SOURCE)
    store.put(CELL.description(DATA), result.to_json())
    kept = store.get(CELL.description(DATA))
    assert kept is not None
    assert CellResult.from_json(kept) == result
    assert store.get(replace(CELL, seed=2).description(DATA)) is None


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.put({"a": 1}, {"b": 2})
    (path,) = tmp_path.rglob("*.json")
    path.write_text(json.dumps({"other": 1}))
    with pytest.raises(StoredResultError, match="Delete the file"):
        store.get({"a": 1})


def test_a_federation_that_nobody_knows_is_refused() -> None:
    with pytest.raises(StudyError, match="bi-modal"):
        federation("ten", None, STAGE_I_II, 1, 0, SMALL)


def _task_of(recipe: str) -> Task:
    return {"digits": DIGITS, "articles": TOPICS}.get(recipe, STAGE_I_II)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_federation_can_be_planned(recipe: str) -> None:
    made = federation(recipe, None, _task_of(recipe), 1, 0, ROOMY)
    assert tuple(shard.name for shard in made.shards) == institutions(recipe)
    plan = replace(CELL, recipe=recipe, task=_task_of(recipe).name).plan(made)
    assert {m for shard in made.shards for m in shard.modalities} == set(plan.modality_order)


def test_every_plan_of_every_study_may_run() -> None:
    for study in STUDIES.values():
        for variant in study.variants:
            cell = study.of(variant, 1, 0)[0]
            plan = cell.plan(federation(cell.recipe, None, study.task, 1, 0, ROOMY))
            assert find_problems(plan) == (), f"{study.name}: {variant.name}"
