"""No differencing (rule 9): which cohorts may be opened beside which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from security.secure_sum.errors import DifferencingError

Cohort = frozenset[str]
MAX_COHORTS: Final = 12
"""Distinct cohorts of one quantity in a round."""
MAX_SMALL_SETS: Final = 1 << 11
"""Sets of fewer than `k_min` institutions that are tried before the cohorts count as too entangled to check."""
_PRIMES: Final = (2, 2**31 - 1)
"""2: what the low bits of a ring mod 2^k tell. The other stands for the rationals: no determinant of at most 12 × 12
zeros and ones reaches it (Hadamard: 3645)."""

_Column = tuple[int, ...]
"""One piece: 1 for each cohort that it is in."""
_Kind = tuple[_Column, ...]
"""One institution: its pieces, in order."""


def institution_of(piece: str) -> str:
    """Whose value a piece is of: `a` of `a/mrna+image`, and of `a`."""
    return piece.partition("/")[0]


def subtracts_below(k_min: int, cohorts: Iterable[Cohort]) -> int | None:
    """Fewest institutions, if below `k_min`, on which some combination of the cohorts' sums depends; None: none does.

    Every combination counts, not only a total less disjoint parts of it. {1,2,3,4} less {2,3,4,5} is institution 1 to
    whoever colludes with 5; {1,2,3} and {1,4,5} less {2,3,4,5} is twice institution 1. A combination that depends on a
    set W alone vanishes outside W; there is one if and only if the cohorts without W have a smaller rank than with it.
    `k_min` leaves room for `max_colluders` in W who know their own values.

    Where an institution's value is a sum of pieces, some of which another cohort's sum holds too (its patients by
    combination of modalities), each piece is a column of its own, and leaves W with its institution. So {1, 2, 3} with
    all pieces less {1, 2, 3} without 1's second piece is that piece.

    Args:
        k_min: the privacy floor.
        cohorts: of one quantity in one round: institutions, or `institution/piece`; equal ones count once.

    Returns:
        That number; 0 if there are too many cohorts to check, or too entangled ones.
    """
    return _fewest(k_min, frozenset(cohorts))


@lru_cache(maxsize=4096)  # both machines ask again at every step of a sum
def _fewest(k_min: int, cohorts: frozenset[Cohort]) -> int | None:
    if len(cohorts) > MAX_COHORTS:
        return 0
    rows = sorted(cohorts, key=sorted)
    pieces: dict[str, list[_Column]] = {}
    for name in sorted(frozenset().union(*rows)):
        pieces.setdefault(institution_of(name), []).append(tuple(int(name in row) for row in rows))
    kinds = sorted(tuple(sorted(own)) for own in pieces.values())
    doubtful = [prime for prime in _PRIMES if not _always_full_rank(kinds, prime, k_min)]
    if not doubtful:
        return None
    size = {kind: kinds.count(kind) for kind in kinds}  # who is in the same cohorts cannot be told apart
    distinct = sorted(size, key=lambda kind: (size[kind], kind))
    everything = sorted({column for kind in distinct for column in kind})
    found: int | None = None
    for tried, small in enumerate(_small_sets([size[kind] for kind in distinct], k_min)):
        if tried == MAX_SMALL_SETS:
            return 0
        weight = sum(size[distinct[x]] for x in small)
        outside = sorted({column for x, kind in enumerate(distinct) if x not in small for column in kind})
        if found is not None and weight >= found:
            continue
        if any(len(_basis(outside, prime)) < len(_basis(everything, prime)) for prime in doubtful):
            found = weight
    return found


def check_no_differencing(quantity: str, cohorts: Iterable[Cohort], k_min: int) -> None:
    """Refuses cohorts of one quantity in one round whose sums combine to fewer than `k_min` institutions.

    Args:
        quantity: named in the error.
        cohorts: cohorts with at least `k_min` members each.
        k_min: the privacy floor.

    Raises:
        DifferencingError: some combination depends on 1 to k_min − 1 institutions, or it cannot be checked.
    """
    rest = subtracts_below(k_min, cohorts)
    if rest is not None:
        raise DifferencingError(
            f"sums of {quantity!r} would combine to {rest} institutions, below the floor of {k_min}."
            if rest
            else f"the cohorts of {quantity!r} are too many or too entangled to be checked.",
            remedy="Merge the cohorts in the plan, or wait for a round with more institutions.",
        )


def _always_full_rank(kinds: Sequence[_Kind], prime: int, k_min: int) -> bool:
    """Whether `k_min` bases of disjoint institutions are soon found: then no k_min − 1 can be in all of them."""
    rest = [(who, column) for who, kind in enumerate(kinds) for column in kind]
    rank = len(_basis([column for _, column in rest], prime))
    for _ in range(k_min):
        chosen = _basis([column for _, column in rest], prime)
        if len(chosen) < rank:
            return False
        used = {rest[x][0] for x in chosen}
        rest = [(who, column) for who, column in rest if who not in used]
    return True


def _small_sets(sizes: Sequence[int], k_min: int, start: int = 0) -> Iterator[frozenset[int]]:
    """Non-empty sets of indices from `start` on whose sizes add up to less than `k_min`; `sizes` ascend."""
    for x in range(start, len(sizes)):
        if sizes[x] >= k_min:
            return
        yield frozenset((x,))
        for more in _small_sets(sizes, k_min - sizes[x], x + 1):
            yield more | {x}


def _basis(columns: Sequence[_Column], prime: int) -> frozenset[int]:
    """Indices of a largest independent set of columns modulo a prime, the first that fit, by elimination."""
    pivots: dict[int, list[int]] = {}  # row to a column that is 1 there and 0 above
    chosen: list[int] = []
    for x, column in enumerate(columns):
        rest = list(column)
        for row in range(len(rest)):
            if not rest[row]:
                continue
            known = pivots.get(row)
            if known is None:
                inverse = pow(rest[row], -1, prime)
                pivots[row] = [v * inverse % prime for v in rest]
                chosen.append(x)
                break
            factor = rest[row]
            rest = [(v - factor * w) % prime for v, w in zip(rest, known, strict=True)]
        if chosen and len(chosen) == len(columns[0]):
            break
    return frozenset(chosen)


@dataclass(frozen=True)
class CohortHistory:
    """Cohorts that this institution helped to open, by part: the guard against differences across rounds.

    Attributes:
        recent: part name to its cohorts, each once, newest last: whoever repeats one pushes out no other.
        keep: how many different cohorts count as recent.
    """

    recent: Mapping[str, tuple[Cohort, ...]]
    keep: int = 50

    def similar(self, opened: Mapping[str, Cohort], max_colluders: int) -> tuple[str, ...]:
        """Parts whose cohort differs from a recent one by 1 to max_colluders + 1 members, and was not opened before."""
        return tuple(
            part
            for part, cohort in opened.items()
            if cohort not in self.recent.get(part, ())
            and any(0 < len(cohort ^ old) <= max_colluders + 1 for old in self.recent.get(part, ()))
        )

    def with_opened(self, opened: Mapping[str, Cohort]) -> CohortHistory:
        """The history after one more round."""
        later = {
            part: (*(o for o in self.recent.get(part, ()) if o != c), c)[-self.keep :] for part, c in opened.items()
        }
        return CohortHistory({**self.recent, **later}, self.keep)
