"""Generated cohorts of the TCGA tables' shape, for machines without them. Always called synthetic, never mixed in.

The stage is planted in every modality: patients of a later stage are shifted along a few columns, alike in all
cohorts, and every cohort has levels of its own, so that institutions are not alike (non-IID).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from federation.tables import RawTable
from studies.cohorts import Cohort


@dataclass(frozen=True)
class Shape:
    """How large the generated cohorts are.

    Attributes:
        stages: cohort to its patients of stage I, II, III, IV; the default is TCGA's.
        genes, image_features: columns of the two numeric modalities.
        signal: shift, in standard deviations and per stage, of every fourth column.
    """

    stages: tuple[tuple[str, tuple[int, int, int, int]], ...] = (
        ("BRCA", (181, 618, 249, 20)),
        ("LUSC", (245, 163, 85, 7)),
        ("LUAD", (279, 124, 85, 26)),
    )
    genes: int = 1555
    image_features: int = 607
    signal: float = 0.12


TCGA_SHAPE: Final = Shape()

Floats = npt.NDArray[np.float64]


def synthetic(seed: int, shape: Shape = TCGA_SHAPE) -> dict[str, Cohort]:
    """Generates cohorts; the same seed and shape give the same tables."""
    made: dict[str, Cohort] = {}
    for k, (name, counts) in enumerate(shape.stages):
        rng = np.random.default_rng([seed, k])
        ids = tuple(f"SYN-{name}-{i:04}" for i in range(sum(counts)))
        stages = rng.permutation(np.repeat([1, 2, 3, 4], counts))
        late = (stages - 1).astype(np.float64)
        tables = {
            "mrna": _mrna(ids, late, shape, rng),
            "image": _image(ids, late, shape, rng),
            "clinical": _clinical(ids, late, rng),
        }
        # As in TCGA, about one patient in eight has no sequencing, and one in six no slide.
        for modality, held in (("mrna", 0.88), ("image", 0.83)):
            tables[modality] = tables[modality].select(np.flatnonzero(rng.random(len(ids)) < held).tolist())
        made[name] = Cohort(name, dict(zip(ids, stages.tolist(), strict=True)), tables)
    return made


def stand_ins(seed: int, shape: Shape, names: Sequence[str], modalities: Sequence[str]) -> dict[str, Cohort]:
    """Generated cohorts under other names, with other modalities: a new one is like mRNA with a few columns.

    Args:
        seed, shape: as `synthetic` has them.
        names: of the cohorts, of whom the generated ones stand in for in turn.
        modalities: each cohort's, where it has them: an `image` may be called `image_kirc` at KIRC alone.
    """
    made = list(synthetic(seed, shape).values())
    found: dict[str, Cohort] = {}
    for k, name in enumerate(names):
        base = made[k % len(made)]
        renamed = {p: f"SYN-{name}-{j:04}" for j, p in enumerate(base.stages)}
        stages = {renamed[p]: stage for p, stage in base.stages.items()}
        tables: dict[str, RawTable] = {}
        for modality in modalities:
            kind, _, owner = modality.partition("_")
            if kind in base.tables and owner in ("", name.lower()):
                own = base.tables[kind]
                tables[modality] = RawTable(tuple(renamed[p] for p in own.ids), own.numeric, own.categorical)
            elif kind not in base.tables:
                rng = np.random.default_rng([seed, *name.encode(), *modality.encode()])
                late = np.array([stage - 1.0 for stage in stages.values()])
                values = np.rint(_shifted(late, 24, shape, rng))
                columns = {f"{modality}_{j:02}": np.clip(values[:, j], -2.0, 2.0) for j in range(24)}
                tables[modality] = RawTable(tuple(stages), columns, {})
        found[name] = Cohort(name, stages, tables)
    return found


def stand_in_sites(cohort: Cohort) -> dict[str, str]:
    """Sites for patients of whom none is known: some large, many small, as in TCGA."""
    rng = np.random.default_rng(list(cohort.name.encode()))
    shares = 1.0 / np.arange(1, 31)
    drawn = rng.choice(30, size=len(cohort.stages), p=shares / shares.sum())
    return {p: f"S{k:02}" for p, k in zip(cohort.stages, drawn.tolist(), strict=True)}


def _shifted(late: Floats, columns: int, shape: Shape, rng: np.random.Generator) -> Floats:
    """float64[patients, columns]: standard normal, every fourth column moved by the stage."""
    directions = np.where(np.arange(columns) % 8 == 0, 1.0, -1.0) * (np.arange(columns) % 4 == 0)
    noise: Floats = rng.standard_normal((len(late), columns))
    moved: Floats = noise + shape.signal * late[:, None] * directions
    return moved


def _mrna(ids: tuple[str, ...], late: Floats, shape: Shape, rng: np.random.Generator) -> RawTable:
    z = np.clip(_shifted(late, shape.genes, shape, rng), -10.0, 10.0)
    return RawTable(ids, {f"GENE{j:05}": z[:, j] for j in range(shape.genes)}, {})


def _image(ids: tuple[str, ...], late: Floats, shape: Shape, rng: np.random.Generator) -> RawTable:
    """Like slide features: counts and areas with heavy tails, ratios, and some that may be negative."""
    z = _shifted(late, shape.image_features, shape, rng)
    numeric: dict[str, Floats] = {}
    for j in range(shape.image_features):
        level = 0.3 * rng.standard_normal()  # the cohort's own
        if j % 3 == 0:
            numeric[f"count_{j:03}"] = np.exp(6.0 + 1.2 * (z[:, j] + level))
        elif j % 3 == 1:
            numeric[f"ratio_{j:03}"] = 1.0 / (1.0 + np.exp(-(z[:, j] + level)))
        else:
            numeric[f"contrast_{j:03}"] = 20.0 * (z[:, j] + level)
    return RawTable(ids, numeric, {})


def _clinical(ids: tuple[str, ...], late: Floats, rng: np.random.Generator) -> RawTable:
    n = len(ids)

    def some_missing(values: Floats, part: float) -> Floats:
        return np.where(rng.random(n) < part, np.nan, values)

    def words(chosen: npt.NDArray[np.bool_], yes: str, no: str, part: float) -> tuple[str | None, ...]:
        gone = rng.random(n) < part
        return tuple(None if g else yes if c else no for c, g in zip(chosen, gone, strict=True))

    ages: Floats = np.rint(np.clip(62 + 3 * late + 10 * rng.standard_normal(n), 26, 90))
    years: Floats = np.rint(rng.uniform(1992, 2013, n))
    numeric = {"num_age": some_missing(ages, 0.03), "num_year_dx": some_missing(years, 0.02)}
    categorical = {
        "cat_sex": words(rng.random(n) < rng.uniform(0.3, 0.7), "FEMALE", "MALE", 0.0),
        "cat_prior_dx": words(rng.random(n) < 0.1 + 0.05 * late, "Yes", "No", 0.01),
        "cat_race": words(rng.random(n) < 0.8, "WHITE", "ASIAN", 0.2),
        "cat_retrospective": words(rng.random(n) < 0.6, "YES", "NO", 0.01),
    }
    return RawTable(ids, numeric, categorical)
