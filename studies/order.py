"""Which runs tell most, first. Pure.

The corrected interval of J splits is as wide as √(1/J + n_test/n_train): from 10 splits to 40 it shrinks by a ninth.
So one fold of every seed of every study comes before the other folds, and the main comparison before the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from studies.catalogue import Study
from studies.cells import Cell


def informative(studies: Sequence[Study], seeds: Sequence[int], folds: int) -> list[Cell]:
    """All cells of the studies, what tells most first, none twice.

    Args:
        studies: the first of them is the main comparison.
        seeds: of the splits.
        folds: of each seed.
    """
    cells = [cell for study in studies for cell in study.cells(seeds, [0])]
    cells += [cell for study in studies[:1] for cell in study.cells(seeds, range(1, folds))]
    cells += [cell for fold in range(1, folds) for study in studies[1:] for cell in study.cells(seeds, [fold])]
    return list(dict.fromkeys(cells))
