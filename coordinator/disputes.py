"""Who of a run dealt shares that do not open, by the complaints of its shareholders, and what becomes of the attempt.

Kept over all attempts of a run: a liar that harms one institution at a time is convicted by the sum of them. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from coordinator.attempt import DISPUTED, Attempt
from security.secure_sum.complaints import BAD_SHARES, convicted

EXPELLED: Final = "expelled"
"""Standing of an institution that takes no further part in the run."""


@dataclass
class Disputes:
    """The complaints of a run.

    Attributes:
        max_colluders: how many institutions lie at most.
        expelled: institution to the code that convicts it.
        pairs: (complainer, dealer) of whom one lies. In memory only: after a restart they are counted anew.
        sitting: who sits the next attempt out, so that it can go on without either side of a dispute.
    """

    max_colluders: int
    expelled: dict[str, str] = field(default_factory=dict)
    pairs: set[tuple[str, str]] = field(default_factory=set)
    sitting: frozenset[str] = frozenset()

    def add(self, complainer: str, dealers: Iterable[str]) -> dict[str, str]:
        """Counts a complaint; returns whom all of them convict, by code."""
        self.pairs |= {(complainer, dealer) for dealer in dealers}
        return convicted(self.pairs, self.max_colluders)

    def stop(self, attempt: Attempt) -> str:
        """The code with which an attempt must end before its first survivor list is shown; empty: it can go on.

        A convicted dealer's masks are in everybody's vectors, so the next attempt begins without it. Where nobody is
        convicted, the attempt goes on as long as enough hold a good share of each dealer complained of; otherwise both
        sides of those disputes sit the next one out.
        """
        disputed = attempt.disputed if not attempt.signed_once else frozenset()
        dealers = {dealer for _, dealer in disputed}
        if any(self.expelled.get(dealer) == BAD_SHARES for dealer in dealers):
            return BAD_SHARES
        lost = {dealer for dealer in dealers if attempt.holders(dealer) < attempt.machine.attempt.share_threshold}
        if lost:
            self.sitting = frozenset(one for pair in disputed if pair[1] in lost for one in pair)
            return DISPUTED
        return ""
