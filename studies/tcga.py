"""METHOD.md's set-up: three institutions per cohort, with three, two and one modalities, stage I against stage II.

LUAD stands in LIHC's place, so that the image is the same thing everywhere. With other cohorts each gets the three
kinds of institution in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from federation.plan import Column, Modality
from federation.tables import RawTable
from studies.cohorts import (
    ID_COLUMN,
    Cohort,
    StudyDataError,
    find_data,
    known_cohorts,
    load_cohorts,
    write_table,
)
from studies.ranges import common_columns
from studies.synthetic import TCGA_SHAPE, Shape, synthetic
from studies.tasks import STAGE_I_II, Task

__all__ = [
    "COHORTS", "KINDS", "Shard", "Federation", "TestSet", "find_data", "load_cohorts", "synthetic", "nine_institutions",
    "federate", "plan_modalities", "write_shards",
]  # fmt: skip

COHORTS: Final = ("BRCA", "LUSC", "LUAD")
KINDS: Final = (
    (("mrna", "image", "clinical"), ("mrna", "image"), ("mrna",)),
    (("mrna", "image", "clinical"), ("image", "clinical"), ("image",)),
    (("mrna", "image", "clinical"), ("mrna", "clinical"), ("clinical",)),
)
"""Modalities of a cohort's three institutions; cohorts take these rows in turn."""

TEST_PART: Final = 0.2
FOLDS: Final = 4
"""Disjoint test sets of one seed (METHOD.md, "Four folds"); what would be a fifth is never a test set."""


@dataclass(frozen=True)
class Shard:
    """What one institution holds.

    Attributes:
        name: `brca-1`.
        cohort: `BRCA`.
        tables: its modalities, in order, to tables of exactly its patients, in order of identifier; where there are
            `combinations`, of those who have the modality.
        stages: patient to stage, 1 to 4.
        people: columns that a plan may count subgroups by; None: there are none.
        combinations: that its patients come in, where they lack modalities one by one; empty: all have all.
    """

    name: str
    cohort: str
    tables: Mapping[str, RawTable]
    stages: Mapping[str, int]
    people: RawTable | None = None
    combinations: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Its modalities, in order."""
        return tuple(self.tables)


@dataclass(frozen=True)
class TestSet:
    """A cohort's test patients, who are at no institution, each with the modalities they have.

    Attributes:
        stages: patient to stage, 1 to 4.
        tables: modality to the table of those who have it.
        complete: those who have every modality that their cohort has: who results are scored on.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    stages: Mapping[str, int]
    tables: Mapping[str, RawTable]
    complete: tuple[str, ...]


@dataclass(frozen=True)
class Federation:
    """Institutions with their patients, and the test set.

    Attributes:
        data: "real" or "synthetic", as in a plan; every screen and file shows it.
        shards: the institutions, cohort by cohort.
        test: cohort to its test set.
        columns: modality, in order, to the plan's columns of it.
        task: what is told apart.
    """

    data: Literal["real", "synthetic"]
    shards: tuple[Shard, ...]
    test: Mapping[str, TestSet]
    columns: Mapping[str, tuple[Column, ...]]
    task: Task = STAGE_I_II


def nine_institutions(
    root: Path | None, cohorts: Sequence[str] | None = None, *, seed: int, shape: Shape = TCGA_SHAPE
) -> Federation:
    """The federation of METHOD.md.

    Args:
        root: the data folder (`find_data`); None: generated cohorts of the same shape, drawn from `seed`.
        cohorts: which cohorts of the folder, in order; None: BRCA, LUSC and LUAD where all are there, else every one.
        seed: draws BRCA's thinning, the test set and the shards; not the plan's seed.
        shape: of the generated cohorts.

    Raises:
        StudyDataError: the folder or a cohort in it cannot be used.
    """
    if root is None:
        return federate(synthetic(seed, shape), "synthetic", seed)
    if cohorts is None:
        present = known_cohorts(root)
        cohorts = COHORTS if set(COHORTS) <= set(present) else present
    return federate(load_cohorts(root, cohorts), "real", seed)


