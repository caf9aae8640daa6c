"""Other ways to deal: nobody is in two places, test patients stay out, sites stay whole, and skew skews."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from studies.cells import Cell
from studies.cohorts import StudyDataError
from studies.other_data import CLASSES, FOLDER, generated_views, load_views
from studies.plain_rounds import PlainRun, settle
from studies.recipes import FOUR_MODALITIES, KIDNEY_IMAGES, NINE, federation, institutions
from studies.run_cells import Source, run_batch
from studies.scoring import TestPatients
from studies.simulate import institution_data, institution_randomness
from studies.synthetic import Shape, stand_in_sites, stand_ins, synthetic
from studies.tasks import DIGITS, EARLY_LATE, STAGE_I_II
from studies.tcga import Federation

SHAPE = Shape(genes=8, image_features=6)


def made(recipe: str, seed: int = 1, fold: int = 0) -> Federation:
    return federation(recipe, None, STAGE_I_II, seed, fold, SHAPE)


def everybody(of: Federation) -> list[str]:
    return [p for shard in of.shards for p in shard.stages]


@pytest.mark.parametrize("recipe", ["mixed", "skewed", "18 sites", "36 sites"])
@pytest.mark.parametrize("fold", [0, 3])
def test_every_patient_is_in_one_place(recipe: str, fold: int) -> None:
    of = made(recipe, fold=fold)
    dealt = everybody(of)
    assert len(set(dealt)) == len(dealt)
    assert not set(dealt) & {p for test in of.test.values() for p in test.stages}
    assert tuple(s.name for s in of.shards) == institutions(recipe)


def test_mixed_and_skewed_are_tested_on_the_patients_of_the_nine() -> None:
    of = made("nine")
    for recipe in ("mixed", "skewed"):
        other = made(recipe)
        assert {n: t.complete for n, t in other.test.items()} == {n: t.complete for n, t in of.test.items()}
        assert [s.modalities for s in other.shards] == list(NINE)


def share_of_second_class(of: Federation) -> list[float]:
    return [float(np.mean([stage == 2 for stage in shard.stages.values()])) for shard in of.shards]


def test_skew_is_in_the_classes_and_mixing_leaves_none() -> None:
    skewed = np.std([share_of_second_class(made("skewed", seed)) for seed in range(4)])
    mixed = np.std([share_of_second_class(made("mixed", seed)) for seed in range(4)])
    assert skewed > 3 * mixed


@pytest.mark.parametrize("recipe", ["18 sites", "36 sites"])
def test_a_site_is_whole_at_one_institution_or_in_the_test_set(recipe: str) -> None:
    of = made(recipe)
    site = {p: f"{c.name}/{s}" for c in synthetic(1, SHAPE).values() for p, s in stand_in_sites(c).items()}
    places: dict[str, set[str]] = {}
    for shard in of.shards:
        for patient in shard.stages:
            places.setdefault(site[patient], set()).add(shard.name)
    for test in of.test.values():
        for patient in test.stages:
            places.setdefault(site[patient], set()).add("test")
    assert all(len(where) == 1 for where in places.values())
    tested = sum(len(t.stages) for t in of.test.values())
    assert 0.1 < tested / (tested + len(everybody(of))) < 0.35
    combinations = [s.modalities for s in of.shards]
    assert {combinations.count(held) / NINE.count(held) for held in set(NINE)} == {len(combinations) / 9}


def test_kidneys_have_images_of_their_own_and_are_staged_by_what_they_have() -> None:
    of = federation("kidney with images", None, EARLY_LATE, 1, 0, SHAPE)
    assert set(KIDNEY_IMAGES) < set(of.columns)
    for name, test in of.test.items():
        assert f"image_{name.lower()}" in test.tables
        assert len(test.tables) == 3
        assert test.complete


def test_patients_without_images_are_scored_by_their_heads() -> None:
    cell = Cell("with liver", STAGE_I_II.name, "cm-fl", 1, 0, 1, '{"training": {"local_steps": 1}}')
    (result,) = run_batch([cell], Source(None, SHAPE))
    assert {"BRCA", "LUSC", "LUAD", "LIHC"} == set(result.cohorts)
    of = federation("with liver", None, STAGE_I_II, 1, 0, SHAPE)
    test = TestPatients.of(of, cell.plan(of))
    assert len(test.tables["image"]) < len(test.tables["mrna"]) == len(test.ids)


def test_the_fourth_modality_is_summed_like_the_others() -> None:
    of = made("four modalities")
    plan = Cell("four modalities", STAGE_I_II.name, "cm-fl", 1, 0, 1).plan(of)
    data = {s.name: institution_data(s, plan) for s in of.shards}
    start = settle(plan, data, lambda name: institution_randomness(1, name))
    run = PlainRun(plan, data, start.randomness, start)
    assert {f"encoder/{m}" for m in FOUR_MODALITIES[0][0]} < set(run.state.components)


def test_stand_ins_have_other_names_and_the_modalities_that_are_asked_for() -> None:
    found = stand_ins(1, SHAPE, ("KIRC", "KIRP"), ("mrna", "image_kirc", "image_kirp", "cnv_mut"))
    assert set(found["KIRC"].tables) == {"mrna", "image_kirc", "cnv_mut"}
    assert set(found["KIRP"].tables) == {"mrna", "image_kirp", "cnv_mut"}
    assert not set(found["KIRC"].stages) & set(found["KIRP"].stages)


def test_views_are_read_as_a_cohort(tmp_path: Path) -> None:
    with pytest.raises(StudyDataError, match="uci_mfeat"):
        load_views(tmp_path, "DIGITS")
    (tmp_path / FOLDER).mkdir()
    generated = generated_views("DIGITS", 1, patients=40)["DIGITS"]
    arrays = {m: np.stack(list(t.numeric.values()), axis=1) for m, t in generated.tables.items()}
    labels = np.array(list(generated.stages.values())) + 1
    np.savez(tmp_path / FOLDER / "uci_mfeat.npz", allow_pickle=False, y=labels, **arrays)
    read = load_views(tmp_path, "DIGITS")["DIGITS"]
    assert read.stages == generated.stages
    assert set(read.stages.values()) == set(range(CLASSES))
    assert [each.name for each in DIGITS.label.classes][3] == "digit 3"
    assert DIGITS.label.classes[3].values == ("3",)


def test_too_few_patients_for_so_many_hospitals_is_said() -> None:
    few = replace(SHAPE, stages=(("BRCA", (20, 30, 0, 0)), ("LUSC", (20, 20, 0, 0)), ("LUAD", (20, 20, 0, 0))))
    with pytest.raises(StudyDataError, match="fewer institutions"):
        federation("36 sites", None, STAGE_I_II, 1, 0, few)
