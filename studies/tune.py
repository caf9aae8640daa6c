"""`python -m studies.tune`: chooses a configuration by validation patients alone, and writes it to studies/frozen.toml.

What is searched stands in studies/tuning.toml: candidates, each a method with changes of the demo's plan, and step
sizes. Every candidate is run with every step size on a few splits; the best of each group are run again on more, and
the best of these are frozen. Splits are of seeds from 101 on, so that none of them is a reported one, and scores are of
the institutions' validation patients of BRCA, LUSC and LUAD who have every modality: no test patient is ever looked at.
All runs are kept, so that a search that is cut short, or gets another candidate, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from security.user_errors import user_errors
from studies.cells import Cell, CellResult, changes_of
from studies.cohorts import find_data
from studies.federation import StudyError
from studies.frozen import FROZEN, to_toml
from studies.machine import restart_alike
from studies.recipes import fingerprint
from studies.run_cells import Source, run_cells
from studies.store import STORE, ResultStore
from studies.tcga import FOLDS

SEARCH: Final = Path(__file__).with_name("tuning.toml")
SMALLEST_SEED: Final = 101
"""Of a split that may be tuned on; reported seeds are below."""

Figures = tuple[float, float]
"""AUROC and balanced accuracy of one split's exported model."""


@dataclass(frozen=True)
class Candidate:
    """What may be chosen.

    Attributes:
        name: for tables.
        method: that it is a configuration of (`studies.methods`).
        changes: of the demo's plan, but for the step size.
        steps: η to try.
        group: among whose members the best is chosen; usually the method.
    """

    name: str
    method: str
    changes: Mapping[str, Any]
    steps: tuple[float, ...]
    group: str

    def with_step(self, step: float) -> dict[str, Any]:
        """The changes with this step size."""
        training = {**self.changes.get("training", {}), "learning_rate": step}
        return {**self.changes, "training": training}


@dataclass(frozen=True)
class Search:
    """What is searched, and on which splits.

    Attributes:
        recipe, task, rounds: of every run.
        first_seed: of the splits, at least `SMALLEST_SEED`.
        screened, final: seeds that every candidate, and every finalist, is scored on.
        finalists: of each group.
        candidates: in the order of their table.
    """

    recipe: str
    task: str
    rounds: int
    first_seed: int
    screened: int
    final: int
    finalists: int
    candidates: tuple[Candidate, ...]

    def cells(self, candidate: Candidate, step: float, seeds: int, folds: int = FOLDS) -> list[Cell]:
        """The runs of one candidate with one step size on the first of the splits."""
        changes = changes_of(**candidate.with_step(step))
        return [
            Cell(self.recipe, self.task, candidate.method, seed, fold, self.rounds, changes, "validation")
            for seed in range(self.first_seed, self.first_seed + seeds)
            for fold in range(folds)
        ]


def read_search(path: Path) -> Search:
    """Reads what is searched.

    Raises:
        StudyError: it is not to be read, or its seeds are reported ones.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
        steps = tuple(map(float, given["steps"]))
        candidates = tuple(
            Candidate(
                c["name"],
                c["method"],
                c.get("changes", {}),
                tuple(map(float, c.get("steps", steps))),
                c.get("group", c["method"]),
            )
            for c in given["candidates"]
        )
        fields = {name: given[name] for name in Search.__dataclass_fields__ if name != "candidates"}
        search = Search(**fields, candidates=candidates)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(f"the search cannot be read ({error!r}).", remedy="See studies/tuning.toml.") from error
    if search.first_seed < SMALLEST_SEED:
        remedy = f"Begin with {SMALLEST_SEED} or above."
        raise StudyError(f"seed {search.first_seed} is of a reported split.", remedy=remedy)
    return search


def figures_of(result: CellResult) -> Figures:
    """Of the exported model, from the run's own curve on the patients that it is scored on."""
    at = result.curve[result.exported - 1]
    auroc, balanced = at["auroc"], at["balanced_accuracy"]
    if auroc is None or balanced is None:
        raise StudyError("validation patients of one class only cannot be scored on.", remedy="Take larger cohorts.")
    return auroc, balanced


@dataclass(frozen=True)
class Score:
    """A candidate with one step size.

    Attributes:
        candidate, step: what was run.
        figures: by split, in the order of `Search.cells`.
    """

    candidate: Candidate
    step: float
    figures: tuple[Figures, ...]

    @property
    def value(self) -> float:
        """What is chosen by: the mean of both figures, since a method should win in both."""
        return (self.auroc + self.balanced_accuracy) / 2

    @property
    def auroc(self) -> float:
        """Mean over splits."""
        return statistics.fmean(a for a, _ in self.figures)

    @property
    def balanced_accuracy(self) -> float:
        """Mean over splits."""
        return statistics.fmean(b for _, b in self.figures)