def federate(
    cohorts: Mapping[str, Cohort],
    data: Literal["real", "synthetic"],
    seed: int,
    kinds: Sequence[Sequence[tuple[str, ...]]] = KINDS,
    task: Task = STAGE_I_II,
    fold: int = 0,
) -> Federation:
    """Deals cohorts to institutions: a stratified fifth to the test set, a stratified third of the rest to each.

    A cohort without a modality that an institution should have (or whose columns of it are others than the cohorts'
    before it) gives an institution of those that it has; of all that it has, if none is left.

    Args:
        cohorts: name to cohort, in order.
        data: what the federation is to say of itself.
        seed: draws thinning, test set and shards, each cohort by its own stream.
        kinds: rows of combinations that the cohorts take in turn; a row has one entry per institution.
        task: what is told apart; patients of other stages are left out.
        fold: which fifth is the test set, below `FOLDS`; folds of one seed have no test patient in common.

    Raises:
        StudyDataError: an institution would have no patient or one class, or no modality is in common.
    """
    columns = common_modalities(cohorts)
    shards: list[Shard] = []
    test: dict[str, TestSet] = {}
    for k, cohort in enumerate(cohorts.values()):
        tables = narrowed_tables(cohort, columns)
        rng = np.random.default_rng([seed, *cohort.name.encode()])
        row = kinds[k % len(kinds)]
        held_out, *parts = deal_cohort(cohort, len(row), rng, task, fold)
        test[cohort.name] = test_set(cohort, held_out, tables)
        for i, (part, wanted) in enumerate(zip(parts, row, strict=True)):
            kept = tuple(m for m in tables if m in wanted) or tuple(tables)
            shards.append(shard_of(f"{cohort.name.lower()}-{i + 1}", cohort, part, {m: tables[m] for m in kept}, task))
    return Federation(data, tuple(shards), test, columns, task)


def plan_modalities(federation: Federation, hidden: tuple[int, ...] = (64,)) -> tuple[Modality, ...]:
    """The plan's modalities: the columns in common, with their ranges, and one shape of encoder for all."""
    return tuple(Modality(name=name, columns=columns, hidden=hidden) for name, columns in federation.columns.items())


def write_shards(federation: Federation, out: Path) -> dict[str, Path]:
    """Writes each institution's folder and the test set.

    Institutions get `institutions/NAME/` with `labels.csv` and `MODALITY.parquet` of their own modalities only; the
    test set gets `test/COHORT/` laid out alike. `data.txt` says "real" or "synthetic".

    Returns:
        Institution to its folder.
    """
    folders: dict[str, Path] = {}
    for shard in federation.shards:
        folders[shard.name] = out / "institutions" / shard.name
        _write_folder(folders[shard.name], shard.tables, shard.stages)
    for cohort, test in federation.test.items():
        _write_folder(out / "test" / cohort, test.tables, test.stages)
    (out / "data.txt").write_text(federation.data + "\n", encoding="utf-8")
    return folders


