"""Federations of studies by name: which institutions there are, and who holds what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from studies import dealing
from studies.cohorts import MODALITIES, Cohort, load_cohorts
from studies.federation import StudyError
from studies.hidden import complete_only, hide
from studies.other_data import VIEWS, generated_views, load_views
from studies.synthetic import TCGA_SHAPE, Shape, stand_ins, synthetic
from studies.tasks import Task
from studies.tcga import COHORTS, KINDS, Federation, federate

Deal = Callable[[Mapping[str, Cohort], Literal["real", "synthetic"], Task, int, int], Federation]
"""Cohorts, what the data is, task, seed, fold."""

EVERYTHING: Final = MODALITIES
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

GENOME: Final = "cnv_mut"
"""Copy number and mutations: the fourth modality."""
FOUR: Final = (*EVERYTHING, GENOME)
FOUR_MODALITIES: Final = ((FOUR, ("mrna", "image"), ("clinical", GENOME)),)
"""Each modality is at six of nine institutions, all four at three. With four dealt as unevenly as METHOD.md's
three are, the sums of their holders would tell what two institutions have, and one of the sums stays shut."""

WITH_LIVER: Final = (*KINDS, (("mrna", "clinical"), ("mrna",), ("clinical",)))
"""LIHC has no images, nor has who stands in for it: three more institutions without."""

KIDNEY: Final = ("KIRC", "KIRP")
KIDNEY_IMAGES: Final = ("image_kirc", "image_kirp")
"""Their columns differ, so that each is a modality of its own, which its own cohort alone has."""
_TWO: Final = ("mrna", "clinical")
_THREE: Final = ("mrna", *KIDNEY_IMAGES, "clinical")
KIDNEY_KINDS: Final = ((_TWO, _TWO, ("mrna",), ("mrna",), ("clinical",), ("clinical",)),)
KIDNEY_WITH_IMAGES: Final = ((_THREE, _THREE, _THREE, ("mrna",), ("mrna",), ("clinical",), ("clinical",)),)

_VIEWS: Final = tuple(VIEWS["DIGITS"][1])
DIGITS_KINDS: Final = (
    (
        _VIEWS, _VIEWS, _VIEWS, ("fac", "fou", "kar"), ("mor", "pix", "zer"), ("fac", "mor"), ("fou", "pix"),
        ("kar", "zer"), *((view,) for view in _VIEWS),
    ),
)  # fmt: skip
ARTICLES_KINDS: Final = ((*(("image", "text"),) * 3, *(("image",),) * 3, *(("text",),) * 3),)

NINE: Final = tuple(held for row in KINDS for held in row)
"""The combinations of METHOD.md's nine institutions, cohort by cohort."""


@dataclass(frozen=True)
class Recipe:
    """A federation by its name.

    Attributes:
        cohorts: that it is made of.
        deal: to institutions.
        institutions: their names.
        modalities: tables that are read.
    """

    cohorts: tuple[str, ...]
    deal: Deal
    institutions: tuple[str, ...]
    modalities: tuple[str, ...] = MODALITIES


def _folder(modality: str) -> str:
    return "image" if modality in KIDNEY_IMAGES else modality


def _own_images(cohorts: Mapping[str, Cohort]) -> Mapping[str, Cohort]:
    """The kidneys' images under their cohorts' names; whoever wants none of them deals none."""
    return {
        name: replace(c, tables={(f"image_{name.lower()}" if m == "image" else m): t for m, t in c.tables.items()})
        if name in KIDNEY
        else c
        for name, c in cohorts.items()
    }


Kinds = tuple[tuple[tuple[str, ...], ...], ...]


UPPER_BOUND_OF: Final[Mapping[str, str]] = {"nine": "upper bound"}
"""A federation to the one that deals the same patients to the same institutions with all modalities."""


def _dealt(
    kinds: Kinds,
    cohorts: Mapping[str, Cohort],
    data: Literal["real", "synthetic"],
    task: Task,
    seed: int,
    fold: int,
) -> Federation:
    held = {modality for row in kinds for combination in row for modality in combination}
    narrowed = {n: replace(c, tables={m: t for m, t in c.tables.items() if m in held}) for n, c in cohorts.items()}
    return federate(narrowed, data, seed, kinds, task, fold)


HIDDEN: Final = (10, 30, 50, 70)
"""Percent of the modalities of all patients that are hidden, one by one."""


def _lacking(
    percent: int,
    complete: bool,
    cohorts: Mapping[str, Cohort],
    data: Literal["real", "synthetic"],
    task: Task,
    seed: int,
    fold: int,
) -> Federation:
    """Institutions that hold everything, whose patients lack modalities (`studies.hidden`)."""
    made = hide(_dealt(UPPER_BOUND, cohorts, data, task, seed, fold), percent / 100, seed)
    return complete_only(made) if complete else made


