"""When statistics may be opened for a cohort that differs from another one by few institutions. Pure.

A coordinator that holds the model still (it publishes zeros) and opens the losses of two such cohorts has, as their
difference, the losses of the few. With every list that is signed in between it may choose another model and ask again.
Never to sign such a list would end the losses, and with them DGB, at the first institution that leaves for good. So:

- a cohort is signed at once if it is the one that was opened last, or far from every recent one;
- another one is signed when it has come for the `rounds`-th round in a row, rounds in which nothing of it is due left
  aside; the last losses stand meanwhile;
- every such change doubles the wait of the next one, be it back again: in R rounds there are fewer than
  log2(R / rounds + 1) of them, whatever the coordinator says of who dropped out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from security.secure_sum.cohorts import Cohort, CohortHistory


@dataclass(frozen=True)
class Waiting:
    """What an institution remembers of the cohorts that it has not signed yet. Immutable.

    Attributes:
        survivors: of the last list that had to wait.
        rounds: rounds in a row in which they were those survivors.
        last: the newest of these rounds; a round counts once, however many attempts it has.
        changes: how often a wait has ended in a signature.
    """

    survivors: Cohort = frozenset()
    rounds: int = 0
    last: int = -1
    changes: int = 0

    def seen(self, survivors: Cohort, round_: int) -> Waiting:
        """After a list that has to wait."""
        if survivors != self.survivors:
            return Waiting(survivors, 1, round_, self.changes)
        return Waiting(survivors, self.rounds + (round_ > self.last), max(round_, self.last), self.changes)

    def over(self, rounds: int) -> bool:
        """Whether the survivors seen last may be signed; `rounds` is the plan's first wait."""
        return self.rounds >= rounds << self.changes

    def signed(self, *, waited: bool) -> Waiting:
        """After a signature; `waited`: of a list that had to wait."""
        return Waiting(changes=self.changes + waited)


@dataclass(frozen=True)
class Verdict:
    """What to do with a list.

    Attributes:
        near: parts whose cohort is like another recent one.
        signs: whether it may be signed now.
        waiting: what to remember, signed or not.
    """

    near: tuple[str, ...]
    signs: bool
    waiting: Waiting


def consider(
    history: CohortHistory,
    waiting: Waiting,
    opened: Mapping[str, Cohort],
    survivors: Cohort,
    round_: int,
    max_colluders: int,
    rounds: int,
) -> Verdict:
    """Whether a list of statistics may be signed.

    Args:
        history, waiting: of this institution.
        opened: part to its cohort, as the list would open it.
        survivors: the whole list's.
        round_: the list's.
        max_colluders: of the plan.
        rounds: the plan's first wait.
    """
    near = near_another(history, opened, max_colluders)
    if not near and survivors == waiting.survivors:
        return Verdict(near, True, waiting)  # what it waits for is not due in this round: it goes on waiting
    if not near:
        return Verdict(near, True, waiting.signed(waited=False))
    seen = waiting.seen(survivors, round_)
    return Verdict(near, True, seen.signed(waited=True)) if seen.over(rounds) else Verdict(near, False, seen)


def near_another(history: CohortHistory, opened: Mapping[str, Cohort], max_colluders: int) -> tuple[str, ...]:
    """Parts whose cohort is not the one opened last, and differs from a recent one by 1 to max_colluders + 1 members.

    Args:
        history: of this institution.
        opened: part to its cohort, as a list would open it.
        max_colluders: who may take their own values off the difference.
    """
    return tuple(
        part
        for part, cohort in opened.items()
        if (recent := history.recent.get(part))
        and cohort != recent[-1]
        and any(0 < len(cohort ^ old) <= max_colluders + 1 for old in recent)
    )
