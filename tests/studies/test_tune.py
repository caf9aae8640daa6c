"""Tuning: that it looks at validation patients of its own seeds only, and that the best is what is frozen."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from studies.cells import Cell, CellResult, changes_of
from studies.federation import StudyError
from studies.frozen import frozen_changes, to_toml
from studies.recipes import federation
from studies.run_cells import run_batch
from studies.store import key_of
from studies.tasks import STAGE_I_II
from studies.tune import Candidate, Search, figures_of, finalists, frozen_of, read_search, screen
from tests.studies.test_run_cells import CELL, SMALL, SOURCE

PLAIN = Candidate("plain", "cm-fl", {}, (0.001, 0.01), "cm-fl")
OURS = Candidate("long", "dgb+pcw", {"blending": {"horizon": 0}, "training": {"batch_size": 8}}, (0.001,), "dgb+pcw")
SEARCH = Search("nine", STAGE_I_II.name, 2, 101, 1, 2, 1, (PLAIN, OURS))
TOML = """
recipe = "nine"
task = "I against II"
rounds = 2
first_seed = 101
screened = 1
final = 2
finalists = 1
steps = [0.001, 0.01]

[[candidates]]
name = "plain"
method = "cm-fl"

[[candidates]]
name = "long"
method = "dgb+pcw"
steps = [0.001]
changes = { blending = { horizon = 0 }, training = { batch_size = 8 } }
"""


def result(auroc: float | None) -> CellResult:
    curve: list[Mapping[str, float | None]] = [{"auroc": 0.9, "balanced_accuracy": 0.9}] * 2
    curve[1] = {"auroc": auroc, "balanced_accuracy": 0.5}
    return CellResult(("p",), ("BRCA",), (0,), ((0.5, 0.5),), 2, tuple(curve))


def test_validation_patients_are_nobodys_training_or_test_patients() -> None:
    (tested, validated) = run_batch([CELL], SOURCE) + run_batch([replace(CELL, scored="validation")], SOURCE)
    made = federation("nine", None, STAGE_I_II, CELL.seed, CELL.fold, SMALL)
    everybody = {patient: shard.cohort for shard in made.shards for patient in shard.stages}
    assert validated.patients
    assert not set(validated.patients) & {p for test in made.test.values() for p in test.stages}
    assert not set(validated.patients) & set(tested.patients)
    assert [everybody[p] for p in validated.patients] == list(validated.cohorts)
    assert set(validated.cohorts) == {"BRCA", "LUSC", "LUAD"}
    # The same run, whoever it is scored on: the round is chosen by the institutions' own figures.
    assert (tested.losses, tested.exported) == (validated.losses, validated.exported)


def test_a_fifth_of_the_patients_validate() -> None:
    (found,) = run_batch([replace(CELL, scored="validation")], SOURCE)
    shards = federation("upper bound", None, STAGE_I_II, CELL.seed, CELL.fold, SMALL).shards
    assert len(found.patients) == pytest.approx(0.2 * sum(len(s.stages) for s in shards), rel=0.1)


def test_baselines_are_not_tuned() -> None:
    with pytest.raises(StudyError, match="validation"):
        run_batch([replace(CELL, method="constant", scored="validation")], SOURCE)


def test_cells_of_the_test_set_keep_their_keys() -> None:
    assert "scored" not in CELL.description("d")
    assert key_of(CELL.description("d")) != key_of(replace(CELL, scored="validation").description("d"))


def test_a_search_is_read(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    path.write_text(TOML)
    assert read_search(path) == SEARCH


@pytest.mark.parametrize("wrong", [("first_seed = 101", "first_seed = 100"), ("rounds", "turns"), ("[[", "[")])
def test_reported_seeds_and_damaged_searches_are_refused(tmp_path: Path, wrong: tuple[str, str]) -> None:
    path = tmp_path / "search.toml"
    path.write_text(TOML.replace(*wrong))
    with pytest.raises(StudyError):
        read_search(path)


def test_every_run_is_on_validation_patients_of_later_seeds() -> None:
    asked: list[Cell] = []

    def run(cells: Sequence[Cell]) -> Mapping[Cell, CellResult]:
        asked.extend(cells)
        return {cell: result(0.5) for cell in cells}

    screen(SEARCH, 2, [(PLAIN, 0.01), (OURS, 0.001)], run)
    assert {c.scored for c in asked} == {"validation"}
    assert {c.seed for c in asked} == {101, 102}
    assert len(asked) == 2 * 2 * 4
    changes = {"blending": {"horizon": 0}, "training": {"batch_size": 8, "learning_rate": 0.001}}
    assert {c.changes for c in asked if c.method == "dgb+pcw"} == {changes_of(**changes)}


def test_the_best_of_each_group_is_frozen(tmp_path: Path) -> None:
    aurocs = {0.001: 0.6, 0.01: 0.7}

    def run(cells: Sequence[Cell]) -> Mapping[Cell, CellResult]:
        of: dict[Cell, CellResult] = {}
        for cell in cells:
            step = (
                next(s for s in aurocs if changes_of(training={"learning_rate": s})[1:-1] in cell.changes)
                if cell.method == "cm-fl"
                else 0.001
            )
            of[cell] = result(aurocs[step])
        return of

    scores = screen(SEARCH, 1, [(c, step) for c in SEARCH.candidates for step in c.steps], run)
    assert [(s.candidate.name, s.step) for s in scores] == [("plain", 0.01), ("plain", 0.001), ("long", 0.001)]
    assert finalists(scores, 1) == [(PLAIN, 0.01), (OURS, 0.001)]
    path = tmp_path / "frozen.toml"
    path.write_text(to_toml(frozen_of(SEARCH, scores, "data")))
    written = tomllib.loads(path.read_text())
    assert written["chosen"]["seeds"] == [101, 102]
    assert written["cm-fl"]["auroc"] == 0.7
    assert frozen_changes("cm-fl", path) == {"training": {"learning_rate": 0.01}}
    assert frozen_changes("dgb+pcw", path) == OURS.with_step(0.001)
    with pytest.raises(StudyError, match="hgb"):
        frozen_changes("hgb", path)


def test_what_was_cut_off_is_not_scored() -> None:
    def run(cells: Sequence[Cell]) -> Mapping[Cell, CellResult]:
        return {cell: result(0.5) for cell in cells[:-1]}

    scores = screen(SEARCH, 1, [(PLAIN, 0.01), (OURS, 0.001)], run)
    assert [s.candidate.name for s in scores] == ["plain"]


def test_figures_are_of_the_exported_round() -> None:
    assert figures_of(result(0.6)) == (0.6, 0.5)
    with pytest.raises(StudyError, match="one class"):
        figures_of(result(None))


@pytest.mark.parametrize("value", [1, 0.5, True, 'a "quoted" word, κ', [1, [2.5]], {"a": {"b.c": [{"d": "e"}]}}, {}])
def test_tables_read_back(value: Any) -> None:
    assert tomllib.loads(to_toml({"dgb+pcw": {"κ v": value}})) == {"dgb+pcw": {"κ v": value}}
