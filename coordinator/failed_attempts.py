"""What becomes of an attempt that cannot go on: tried again if no list was shown yet, otherwise the round number is
burnt (DESIGN.md, "Secure sum", rule 7). Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from coordinator.attempt import Attempt

MAX_ATTEMPTS: Final = 3
"""Attempts of a round that end because too many institutions say that they cannot take part."""


@dataclass(frozen=True)
class Next:
    """What to do: end the run as failed (and why), begin another attempt, commit what is open, or burn the round."""

    step: Literal["fail", "again", "commit", "burn"]
    reason: str = ""


def after_failure(attempt: Attempt, round_: int, burnt: int, code: str) -> Next:
    """What follows an attempt that failed.

    Args:
        attempt: it.
        round_: its round.
        burnt: rounds of this run that were burnt since the coordinator began.
        code: why it failed.
    """
    stale = attempt.stale()
    if attempt.refused():
        reason = "does not follow from the rounds before: this coordinator's state is old or damaged"
        return Next("fail", f"institutions refuse round {round_}, which {reason}")
    if stale and burnt:
        return Next("fail", "institutions have seen later rounds than this coordinator: its state is old")
    if not attempt.signed_once and not stale:
        cause = attempt.unable()
        if cause and attempt.number >= MAX_ATTEMPTS:
            return Next("fail", f"too many institutions cannot take part in round {round_} ({cause})")
        return Next("again")
    if round_ == 0:
        names = "".join(f" by {name}" for name in sorted(attempt.convicted))
        return Next("fail", f"the run's first sums could not be opened ({code}{names}); start a new run")
    return Next("commit" if attempt.opened else "burn")  # where sum A is open it stands; its losses are left out