def _by_cohort(kinds: Kinds, cohorts: tuple[str, ...] = COHORTS, modalities: tuple[str, ...] = MODALITIES) -> Recipe:
    """Each cohort to institutions of its own."""
    rows = [kinds[k % len(kinds)] for k in range(len(cohorts))]
    names = (f"{c.lower()}-{k + 1}" for c, row in zip(cohorts, rows, strict=True) for k in range(len(row)))
    return Recipe(cohorts, partial(_dealt, kinds), tuple(names), modalities)


def _mixed(split: dealing.Split) -> Recipe:
    """All cohorts' patients to the nine combinations."""
    deal = partial(dealing.pooled_and_split, split, NINE)
    return Recipe(COHORTS, deal, tuple(f"all-{k + 1}" for k in range(len(NINE))))


def _sites(count: int) -> Recipe:
    deal = partial(dealing.by_site, count, NINE)
    return Recipe(COHORTS, deal, tuple(f"site-{k + 1:02}" for k in range(count)))


def _hidden(percent: int, *, complete: bool) -> Recipe:
    """The upper bound's institutions."""
    return replace(_by_cohort(UPPER_BOUND), deal=partial(_lacking, percent, complete))


RECIPES: Final[Mapping[str, Recipe]] = {
    "nine": _by_cohort(KINDS),
    "upper bound": _by_cohort(UPPER_BOUND),
    "two modalities": _by_cohort(BIMODAL),
    "four modalities": _by_cohort(FOUR_MODALITIES, modalities=FOUR),
    "uni-modal": _by_cohort(UNI_DOMINANT),
    "bi-modal": _by_cohort(BI_DOMINANT),
    "tri-modal": _by_cohort(TRI_DOMINANT),
    "with liver": _by_cohort(WITH_LIVER, (*COHORTS, "LIHC")),
    "kidney": _by_cohort(KIDNEY_KINDS, KIDNEY, ("mrna", "clinical")),
    "kidney upper bound": _by_cohort(((_TWO,) * 6,), KIDNEY, ("mrna", "clinical")),
    "kidney with images": _by_cohort(KIDNEY_WITH_IMAGES, KIDNEY, _THREE),
    "kidney with images upper bound": _by_cohort(((_THREE,) * 7,), KIDNEY, _THREE),
    "mixed": _mixed(dealing.evenly),
    "skewed": _mixed(dealing.dirichlet(1.0)),
    "18 sites": _sites(18),
    "36 sites": _sites(36),
    "digits": _by_cohort(DIGITS_KINDS, ("DIGITS",), _VIEWS),
    "articles": _by_cohort(ARTICLES_KINDS, ("ARTICLES",), ("image", "text")),
    **{f"{p}% hidden": _hidden(p, complete=False) for p in HIDDEN},
    **{f"{p}% hidden, complete": _hidden(p, complete=True) for p in HIDDEN},
}
"""Name to what it is made of."""


def institutions(recipe: str) -> tuple[str, ...]:
    """Names of a federation's institutions.

    Raises:
        StudyError: no such recipe.
    """
    return _recipe(recipe).institutions


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise StudyError(f"there is no federation {name!r}.", remedy=f"Choose from: {', '.join(RECIPES)}.")
    return RECIPES[name]


@lru_cache(maxsize=4)
def _loaded(
    root: Path | None, cohorts: tuple[str, ...], modalities: tuple[str, ...], seed: int, shape: Shape
) -> Mapping[str, Cohort]:
    """The cohorts; without a folder, generated ones."""
    if cohorts[0] in VIEWS:
        return generated_views(cohorts[0], seed) if root is None else load_views(root, cohorts[0])
    if root is not None:
        return _own_images(load_cohorts(root, cohorts, tuple(dict.fromkeys(map(_folder, modalities)))))
    if cohorts == COHORTS and modalities == MODALITIES:
        return synthetic(seed, shape)
    made = stand_ins(seed, shape, cohorts, modalities)
    liver = {n: replace(c, tables={m: t for m, t in c.tables.items() if m != "image"}) for n, c in made.items()}
    return {name: liver[name] if name == "LIHC" else cohort for name, cohort in made.items()}


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
    made = _recipe(recipe)
    # Generated patients are drawn anew for every seed; real ones are the same, and kept.
    cohorts = _loaded(root, made.cohorts, made.modalities, 0 if root is not None else seed, shape)
    return made.deal(cohorts, "synthetic" if root is None else "real", task, seed, fold)


def fingerprint(root: Path | None, shape: Shape = TCGA_SHAPE) -> str:
    """Of the data: the names and bytes of all tables, or what generated ones are drawn by."""
    if root is None:
        return f"synthetic {shape!r}"
    hashed = sha256()
    for path in sorted(root.rglob("*")):
        if path.suffix in (".parquet", ".csv", ".npz"):
            hashed.update(str(path.relative_to(root)).encode() + b"\0" + sha256(path.read_bytes()).digest())
    return hashed.hexdigest()