Run = Callable[[Sequence[Cell]], Mapping[Cell, CellResult]]


def screen(search: Search, seeds: int, tried: Sequence[tuple[Candidate, float]], run: Run) -> list[Score]:
    """Scores of all that are tried and complete, group by group, best first.

    Args:
        search: whose splits are used.
        seeds: how many.
        tried: candidates with step sizes.
        run: runs cells; those that it leaves out are not scored.
    """
    cells = [search.cells(candidate, step, seeds) for candidate, step in tried]
    # Splits outermost: what a budget cuts off is splits of all, not whole candidates.
    found = run([cell for split in zip(*cells, strict=True) for cell in split])
    scores = [
        Score(candidate, step, tuple(figures_of(found[cell]) for cell in own))
        for (candidate, step), own in zip(tried, cells, strict=True)
        if all(cell in found for cell in own)
    ]
    return sorted(scores, key=lambda s: (s.candidate.group, -s.value))


def finalists(scores: Sequence[Score], count: int) -> list[tuple[Candidate, float]]:
    """The best of each group, candidates with their step sizes."""
    groups = dict.fromkeys(s.candidate.group for s in scores)
    return [
        (s.candidate, s.step) for group in groups for s in [s for s in scores if s.candidate.group == group][:count]
    ]


def frozen_of(search: Search, scores: Sequence[Score], data: str) -> dict[str, Any]:
    """What is written: the best of each group, and by what it was chosen."""
    last = search.first_seed + search.final - 1
    found: dict[str, Any] = {
        "chosen": {
            "data": data,
            "recipe": search.recipe,
            "task": search.task,
            "rounds": search.rounds,
            "seeds": [search.first_seed, last],
            "folds": FOLDS,
            "by": "mean of AUROC and balanced accuracy of the exported round, validation patients with every modality",
        }
    }
    for candidate, step in finalists(scores, 1):
        best = next(s for s in scores if (s.candidate, s.step) == (candidate, step))
        found[candidate.group] = {
            "method": candidate.method,
            "candidate": candidate.name,
            "auroc": round(best.auroc, 4),
            "balanced_accuracy": round(best.balanced_accuracy, 4),
            "changes": candidate.with_step(step),
        }
    return found


def _table(title: str, scores: Sequence[Score]) -> Table:
    made = Table(title=title)
    for name in ("group", "candidate", "η", "AUROC", "balanced", "AUROC - CM-FL", "splits"):
        made.add_column(name, no_wrap=True)
    base = next((s for s in scores if s.candidate.group == "cm-fl"), None)
    for s in scores:
        paired = ""
        if base is not None and s is not base:
            differences = [a[0] - b[0] for a, b in zip(s.figures, base.figures, strict=True)]
            error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else 0.0
            paired = f"{statistics.fmean(differences):+.3f} ± {error:.3f}"
        row = (s.candidate.group, s.candidate.name, f"{s.step:g}", f"{s.auroc:.3f}", f"{s.balanced_accuracy:.3f}")
        made.add_row(*row, paired, str(len(s.figures)))
    return made


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--search", type=Path, default=SEARCH, help="what is searched")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--synthetic", action="store_true", help="generated patients, also where real ones are there")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--write", action="store_true", help=f"write {FROZEN.name}")
    chosen = parser.parse_args(arguments)
    search = read_search(chosen.search)
    root = None if chosen.synthetic else find_data()
    source, data, store = Source(root), fingerprint(root), ResultStore(chosen.store)
    console = Console()
    console.width = max(console.width, 150)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("runs", total=None)

        def run(cells: Sequence[Cell]) -> Mapping[Cell, CellResult]:
            def progress(done: int, all_: int, cell: Cell) -> None:
                bar.update(task, completed=done, total=all_, description=str(cell))

            return run_cells(cells, source, data, store, chosen.processes, progress)

        every = [(candidate, step) for candidate in search.candidates for step in candidate.steps]
        screened = screen(search, search.screened, every, run)
        console.print(_table(f"all, on {search.screened} seeds of {FOLDS} folds", screened))
        final = screen(search, search.final, finalists(screened, search.finalists), run)
        console.print(_table(f"the best, on {search.final} seeds of {FOLDS} folds", final))
    if chosen.write:
        FROZEN.write_text(to_toml(frozen_of(search, final, data)), encoding="utf-8")


if __name__ == "__main__":
    restart_alike("studies.tune", sys.argv[1:])
    main()
