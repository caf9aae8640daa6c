"""Who masks with whom, and who holds whose shares (rule 10). Values only: the same for everybody who saw the same keys.

Up to `complete_up_to` institutions everybody masks with everybody. Beyond it they sit in a circle, in an order that is
drawn afresh for each attempt, and mask with the nearest k/2 on either side (the Harary graph of Bell et al. 2020). The
circle makes the question that privacy hangs on exact and cheap: who would have to be missing to tear it apart.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from security.errors import ConfigurationError

MAX_COMPLETE_GRAPH: Final = 100
"""Largest roster whose mask graph is complete."""
MAX_ROSTER: Final = 1000
"""Largest roster. Beyond it nobody has measured anything."""


@dataclass(frozen=True)
class SparseGraph:
    """Size of the graph where it is not complete (see `graph_bound.neighbours_for`).

    Attributes:
        neighbours: k, even: mask neighbours and shareholders of each institution, half on either side of it.
        share_threshold: shares that give an institution's secret back, of the k that its neighbours hold. Above
            `max_colluders`; a higher one is harder to steal, and easier to lose.
        complete_up_to: parts with at most so many contributors are masked over their complete graph.
    """

    neighbours: int
    share_threshold: int
    complete_up_to: int = MAX_COMPLETE_GRAPH

    def __post_init__(self) -> None:
        if self.neighbours < 2 or self.neighbours % 2:
            raise ConfigurationError("a circle has an even number of neighbours, half on either side.")
        if not 2 <= self.share_threshold <= self.neighbours:
            raise ConfigurationError("shares are held by the neighbours: 2 ≤ share threshold ≤ neighbours.")


class Circle:
    """The mask graph of one part, or of the shares: institutions in a circle, tied to the `reach` next on either side.

    Args:
        order: at least one institution, each once.
        reach: how far ties go on either side; None: everybody is tied to everybody.
    """

    def __init__(self, order: Sequence[str], reach: int | None) -> None:
        self.order = tuple(order)
        self.reach = reach if reach is not None and 2 * reach + 1 < len(self.order) else None
        self._position = {name: x for x, name in enumerate(self.order)}

    def __contains__(self, name: str) -> bool:
        return name in self._position

    def neighbours(self, name: str) -> tuple[str, ...]:
        """Who is tied to `name`, along the circle from its left to its right; all others in a complete graph.

        Raises:
            KeyError: it is not in the circle.
        """
        at = self._position[name]
        if self.reach is None:
            return self.order[:at] + self.order[at + 1 :]
        around = self.order[at:] + self.order[:at]
        return around[-self.reach :] + around[1 : self.reach + 1]

    def holds(self, alive: Collection[str], missing: int) -> bool:
        """Whether those of `alive` stay connected among themselves whichever `missing` of them are taken out.

        Exact. Survivors next to each other along the circle are tied unless `reach` or more positions between them are
        empty; so they fall apart if and only if there are two such gaps with somebody on both sides. What that takes is
        the fewest survivors within two separate windows of `reach` positions, with a survivor left between them on
        either way round.
        """
        if self.reach is None:
            return True
        there = frozenset(alive)
        present = np.fromiter((name in there for name in self.order), dtype=np.int64, count=len(self.order))
        fewest = _fewest_that_part(present, self.reach)
        return fewest is None or fewest > missing


def _fewest_that_part(present: npt.NDArray[np.int64], reach: int) -> int | None:
    """How many of the present must go so that the rest of a circle falls into two; None: it cannot be torn.

    Args:
        present: 0 or 1 by position.
        reach: positions to which each is tied on either side.
    """
    size = len(present)
    twice = np.concatenate((present, present))
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(twice)))
    # Present within the window of `reach` positions from each position on.
    weight = before[reach : reach + size] - before[:size]
    places = np.flatnonzero(twice)
    if not len(places):
        return None
    starts = np.arange(size)
    # A second window may begin beyond the next one present after the first, and end before the last one ahead of it.
    following = np.searchsorted(places, starts + reach)
    ahead = np.searchsorted(places, starts + size) - 1
    ok = (following < len(places)) & (ahead >= 0)
    earliest = places[np.minimum(following, len(places) - 1)] + 1
    latest = places[np.maximum(ahead, 0)] - reach
    ok &= earliest <= latest
    if not ok.any():
        return None
    first, last, own = earliest[ok], latest[ok], weight[ok]
    return int((own + _least_within(np.concatenate((weight, weight)), first, last)).min())


def _least_within(
    values: npt.NDArray[np.int64], first: npt.NDArray[np.int64], last: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The least of `values[first … last]` for each pair, by minima over windows of powers of two."""
    tables = [values]
    while 2 ** len(tables) <= len(values):
        half = 2 ** (len(tables) - 1)
        tables.append(np.minimum(tables[-1][:-half], tables[-1][half:]))
    level = np.frexp(last - first + 1)[1] - 1  # whole part of the binary logarithm, exactly
    found = np.empty(len(first), np.int64)
    for x in range(len(tables)):
        at = level == x
        found[at] = np.minimum(tables[x][first[at]], tables[x][last[at] - 2**x + 1])
    return found


class Graph:
    """Mask graphs and shareholders of one attempt, among those who sent keys.

    Args:
        roster: names in plan order.
        members: who sent keys (and, where `sparse`, revealed).
        sparse: None: the complete graph, whose shareholders are the whole roster.
        order: `members` in circle order; only where `sparse`.
    """

    def __init__(
        self, roster: Iterable[str], members: Iterable[str], sparse: SparseGraph | None, order: Sequence[str] = ()
    ) -> None:
        self.members = frozenset(members)
        self.sparse = sparse
        positions = {name: x for x, name in enumerate(roster, start=1)}
        self.shares = len(positions) if sparse is None else sparse.neighbours
        self._holders = {name: x for name, x in positions.items() if name in self.members}
        self._order = tuple(order)
        self._around: dict[str, dict[str, int]] = {}
        self._circle = Circle(self._order, sparse.neighbours // 2) if sparse is not None else None
        if sparse is not None and frozenset(order) != self.members:
            raise ValueError("a circle holds exactly the members")

    def shareholders(self, dealer: str) -> Mapping[str, int]:
        """Who holds shares of the dealer's secrets, and each one's x-coordinate, from 1 on."""
        if self._circle is None:
            return self._holders
        found = self._around.get(dealer)
        if found is None:
            found = {name: x for x, name in enumerate(self._circle.neighbours(dealer), start=1)}
            self._around[dealer] = found
        return found

    def circle(self, contributors: frozenset[str]) -> Circle:
        """The mask graph of a part with these contributors, those of the cohort."""
        return _circle_of(self._order, self.sparse, contributors)


@lru_cache(maxsize=256)  # a part's circle is asked for at every step; parts of one attempt often share contributors
def _circle_of(order: tuple[str, ...], sparse: SparseGraph | None, contributors: frozenset[str]) -> Circle:
    if sparse is None or len(contributors) <= sparse.complete_up_to:
        return Circle(sorted(contributors), None)
    return Circle([name for name in order if name in contributors], sparse.neighbours // 2)
