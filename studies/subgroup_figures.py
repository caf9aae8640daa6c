"""Figures by sex and age group of the nine institutions: `python -m studies.subgroup_figures --seeds 5`.

Of their validation patients, counted by the federation's own secure sums (`federation.subgroups`) in the round that the
plan exports: the test set is not looked at. What is too small to be told of is told by a dash, as it would be of
hospitals; lower the floors with `--min-patients 1`, since these patients are public.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from federation.plan import Subgroup, Subgroups
from federation.subgroups import groups_of
from security.user_errors import user_errors
from studies.cells import Cell
from studies.cohorts import Cohort, find_data, load_cohorts
from studies.methods import changed
from studies.plain_rounds import PlainRun
from studies.recipes import federation
from studies.simulate import institution_data, institution_randomness
from studies.synthetic import TCGA_SHAPE, Shape, synthetic
from studies.tasks import STAGE_I_II
from studies.tcga import COHORTS, Federation

RECIPE: Final = "nine"
METHOD: Final = "dgb+pcw"
TASK: Final = STAGE_I_II.name
CLINICAL: Final = "clinical"
METRICS: Final = ("patients", "accuracy", "balanced_accuracy", "auroc")
BY: Final = (
    Subgroup(name="sex", column="cat_sex", categories=("FEMALE", "MALE")),
    Subgroup(name="age", column="num_age", cuts=(50.0, 65.0)),
)


@dataclass(frozen=True)
class GroupRow:
    """One subgroup over seeds.

    Attributes:
        attribute, group: which.
        told: seeds in which it was told of.
        mean, spread: of each of `METRICS` over these seeds; None: in none, or fewer than two.
    """

    attribute: str
    group: str
    told: int
    mean: Mapping[str, float | None]
    spread: Mapping[str, float | None]


def with_people(made: Federation, cohorts: Mapping[str, Cohort]) -> Federation:
    """The federation whose institutions know sex and age of all their patients, whichever tables they train on."""
    return replace(made, shards=tuple(replace(s, people=cohorts[s.cohort].tables[CLINICAL]) for s in made.shards))


def counted(
    root: Path | None, seed: int, rounds: int, floors: Subgroups, shape: Shape = TCGA_SHAPE
) -> Mapping[str, Mapping[str, Mapping[str, Any] | None]]:
    """Attribute to group to figures of the exported round of one run; None: too few.

    Args:
        root: the data folder; None: generated patients.
        seed: of split and run.
        rounds: of the run.
        floors: by whom and from how many on is counted.
        shape: of generated patients.

    Raises:
        StudyError, StudyDataError: the data do not allow it.
    """
    cohorts = synthetic(seed, shape) if root is None else _people(root)
    made = with_people(federation(RECIPE, root, STAGE_I_II, seed, 0, shape), cohorts)
    plan = Cell(RECIPE, TASK, METHOD, seed, 0, rounds).plan(made)
    plan = changed(plan, {"evaluation": {"subgroups": floors}})
    shards = {shard.name: shard for shard in made.shards}
    data = {name: institution_data(shards[name], plan) for name in plan.roster}
    run = PlainRun(plan, data, lambda name: institution_randomness(seed, name))
    records = []
    while not run.ended:
        records.append(run.step())
    chosen = run.state.selection.chosen
    exported = records[-1]["round"] if chosen is None else chosen.round
    found: Mapping[str, Mapping[str, Mapping[str, Any] | None]] = next(
        r.get("subgroups", {}) for r in records if r["round"] == exported
    )
    return found


@lru_cache(maxsize=1)
def _people(root: Path) -> Mapping[str, Cohort]:
    return load_cohorts(root, COHORTS, (CLINICAL,))


def rows_over(runs: Sequence[Mapping[str, Mapping[str, Mapping[str, Any] | None]]]) -> tuple[GroupRow, ...]:
    """One row a subgroup, over the runs of several seeds."""
    rows = []
    for attribute in BY:
        for group in groups_of(attribute):
            told = [t for run in runs if (t := run.get(attribute.name, {}).get(group)) is not None]
            values = {m: [float(t[m]) for t in told if t[m] is not None] for m in METRICS}
            mean = {m: statistics.fmean(v) if v else None for m, v in values.items()}
            spread = {m: statistics.stdev(v) if len(v) > 1 else None for m, v in values.items()}
            rows.append(GroupRow(attribute.name, group, len(told), mean, spread))
    return tuple(rows)


def _cell(metric: str, row: GroupRow) -> str:
    mean, spread = row.mean[metric], row.spread[metric]
    if mean is None:
        return "–"
    digits = 0 if metric == "patients" else 3
    return f"{mean:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to this number")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--min-patients", type=int, default=Subgroups().min_patients)
    parser.add_argument("--synthetic", action="store_true", help="generated patients, also where real ones are there")
    chosen = parser.parse_args(arguments)
    root = None if chosen.synthetic else find_data()
    floors = Subgroups(by=BY, every=1, min_patients=chosen.min_patients)
    runs = [counted(root, seed, chosen.rounds, floors) for seed in range(1, chosen.seeds + 1)]
    data = "SYNTHETIC patients" if root is None else "TCGA"
    table = Table(title=f"{data}, validation patients, {METHOD}, mean ± standard deviation over {chosen.seeds} seeds")
    table.add_column("subgroup")
    for metric in ("told in", *METRICS):
        table.add_column(metric.replace("_", " "), justify="right")
    for row in rows_over(runs):
        table.add_row(f"{row.attribute}: {row.group}", str(row.told), *(_cell(m, row) for m in METRICS))
    console = Console()
    console.width = max(console.width, 120)
    console.print(table)


if __name__ == "__main__":
    main()
