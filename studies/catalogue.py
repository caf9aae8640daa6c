"""The studies by name: what each asks, and which runs answer it.

A study is a list of variants on the same splits; one of them is what the others are held against. Whatever a variant
changes beyond its method stands in `changes`, so that a row can be run again from its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from studies.cells import Cell, changes_of
from studies.federation import StudyError
from studies.methods import ALONE
from studies.recipes import institutions
from studies.tasks import EARLY_LATE, STAGE_I_II, THREE_STAGES, Task
from studies.tcga import FOLDS

CM_FL: Final = "cm-fl"
DEMO_ROUNDS: Final = 40


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Attributes:
        name: in its tables.
        method: name of a method (`studies.methods`).
        recipe: of the federation.
        changes: of the plan.
    """

    name: str
    method: str
    recipe: str = "nine"
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question with its variants.

    Attributes:
        name: of the command.
        question: what it asks, a sentence.
        task: what is told apart.
        variants: in the order of their table.
        against: name of the variant that the others are paired with.
        rounds: of each run.
    """

    name: str
    question: str
    task: Task
    variants: tuple[Variant, ...]
    against: str
    rounds: int = DEMO_ROUNDS

    def of(self, variant: Variant, seed: int, fold: int) -> tuple[Cell, ...]:
        """The runs of one variant on one split: one, or of `alone` one an institution, whose figures are averaged."""
        methods = (
            tuple(f"{ALONE}/{name}" for name in institutions(variant.recipe))
            if variant.method == ALONE
            else (variant.method,)
        )
        changes = changes_of(**variant.changes)
        return tuple(Cell(variant.recipe, self.task.name, m, seed, fold, self.rounds, changes) for m in methods)

    def cells(self, seeds: Sequence[int], folds: int = FOLDS) -> Iterator[Cell]:
        """All of them, split by split: a study that is cut short has all variants of the splits that it has."""
        for seed in seeds:
            for fold in range(folds):
                for variant in self.variants:
                    yield from self.of(variant, seed, fold)


METHODS: Final = (
    Variant("CM-FL", CM_FL),
    Variant("HGB", "hgb"),
    Variant("DGB", "dgb"),
    Variant("DGB + PCW", "dgb+pcw"),
    Variant("each alone", ALONE),
    Variant("pooled", "pooled"),
    Variant("all modalities everywhere", CM_FL, "upper bound"),
    Variant("cohort only", "cohort-only"),
    Variant("constant", "constant"),
)
"""Figure 3 of the paper, and what its methods are held against."""

STUDIES: Final[Mapping[str, Study]] = {
    study.name: study
    for study in (
        Study(
            "figure3",
            "Do DGB and PCW beat conventional multi-modal FL on the paper's task, stage I against II?",
            STAGE_I_II,
            METHODS,
            "CM-FL",
        ),
        Study("late", "The same, early stages against late ones.", EARLY_LATE, METHODS, "CM-FL"),
        Study("three", "The same, stages I, II and III + IV.", THREE_STAGES, METHODS, "CM-FL"),
    )
}


def study(name: str) -> Study:
    """A study by its name.

    Raises:
        StudyError: there is none.
    """
    found = STUDIES.get(name)
    if found is None:
        raise StudyError(f"there is no study {name!r}.", remedy=f"Choose from: {', '.join(STUDIES)}.")
    return found
