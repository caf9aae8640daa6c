"""No differencing (rule 9): which cohorts may be opened beside which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, Literal

from security.secure_sum.errors import DifferencingError

Cohort = frozenset[str]
MAX_COHORTS: Final = 12
"""Distinct cohorts of one quantity in a round; 2^12 unions are checked at most."""


def subtracts_below(k_min: int, cohorts: Iterable[Cohort]) -> int | None:
    """The smallest difference below `k_min` that sums over these cohorts would give; None if there is none.

    Every cohort is held against every disjoint union of the others that lies inside it (a single one is a union too).
    More than `MAX_COHORTS` distinct cohorts cannot be checked and count as a difference of 0.

    Args:
        k_min: the privacy floor.
        cohorts: of one quantity in one round; equal ones count once.
    """
    distinct = sorted(set(cohorts), key=lambda c: (len(c), sorted(c)))
    if len(distinct) > MAX_COHORTS:
        return 0
    differences = [
        len(whole - union) for whole in distinct for union in _disjoint_unions([c for c in distinct if c < whole])
    ]
    return min((size for size in differences if 0 < size < k_min), default=None)


def check_no_differencing(quantity: str, cohorts: Iterable[Cohort], k_min: int) -> None:
    """Refuses cohorts of one quantity in one round whose sums subtract to fewer than `k_min` institutions.

    Args:
        quantity: named in the error.
        cohorts: cohorts with at least `k_min` members each.
        k_min: the privacy floor.

    Raises:
        DifferencingError: some difference has 1 to k_min − 1 members, or there are more cohorts than can be checked.
    """
    rest = subtracts_below(k_min, cohorts)
    if rest is not None:
        raise DifferencingError(
            f"sums of {quantity!r} would subtract to {rest} institutions, below the floor of {k_min}.",
            remedy="Merge the two cohorts in the plan, or wait for a round with more institutions.",
        )


def _disjoint_unions(cohorts: Sequence[Cohort]) -> Iterable[Cohort]:
    for size in range(1, len(cohorts) + 1):
        for chosen in combinations(cohorts, size):
            union = frozenset().union(*chosen)
            if len(union) == sum(len(c) for c in chosen):
                yield union


@dataclass(frozen=True)
class CohortHistory:
    """Cohorts that this institution lately helped to open, by part: the guard against differences across rounds.

    Attributes:
        recent: part name to its cohorts, newest last.
        keep: how many rounds back a cohort counts as recent.
    """

    recent: Mapping[str, tuple[Cohort, ...]]
    keep: int = 5

    def similar(self, opened: Mapping[str, Cohort], max_colluders: int) -> tuple[str, ...]:
        """Parts whose cohort differs from a recent one by 1 to max_colluders + 1 members."""
        return tuple(
            part
            for part, cohort in opened.items()
            if any(0 < len(cohort ^ old) <= max_colluders + 1 for old in self.recent.get(part, ()))
        )

    def with_opened(self, opened: Mapping[str, Cohort]) -> CohortHistory:
        """The history after one more round."""
        return CohortHistory(
            {**self.recent, **{p: (*self.recent.get(p, ()), c)[-self.keep :] for p, c in opened.items()}}, self.keep
        )


SimilarCohorts = Literal["log", "withhold"]
