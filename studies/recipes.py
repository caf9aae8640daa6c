"""Federations of studies by name: which institutions there are, and who holds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from studies.cohorts import Cohort, load_cohorts
from studies.federation import StudyError
from studies.synthetic import TCGA_SHAPE, Shape, synthetic
from studies.tasks import Task
from studies.tcga import COHORTS, KINDS, Federation, federate

Recipe = Callable[[Mapping[str, Cohort], Literal["real", "synthetic"], Task, int, int], Federation]
"""Cohorts, what the data is, task, seed, fold."""

EVERYTHING: Final = ("mrna", "image", "clinical")
UPPER_BOUND: Final = ((EVERYTHING, EVERYTHING, EVERYTHING),)
UNI_DOMINANT: Final = (
    (EVERYTHING, ("mrna",), ("image",)),
    (("mrna", "image"), ("image",), ("clinical",)),
    (("mrna", "clinical"), ("clinical",), ("mrna",)),
)
BI_DOMINANT: Final = (
    (EVERYTHING, ("mrna", "image"), ("image", "clinical")),
    (("mrna", "image"), ("image", "clinical"), ("mrna", "clinical")),
    (("mrna", "clinical"), ("mrna",), ("clinical",)),
)
TRI_DOMINANT: Final = ((EVERYTHING, EVERYTHING, ("mrna", "image")),)
"""Six of nine institutions have one, two and three modalities. The last three of the third are alike: holders of two
sums are the same institutions or differ by three, or one of the sums stays shut (DESIGN.md, "Secure sum", rule 9)."""

BIMODAL: Final = ((("mrna", "image"), ("mrna",), ("image",)),)
"""METHOD.md, "The bi-modal variant"."""


UPPER_BOUND_OF: Final[Mapping[str, str]] = {"nine": "upper bound"}
"""A federation to the one that deals the same patients to the same institutions with all modalities."""


def _dealt(
    kinds: tuple[tuple[tuple[str, ...], ...], ...],
    cohorts: Mapping[str, Cohort],
    data: Literal["real", "synthetic"],
    task: Task,
    seed: int,
    fold: int,
) -> Federation:
    held = {modality for row in kinds for combination in row for modality in combination}
    narrowed = {n: replace(c, tables={m: t for m, t in c.tables.items() if m in held}) for n, c in cohorts.items()}
    return federate(narrowed, data, seed, kinds, task, fold)


RECIPES: Final[Mapping[str, tuple[tuple[str, ...], Recipe]]] = {
    "nine": (COHORTS, partial(_dealt, KINDS)),
    "upper bound": (COHORTS, partial(_dealt, UPPER_BOUND)),
    "two modalities": (COHORTS, partial(_dealt, BIMODAL)),
    "uni-modal": (COHORTS, partial(_dealt, UNI_DOMINANT)),
    "bi-modal": (COHORTS, partial(_dealt, BI_DOMINANT)),
    "tri-modal": (COHORTS, partial(_dealt, TRI_DOMINANT)),
}
"""Name to its cohorts and how they are dealt."""


def institutions(recipe: str) -> tuple[str, ...]:
    """Names of a federation's institutions.

    Raises:
        StudyError: no such recipe.
    """
    cohorts, _ = _recipe(recipe)
    return tuple(f"{cohort.lower()}-{k + 1}" for cohort in cohorts for k in range(3))


def _recipe(name: str) -> tuple[tuple[str, ...], Recipe]:
    if name not in RECIPES:
        raise StudyError(f"there is no federation {name!r}.", remedy=f"Choose from: {', '.join(RECIPES)}.")
    return RECIPES[name]


@lru_cache(maxsize=4)
def _cohorts(root: Path | None, names: tuple[str, ...], seed: int, shape: Shape) -> Mapping[str, Cohort]:
    return synthetic(seed, shape) if root is None else load_cohorts(root, names)


def federation(
    recipe: str, root: Path | None, task: Task, seed: int, fold: int, shape: Shape = TCGA_SHAPE
) -> Federation:
    """A federation by its recipe's name.

    Args:
        recipe: a name of `RECIPES`.
        root: the data folder; None: generated cohorts, drawn from the seed.
        task: what is told apart.
        seed: draws everything that is drawn.
        fold: which part is the test set.
        shape: of generated cohorts.

    Raises:
        StudyError: no such recipe.
        StudyDataError: the data do not allow it.
    """
    names, made = _recipe(recipe)
    # Generated patients are drawn anew for every seed; real ones are the same, and kept.
    cohorts = _cohorts(root, names, 0 if root is not None else seed, shape)
    return made(cohorts, "synthetic" if root is None else "real", task, seed, fold)


def fingerprint(root: Path | None, shape: Shape = TCGA_SHAPE) -> str:
    """Of the data: the names and bytes of all tables, or what generated ones are drawn by."""
    if root is None:
        return f"synthetic {shape!r}"
    hashed = sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".parquet", ".csv", ".npz"):
            hashed.update(str(path.relative_to(root)).encode() + b"\0" + sha256(path.read_bytes()).digest())
    return hashed.hexdigest()
