"""METHOD.md's set-up, on generated tables always, and on the real ones by the same tests where they are present."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.features import (
    FeatureCounts,
    FeatureHolders,
    FeatureMeans,
    FeatureSchema,
    counts_vector,
    holders_vector,
    means_vector,
    squares_vector,
)
from federation.plan import Institution, Plan
from federation.plan_check import find_problems
from federation.tables import RawTable
from institution_node.data import load_institution_data
from studies.cohorts import Cohort, StudyDataError, find_data, known_cohorts, load_cohorts, write_cohorts
from studies.ranges import common_columns
from studies.synthetic import Shape, synthetic
from studies.tasks import TASKS, Task
from studies.tcga import (
    COHORTS,
    FOLDS,
    Federation,
    federate,
    nine_institutions,
    plan_modalities,
    write_shards,
)
from tests.plans import example_institutions, example_plan

STAGED = {name: task for name, task in TASKS.items() if task.staged}
SMALL = Shape(
    stages=(("BRCA", (40, 120, 20, 3)), ("LUSC", (60, 40, 30, 6)), ("LUAD", (60, 45, 30, 6))),
    genes=30,
    image_features=12,
)
REAL = find_data()


@pytest.fixture(scope="module", params=["generated", *(["tcga"] if REAL else [])])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tcga":
        assert REAL is not None
        return REAL
    folder = tmp_path_factory.mktemp("generated")
    write_cohorts(synthetic(0, SMALL), folder)
    return folder


@pytest.fixture(scope="module")
def cohorts(root: Path) -> dict[str, Cohort]:
    return load_cohorts(root, COHORTS)


@pytest.fixture(scope="module")
def nine(root: Path) -> Federation:
    return nine_institutions(root, seed=1)


def plan_of(federation: Federation) -> Plan:
    keys = [each.key for each in example_institutions(len(federation.shards))]
    roster = [
        Institution(name=shard.name, key=key, modalities=shard.modalities)
        for shard, key in zip(federation.shards, keys, strict=True)
    ]
    changes = {"modalities": plan_modalities(federation), "institutions": tuple(roster), "label": federation.task.label}
    return example_plan().model_copy(update=changes)


def test_the_table_of_the_method(nine: Federation) -> None:
    assert {shard.name: "+".join(shard.modalities) for shard in nine.shards} == {
        "brca-1": "mrna+image+clinical", "brca-2": "mrna+image", "brca-3": "mrna",
        "lusc-1": "mrna+image+clinical", "lusc-2": "image+clinical", "lusc-3": "image",
        "luad-1": "mrna+image+clinical", "luad-2": "mrna+clinical", "luad-3": "clinical",
    }  # fmt: skip
    assert nine.data == "real"


def test_every_patient_is_in_one_place_and_the_test_set_at_no_institution(
    nine: Federation, cohorts: dict[str, Cohort]
) -> None:
    places = [set(shard.stages) for shard in nine.shards] + [set(test.stages) for test in nine.test.values()]
    assert sum(map(len, places)) == len(set().union(*places))
    for name, cohort in cohorts.items():
        held = [shard for shard in nine.shards if shard.cohort == name]
        counts = Counter(cohort.stages.values())
        wanted = {1: counts[1], 2: round(counts[2] / 3) if name == "BRCA" else counts[2]}
        tested = Counter(nine.test[name].stages.values())
        for stage in (1, 2):
            assert tested[stage] == round(0.2 * wanted[stage])
            for shard in held:
                # A third of the other 80 %, less those without the institution's modalities.
                dealt = (wanted[stage] - tested[stage]) / 3
                assert 0.3 * dealt <= Counter(shard.stages.values())[stage] <= dealt + 1
        for stages in (*(shard.stages for shard in held), nine.test[name].stages):
            assert all(cohort.stages[patient] == stage for patient, stage in stages.items())


def test_patients_have_all_of_their_institutions_modalities(nine: Federation) -> None:
    for shard in nine.shards:
        for table in shard.tables.values():
            assert table.ids == tuple(shard.stages)
    for test in nine.test.values():
        assert set(test.complete) <= set(test.stages)
        assert test.complete
        for table in test.tables.values():
            assert set(test.complete) <= set(table.ids) <= set(test.stages)


def test_shards_read_back_as_they_were(nine: Federation, tmp_path: Path) -> None:
    plan = plan_of(nine)
    assert find_problems(plan) == ()
    folders = write_shards(nine, tmp_path)
    assert sorted(folders) == sorted(shard.name for shard in nine.shards)
    assert (tmp_path / "data.txt").read_text() == "real\n"
    for shard in nine.shards[:2]:
        folder = folders[shard.name]
        assert {path.name for path in folder.iterdir()} == {"labels.csv", *(f"{m}.parquet" for m in shard.modalities)}
        files = {m: folder / f"{m}.parquet" for m in shard.modalities}
        data = load_institution_data(plan, shard.name, files, folder / "labels.csv", "case_id")
        assert data.ids == tuple(shard.stages)
        assert (data.labels + 1).tolist() == list(shard.stages.values())
        for modality, table in shard.tables.items():
            for column, values in table.numeric.items():
                np.testing.assert_array_equal(data.tables[modality].numeric[column], values.astype(np.float32))
            assert dict(data.tables[modality].categorical) == dict(table.categorical)
    for cohort in nine.test:
        assert (tmp_path / "test" / cohort / "labels.csv").is_file()


def test_the_schema_of_the_shards(nine: Federation) -> None:
    """Counts, means and squares over the nine give inputs that are finite and standardised over all of them."""
    plan = plan_of(nine)
    held = {m.name: [s.tables[m.name] for s in nine.shards if m.name in s.tables] for m in plan.modalities}
    holders = FeatureHolders.from_sums(
        plan, {m: np.sum([holders_vector(plan, m, t) for t in tables], axis=0) for m, tables in held.items()}
    )
    counted = {m: np.sum([counts_vector(plan, holders, m, t) for t in tables], axis=0) for m, tables in held.items()}
    counts = FeatureCounts.from_sums(plan, holders, counted)
    sums = {m: np.sum([means_vector(plan, counts, m, t) for t in tables], axis=0) for m, tables in held.items()}
    means = FeatureMeans.from_sums(plan, counts, sums)
    squares = {
        m: np.sum([squares_vector(plan, counts, means, m, t) for t in tables], axis=0) for m, tables in held.items()
    }
    schema = FeatureSchema.build(plan, counts, means, squares)
    assert FeatureSchema.from_bytes(schema.to_bytes()) == schema
    for modality, tables in held.items():
        x = np.concatenate([schema.transform(modality, table) for table in tables])
        assert np.all(np.isfinite(x))
        # Not the inputs derived from a column: `age=missing`, `sex=MALE`.
        z = x[:, [k for k, label in enumerate(schema.labels(modality)) if "=" not in label]]
        assert np.all(np.abs(z.mean(axis=0)) < 0.2)  # values held at ±10 and missing ones move it a little
        assert np.median(z.std(axis=0)) == pytest.approx(1.0, abs=0.05)
    for test in nine.test.values():
        for modality, table in test.tables.items():
            assert np.all(np.isfinite(schema.transform(modality, table)))


def test_the_seed_moves_patients_and_nothing_else(cohorts: dict[str, Cohort], nine: Federation) -> None:
    again, other = federate(cohorts, "real", 1), federate(cohorts, "real", 2)
    assert [shard.stages for shard in again.shards] == [shard.stages for shard in nine.shards]
    assert [shard.stages for shard in other.shards] != [shard.stages for shard in nine.shards]
    assert other.columns == nine.columns


def test_without_data_everything_is_called_synthetic(tmp_path: Path) -> None:
    made = nine_institutions(None, seed=3, shape=SMALL)
    assert made.data == "synthetic"
    assert len(made.shards) == 9
    write_shards(made, tmp_path)
    assert (tmp_path / "data.txt").read_text() == "synthetic\n"
    assert all(patient.startswith("SYN-") for shard in made.shards for patient in shard.stages)


def test_the_stage_is_planted_in_every_generated_modality() -> None:
    shape = replace(SMALL, stages=(("BRCA", (400, 400, 0, 0)),), signal=0.3)
    cohort = synthetic(0, shape)["BRCA"]
    for modality, column in (("mrna", "GENE00000"), ("image", "count_000"), ("clinical", "num_age")):
        table = cohort.tables[modality]
        late = np.array([cohort.stages[patient] == 2 for patient in table.ids])
        values = table.numeric[column]
        assert np.nanmean(values[late]) > np.nanmean(values[~late])


def test_other_cohorts_take_the_three_kinds_in_turn() -> None:
    """LIHC has no slides and KIRC others: what their institutions cannot have, they go without."""
    names = ("KIRP", "BRCA", "LIHC", "KIRC")
    made = synthetic(0, replace(SMALL, stages=tuple((name, (60, 60, 0, 0)) for name in names)))
    liver = {m: t for m, t in made["LIHC"].tables.items() if m != "image"}
    kidney = made["KIRC"].tables
    others = RawTable(kidney["image"].ids, {f"nuc_{k}": v for k, v in kidney["image"].numeric.items()}, {})
    cohorts = {
        **made,
        "LIHC": replace(made["LIHC"], tables=liver),
        "KIRC": replace(made["KIRC"], tables={**kidney, "image": others}),
    }
    dealt = federate(cohorts, "synthetic", 0)
    assert {shard.name: "+".join(shard.modalities) for shard in dealt.shards} == {
        "kirp-1": "mrna+image+clinical", "kirp-2": "mrna+image", "kirp-3": "mrna",
        "brca-1": "mrna+image+clinical", "brca-2": "image+clinical", "brca-3": "image",
        "lihc-1": "mrna+clinical", "lihc-2": "mrna+clinical", "lihc-3": "clinical",
        "kirc-1": "mrna+clinical", "kirc-2": "mrna", "kirc-3": "mrna",
    }  # fmt: skip
    # Whoever has all that the cohort has is scored, by what they have.
    test = dealt.test["LIHC"]
    assert set(test.complete) == set(test.tables["mrna"].ids) & set(test.tables["clinical"].ids) != set()


def test_common_columns_have_rounded_ranges() -> None:
    """z-scores, years, a lone -1, a heavy tail, and columns that are not in common."""
    rng = np.random.default_rng(0)

    def table(name: str) -> RawTable:
        ids = tuple(str(i) for i in range(100))
        numeric = {
            "z": np.clip(rng.standard_normal(100), -3, 3),
            "year": np.linspace(1992.0, 2013.0, 100),
            "region": np.where(np.arange(100) == 5, -1.0, np.linspace(0.2, 0.31, 100)),
            "cells": np.geomspace(10, 76543, 100),
            name: np.zeros(100),
            "gone": np.full(100, np.nan),
        }
        return RawTable(ids, numeric, {"sex": ("M",) * 90 + ("F",) * 9 + (None,), "only " + name: ("x",) * 100})

    columns = {c.name: c for c in common_columns([table("a"), table("b")])}
    assert {name: (c.low, c.high, c.transform) for name, c in columns.items() if c.kind == "numeric"} == {
        "z": (-10.0, 10.0, "none"),
        "year": (1990.0, 2020.0, "none"),
        "region": (0.0, 0.4, "none"),
        "cells": (0.0, 80000.0, "log1p"),
    }
    assert columns["sex"].categories == ("M",)
    assert len(columns) == 5


def test_the_data_folder_is_named_or_beside_and_never_silently_missed(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    beside = tmp_path / "shared" / "tcga"
    named = tmp_path / "named"
    for folder in (repository, beside, named):
        folder.mkdir(parents=True)
    assert find_data({}, repository) is None
    (beside / "labels.csv").write_text("case_id,cohort,stage\n")
    assert find_data({}, repository) == repository / ".." / "shared" / "tcga"
    with pytest.raises(StudyDataError, match="CONSILIUM_DATA"):
        find_data({"CONSILIUM_DATA": str(named)}, repository)
    (named / "labels.csv").write_text("case_id,cohort,stage\n")
    assert find_data({"CONSILIUM_DATA": str(named)}, repository) == named


def test_unusable_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(StudyDataError, match="no labels"):
        load_cohorts(tmp_path, ["BRCA"])
    (tmp_path / "labels.csv").write_text("case_id,cohort\na,BRCA\n")
    with pytest.raises(StudyDataError, match="no column 'stage'"):
        load_cohorts(tmp_path, ["BRCA"])
    (tmp_path / "labels.csv").write_text("case_id,cohort,stage\na,BRCA,1\na,BRCA,2\n")
    with pytest.raises(StudyDataError, match="twice"):
        load_cohorts(tmp_path, ["BRCA"])
    with pytest.raises(StudyDataError, match="Choose from: BRCA"):
        load_cohorts(tmp_path, ["LUAD"])
    assert known_cohorts(tmp_path) == ("BRCA",)
    with pytest.raises(StudyDataError, match="no table"):
        federate({"BRCA": Cohort("BRCA", {"a": 1}, {})}, "real", 0)
    few = synthetic(0, replace(SMALL, stages=(("BRCA", (30, 0, 0, 0)),)))
    with pytest.raises(StudyDataError, match="brca-1 would have"):
        federate(few, "real", 0)


@pytest.mark.parametrize("task", STAGED.values(), ids=STAGED)
def test_folds_of_a_seed_test_other_patients_and_train_on_the_rest(cohorts: dict[str, Cohort], task: Task) -> None:
    folds = [federate(cohorts, "synthetic", 3, task=task, fold=fold) for fold in range(FOLDS)]
    for name, cohort in cohorts.items():
        tested = [set(f.test[name].stages) for f in folds]
        assert sum(map(len, tested)) == len(set().union(*tested))
        wanted = {stage for stages in task.classes.values() for stage in stages}
        for fold, own in zip(folds, tested, strict=True):
            dealt = [set(s.stages) for s in fold.shards if s.cohort == name]
            assert not own & set().union(*dealt)
            assert {cohort.stages[p] for p in own.union(*dealt)} <= wanted
            for classes in (own, *dealt):  # every class everywhere
                assert all({cohort.stages[p] for p in classes} & set(stages) for stages in task.classes.values())


def test_the_first_fold_is_what_no_fold_was(cohorts: dict[str, Cohort]) -> None:
    one, two = federate(cohorts, "synthetic", 3), federate(cohorts, "synthetic", 3, fold=0)
    assert [s.stages for s in one.shards] == [s.stages for s in two.shards]
    with pytest.raises(StudyDataError, match="fold"):
        federate(cohorts, "synthetic", 3, fold=FOLDS)


@pytest.mark.parametrize("task", STAGED.values(), ids=STAGED)
def test_a_task_reads_every_stage_of_its_classes_and_no_other(task: Task) -> None:
    values = {value: each.name for each in task.label.classes for value in each.values}
    for name, stages in task.classes.items():
        for stage, word in zip((1, 2, 3, 4), ("I", "II", "III", "IV"), strict=True):
            for value in (str(stage), word, f"{word}A"):
                assert (values.get(value) == name) == (stage in stages)
