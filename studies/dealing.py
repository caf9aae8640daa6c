"""Other ways to deal patients to institutions than cohort by cohort in equal parts: mixed, skewed by class, by site.

Test sets of `mixed` and `skewed` are those of `studies.tcga.federate` of the same seed and fold, so that the three can
be compared on the same patients. By site, no test patient's hospital is any institution's: that is a harder question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from studies.cohorts import Cohort, StudyDataError
from studies.scoring import stacked
from studies.synthetic import stand_in_sites
from studies.tasks import Task
from studies.tcga import (
    TEST_PART,
    Federation,
    Shard,
    common_modalities,
    deal_cohort,
    narrowed_tables,
    shard_of,
    test_set,
)

Data = Literal["real", "synthetic"]
Split = Callable[[Sequence[str], np.random.Generator, int], list[list[str]]]
"""Patients of one class, a generator, and how many parts: the parts."""

ATTEMPTS: Final = 200
FEWEST: Final = 3
"""Patients of every class that a skewed institution has at least; below it, its losses are noise."""

EVERYBODY: Final = "ALL"


def evenly(patients: Sequence[str], rng: np.random.Generator, parts: int) -> list[list[str]]:
    """Equal parts: no heterogeneity at all."""
    order = [patients[k] for k in rng.permutation(len(patients))]
    return [order[k::parts] for k in range(parts)]


def dirichlet(alpha: float) -> Split:
    """Parts of a class drawn from a Dirichlet distribution: the smaller alpha, the more each class sits at a few."""

    def split(patients: Sequence[str], rng: np.random.Generator, parts: int) -> list[list[str]]:
        order = [patients[k] for k in rng.permutation(len(patients))]
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(parts, alpha))) * len(order)).astype(int)
        return [order[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    return split


def pooled_and_split(
    split: Split,
    kinds: Sequence[tuple[str, ...]],
    cohorts: Mapping[str, Cohort],
    data: Data,
    task: Task,
    seed: int,
    fold: int,
) -> Federation:
    """Patients of all cohorts together, class by class dealt to institutions that hold `kinds`.

    Args:
        split: how a class is dealt.
        kinds: one combination an institution.
        cohorts, data, task, seed, fold: as `studies.tcga.federate` has them.

    Raises:
        StudyDataError: no deal of `ATTEMPTS` gives every institution `FEWEST` patients of every class.
    """
    columns = common_modalities(cohorts)
    tables = {name: narrowed_tables(cohort, columns) for name, cohort in cohorts.items()}
    test, rest = {}, list[str]()
    for name, cohort in cohorts.items():
        held_out, others = deal_cohort(cohort, 1, np.random.default_rng([seed, *name.encode()]), task, fold)
        test[name] = test_set(cohort, held_out, tables[name])
        rest += others
    stages = {p: s for cohort in cohorts.values() for p, s in cohort.stages.items()}
    whole = {m: stacked([own[m] for own in tables.values() if m in own]) for m in columns}
    everybody = Cohort(EVERYBODY, stages, whole)
    rng = np.random.default_rng([seed, *EVERYBODY.encode()])
    classes = [sorted(p for p in rest if stages[p] in its) for its in task.classes.values()]
    for _ in range(ATTEMPTS):
        dealt = [split(patients, rng, len(kinds)) for patients in classes]
        if min(len(part) for parts in dealt for part in parts) < FEWEST:
            continue
        try:
            shards = tuple(
                shard_of(
                    f"all-{k + 1}",
                    everybody,
                    sorted(p for parts in dealt for p in parts[k]),
                    {m: whole[m] for m in whole if m in held},
                    task,
                )
                for k, held in enumerate(kinds)
            )
        except StudyDataError:
            continue
        return Federation(data, shards, test, columns, task)
    raise StudyDataError("no deal gives every institution enough patients.", remedy="Take fewer institutions.")


def by_site(
    count: int,
    kinds: Sequence[tuple[str, ...]],
    cohorts: Mapping[str, Cohort],
    data: Data,
    task: Task,
    seed: int,
    fold: int,
) -> Federation:
    """Hospitals as they are: every tissue source site whole at one institution, or whole in the test set.

    A fifth of each cohort's patients, by whole sites, is the test set. Of the other sites the largest make an
    institution each, and smaller ones join the smallest of their cohort. Combinations are drawn, each as often as
    `kinds` has it.

    Args:
        count: of institutions; each cohort has an equal part of them.
        kinds: combinations, repeated until all institutions have one.
        cohorts, data, task, seed, fold: as `studies.tcga.federate` has them.

    Raises:
        StudyDataError: the sites allow no such federation.
    """
    columns = common_modalities(cohorts)
    tables = {name: narrowed_tables(cohort, columns) for name, cohort in cohorts.items()}
    rng = np.random.default_rng([seed, *b"sites"])
    test, groups = {}, list[tuple[str, list[str]]]()
    for name, cohort in cohorts.items():
        held_out, sites = _held_out_sites(cohort, task, np.random.default_rng([seed, *name.encode()]), fold)
        test[name] = test_set(cohort, held_out, tables[name])
        groups += [(name, patients) for patients in _institutions(sites, count // len(cohorts))]
    for _ in range(ATTEMPTS):
        drawn = rng.permutation(len(groups))
        try:
            shards: list[Shard] = []
            for k, (name, patients) in enumerate(groups):
                held = kinds[drawn[k] % len(kinds)]
                own = {m: t for m, t in tables[name].items() if m in held}
                shards.append(shard_of(f"site-{k + 1:02}", cohorts[name], patients, own, task))
        except StudyDataError:
            continue
        return Federation(data, tuple(shards), test, columns, task)
    raise StudyDataError("no deal of the sites gives every institution two classes.", remedy="Take fewer institutions.")


def _held_out_sites(
    cohort: Cohort, task: Task, rng: np.random.Generator, fold: int
) -> tuple[list[str], dict[str, list[str]]]:
    """Test patients, and the other sites with their patients."""
    known = cohort.sites or stand_in_sites(cohort)
    chosen: list[str] = []
    for name, stages in task.classes.items():
        patients = sorted(p for p, stage in cohort.stages.items() if stage in stages)
        order = [patients[k] for k in rng.permutation(len(patients))]
        chosen += order[: round(len(order) / task.thinned.get(cohort.name, {}).get(name, 1))]
    sites: dict[str, list[str]] = {}
    for patient in sorted(chosen):
        sites.setdefault(known[patient], []).append(patient)
    parts = round(1 / TEST_PART)
    folds: list[list[str]] = [[] for _ in range(parts)]
    sizes: npt.NDArray[np.int64] = np.zeros(parts, np.int64)
    for k in rng.permutation(len(sites)):
        site = sorted(sites)[k]
        smallest = int(np.argmin(sizes))
        folds[smallest].append(site)
        sizes[smallest] += len(sites[site])
    held_out = sorted(p for site in folds[fold] for p in sites[site])
    return held_out, {site: own for site, own in sites.items() if site not in folds[fold]}


def _institutions(sites: Mapping[str, Sequence[str]], count: int) -> list[list[str]]:
    by_size = sorted(sites, key=lambda site: (-len(sites[site]), site))
    groups: list[list[str]] = [[] for _ in range(count)]
    for site in by_size:
        min(groups, key=len).extend(sites[site])
    return [sorted(group) for group in groups]
