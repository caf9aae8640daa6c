"""What is told apart: the paper's stage I against stage II, and two tasks that matter in a clinic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from federation.plan import Label, LabelClass

_ROMAN: Final = {1: "I", 2: "II", 3: "III", 4: "IV"}


@dataclass(frozen=True)
class Task:
    """A classification of stages.

    Attributes:
        name: for commands and tables.
        classes: class to its stages, 1 to 4; patients of other stages take no part.
        thinned: cohort to class to a divisor: only that part of its patients takes part.
        staged: whether the numbers are stages; otherwise they are numbers only.
    """

    name: str
    classes: Mapping[str, tuple[int, ...]]
    thinned: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    staged: bool = True

    @property
    def label(self) -> Label:
        """The plan's label: stages in TCGA's numbers or in words, with or without a letter."""
        classes = []
        for name, stages in self.classes.items():
            words = [f"{_ROMAN[s]}{letter}" for s in stages for letter in ("", "A", "B", "C")] if self.staged else []
            classes.append(LabelClass(name=name, values=(*map(str, stages), *words)))
        return Label(column="stage", classes=tuple(classes))


STAGE_I_II: Final = Task("I against II", {"I": (1,), "II": (2,)}, {"BRCA": {"II": 3}})
"""The paper's; BRCA's stage II thinned to a third (METHOD.md, "The paper's set-ups")."""

EARLY_LATE: Final = Task("early against late", {"early": (1, 2), "late": (3, 4)})

THREE_STAGES: Final = Task("I, II, III+IV", {"I": (1,), "II": (2,), "III+IV": (3, 4)})
"""Stage IV has 5 to 26 cases in four of six cohorts."""

DIGITS: Final = Task("ten digits", {f"digit {k}": (k,) for k in range(10)}, staged=False)
TOPICS: Final = Task("ten topics", {f"topic {k}": (k,) for k in range(10)}, staged=False)
"""Of the data sets that are not medical (`studies.other_data`)."""

TASKS: Final = {task.name: task for task in (STAGE_I_II, EARLY_LATE, THREE_STAGES, DIGITS, TOPICS)}
