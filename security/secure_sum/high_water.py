"""The durable high-water mark: what an institution has ever joined and signed in one run (rule 7).

A value; the shell writes it to disk before the key message or the signature that it allows leaves the process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from security.secure_sum.errors import ContradictoryListError, StaleAttemptError


@dataclass(frozen=True)
class HighWaterMark:
    """Highest attempt joined in a run, and the lists signed in that round.

    Attributes:
        round: −1 before the first.
        attempt: 0 before the first.
        signed: sum name to digest of the list signed in (round, any attempt).
    """

    round: int = -1
    attempt: int = 0
    signed: Mapping[str, bytes] = field(default_factory=dict)

    def join(self, round_: int, attempt: int) -> HighWaterMark:
        """The mark after joining an attempt.

        Raises:
            StaleAttemptError: at or below the mark, or a list of that round is signed already.
        """
        if (round_, attempt) <= (self.round, self.attempt):
            raise StaleAttemptError(
                f"round {round_}, attempt {attempt} is not above the mark, round {self.round}, attempt {self.attempt}.",
                remedy="The coordinator repeats a round or was restored from an old state: its operator must start a "
                "new run.",
            )
        if round_ == self.round and self.signed:
            raise StaleAttemptError(
                f"round {round_} has a signed survivor list: there is no other attempt of it.",
                remedy="The coordinator must resume that list or burn the round and open the next.",
            )
        return HighWaterMark(round_, attempt, {})

    def sign(self, round_: int, attempt: int, sum_name: str, list_digest: bytes) -> HighWaterMark:
        """The mark after signing a list in the current attempt; signing the same list again changes nothing.

        Raises:
            StaleAttemptError: the attempt is not the one that was joined last.
            ContradictoryListError: another list of that sum is signed already.
        """
        if (round_, attempt) != (self.round, self.attempt):
            raise StaleAttemptError(
                f"round {round_}, attempt {attempt} is not the one joined last, round {self.round}, attempt "
                f"{self.attempt}.",
                remedy="The coordinator asks to sign for an attempt that is over.",
            )
        known = self.signed.get(sum_name)
        if known is not None and known != list_digest:
            raise ContradictoryListError(
                f"another survivor list of sum {sum_name!r} in round {self.round} is signed already.",
                remedy="The coordinator shows two lists: report it to the federation.",
            )
        return replace(self, signed={**self.signed, sum_name: list_digest})