def _write_folder(folder: Path, tables: Mapping[str, RawTable], stages: Mapping[str, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for modality, table in tables.items():
        write_table(table, folder / f"{modality}.parquet")
    lines = [f"{ID_COLUMN},stage", *(f"{patient},{stage}" for patient, stage in stages.items())]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def common_modalities(cohorts: Mapping[str, Cohort]) -> dict[str, tuple[Column, ...]]:
    """Modality, in the cohorts' order, to the columns in common of those that have it.

    Raises:
        StudyDataError: no cohort has a table.
    """
    order = dict.fromkeys(m for cohort in cohorts.values() for m in cohort.tables)
    columns = {m: c for m in order if (c := _columns(cohorts, m))}
    if not columns:
        raise StudyDataError("the cohorts have no table.", remedy="Lay the folder out as studies/cohorts.py says.")
    return columns


def narrowed_tables(cohort: Cohort, columns: Mapping[str, tuple[Column, ...]]) -> dict[str, RawTable]:
    """Modality to a cohort's table with exactly these columns, of the modalities that it has."""
    return {m: _narrow(cohort.tables[m], columns[m]) for m in columns if _has(cohort, m, columns[m])}


def _columns(cohorts: Mapping[str, Cohort], modality: str) -> tuple[Column, ...]:
    """Columns in common of the cohorts that share any with those before them."""
    tables: list[RawTable] = []
    columns: tuple[Column, ...] = ()
    for cohort in cohorts.values():
        if modality in cohort.tables:
            common = common_columns([*tables, cohort.tables[modality]])
            if common:
                tables.append(cohort.tables[modality])
                columns = common
    return columns


def _has(cohort: Cohort, modality: str, columns: Sequence[Column]) -> bool:
    table = cohort.tables.get(modality)
    return table is not None and all(c.name in table.numeric or c.name in table.categorical for c in columns)


def _narrow(table: RawTable, columns: Sequence[Column]) -> RawTable:
    return RawTable(
        table.ids,
        {c.name: table.numeric[c.name] for c in columns if c.kind == "numeric"},
        {c.name: table.categorical[c.name] for c in columns if c.kind == "categorical"},
    )


def deal_cohort(cohort: Cohort, parts: int, rng: np.random.Generator, task: Task, fold: int) -> list[list[str]]:
    """Patients of the test set, then of each institution; per class in turn, so that all are stratified."""
    if not 0 <= fold < FOLDS:
        raise StudyDataError(f"there is no fold {fold}.", remedy=f"Folds are 0 to {FOLDS - 1}.")
    dealt: list[list[str]] = [[] for _ in range(parts + 1)]
    start = 0
    for name, stages in task.classes.items():
        patients = sorted(patient for patient, its in cohort.stages.items() if its in stages)
        order = [patients[i] for i in rng.permutation(len(patients))]
        order = order[: round(len(order) / task.thinned.get(cohort.name, {}).get(name, 1))]
        held_out = round(TEST_PART * len(order))
        first = fold * held_out
        dealt[0] += order[first : first + held_out]
        for k, patient in enumerate([*order[:first], *order[first + held_out :]], start):
            dealt[1 + k % parts].append(patient)
        start += len(order) - held_out  # whoever is left over goes to the next institution, not the first again
    return [sorted(part) for part in dealt]


def _rows(table: RawTable, patients: Sequence[str]) -> RawTable:
    row = {patient: k for k, patient in enumerate(table.ids)}
    return table.select([row[patient] for patient in patients if patient in row])


def test_set(cohort: Cohort, patients: Sequence[str], tables: Mapping[str, RawTable]) -> TestSet:
    """A cohort's test patients, with what each has of the cohort's tables."""
    held = {modality: _rows(table, patients) for modality, table in tables.items()}
    whole = set(patients).intersection(*(table.ids for table in held.values()))
    return TestSet({p: cohort.stages[p] for p in patients}, held, tuple(p for p in patients if p in whole))


def shard_of(name: str, cohort: Cohort, patients: Sequence[str], tables: Mapping[str, RawTable], task: Task) -> Shard:
    """Those of the patients who have all of the institution's modalities.

    Raises:
        StudyDataError: they are of one class, or none.
    """
    whole = set(patients).intersection(*(table.ids for table in tables.values()))
    kept = [patient for patient in patients if patient in whole]
    stages = {patient: cohort.stages[patient] for patient in kept}
    there = [each for each, its in task.classes.items() if set(its) & set(stages.values())]
    if len(there) < 2:
        raise StudyDataError(
            f"{name} would have {len(kept)} patients of {len(there)} classes.",
            remedy="Take a larger cohort, or one with at least two classes of the task.",
            place=cohort.name,
        )
    return Shard(name, cohort.name, {m: _rows(table, kept) for m, table in tables.items()}, stages)
