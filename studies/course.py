"""`python -m studies.course frozen`: how losses and DGB's weights go over the rounds of a study's runs that are stored.

What explains a study's figures: which modality overfits, which one still generalises, and what DGB makes of it. Weights
are κ·v of an institution that holds every modality.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from federation import names
from federation.blending import step_weights
from federation.plan import Plan
from federation.settings import blending_settings
from security.user_errors import user_errors
from studies.catalogue import study
from studies.cells import Cell, CellResult
from studies.cohorts import find_data
from studies.recipes import federation, fingerprint
from studies.store import STORE, ResultStore
from studies.tasks import TASKS
from studies.tcga import FOLDS

SHOWN: Final = (1, 2, 3, 5, 10, 20, 30, 40)
"""Rounds in the table."""


@dataclass(frozen=True)
class Point:
    """One subset in one round, means over runs.

    Attributes:
        round: from 1.
        subset: a modality, or all of them together.
        training, validation: losses per patient.
        weight: κ·v with which the round *after* this one is trained; 1 where DGB is off.
        proximity: mean p.
    """

    round: int
    subset: str
    training: float
    validation: float
    weight: float
    proximity: float


def weights_of(plan: Plan, scores: Mapping[str, float | None], round_: int) -> dict[str, float]:
    """κ·v by subset, at an institution with every modality, in the round after this one."""
    order = plan.modality_order
    whole = names.combination(order, order)
    among = order if plan.blending.among == "modalities" else (*order, whole)
    found = step_weights(scores, among, blending_settings(plan), round_)
    return {subset: found.get(subset, 1.0) for subset in (*order, whole)}


def course_of(runs: Sequence[tuple[Plan, CellResult]]) -> list[Point]:
    """Round by round, subset by subset, over the runs that tell of both.

    Args:
        runs: of one variant, with the plans that they ran by.
    """
    found: list[Point] = []
    for k in range(max((len(result.losses) for _, result in runs), default=0)):
        there = [(plan, result.losses[k]) for plan, result in runs if len(result.losses) > k]
        weights = [weights_of(plan, {s: f["score"] for s, f in losses.items()}, k + 1) for plan, losses in there]
        for subset in dict.fromkeys(s for _, losses in there for s in losses):
            own = [(losses[subset], w.get(subset, 1.0)) for (_, losses), w in zip(there, weights, strict=True)
                   if subset in losses]  # fmt: skip
            means = {
                name: statistics.fmean(v for figures, _ in own if (v := figures[name]) is not None)
                for name in ("training", "validation", "proximity")
                if any(figures[name] is not None for figures, _ in own)
            }
            if len(means) == 3:
                weight = statistics.fmean(w for _, w in own)
                found.append(Point(k + 1, subset, means["training"], means["validation"], weight, means["proximity"]))
    return found


def table(name: str, points: Sequence[Point]) -> Table:
    """Some rounds of a course."""
    made = Table(title=name)
    for column in ("round", "subset", "training loss", "validation loss", "κv", "p"):
        made.add_column(column, justify="left" if column == "subset" else "right")
    for p in points:
        if p.round in SHOWN:
            row = (p.training, p.validation, p.weight, p.proximity)
            made.add_row(str(p.round), p.subset, *(f"{x:.3f}" for x in row))
    return made


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the study")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 1 to this number")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--synthetic", action="store_true")
    chosen = parser.parse_args(arguments)
    asked, store = study(chosen.name), ResultStore(chosen.store)
    root = None if chosen.synthetic else find_data()
    data, console = fingerprint(root), Console()
    for variant in asked.variants:
        runs: list[tuple[Plan, CellResult]] = []
        cells: list[Cell] = [
            cell
            for seed in range(1, chosen.seeds + 1)
            for fold in range(FOLDS)
            for cell in asked.of(variant, seed, fold)
            if cell.federated
        ]
        for cell in cells:
            kept = store.get(cell.description(data))
            if kept is not None:
                made = federation(cell.recipe, root, TASKS[cell.task], cell.seed, cell.fold)
                runs.append((cell.plan(made), CellResult.from_json(kept)))
        if runs:
            console.print(table(f"{variant.name}, {len(runs)} runs", course_of(runs)))


if __name__ == "__main__":
    main()
