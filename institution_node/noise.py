"""Differential privacy of what is not a gradient: discrete Gaussian noise on words, charged before it is released."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt

from federation.statistic_words import StatisticsEncoding
from security.privacy.accountant import Accountant
from security.privacy.events import GaussianRelease, PrivacyEvent
from security.privacy.ledger import BudgetExceededError, PrivacyLedger
from security.privacy.mechanisms import add_discrete_gaussian, rounded_sensitivity
from security.privacy.randomness import Randomness


class Charges:
    """One run's way to the ledger: spend first, release after. Without a ledger nothing is charged.

    Args:
        ledger: None where the plan has no differential privacy. Its own limit is the institution's, over all runs.
        run: hex.
        limit: the plan's epsilon, for this run alone: what its accepted digest says that it spends at most.
    """

    def __init__(self, ledger: PrivacyLedger | None, run: str, limit: float) -> None:
        self._ledger, self._run, self._limit = ledger, run, limit
        # Without a ledger nothing is accounted, and the accounting library takes seconds to load.
        self._own = None if ledger is None else Accountant(c.event for c in ledger.charges if c.run == run)

    def spend(self, purpose: str, round_: int, event: PrivacyEvent) -> None:
        """Charges a release that is about to be made.

        Raises:
            BudgetExceededError: it would pass the plan's epsilon or the institution's limit; nothing is charged.
        """
        if self._ledger is None or self._own is None:
            return
        after, delta = self._own.copy(), self._ledger.spent()[1]
        after.add(event)
        would_be = after.epsilon(delta)
        if not would_be <= self._limit * (1 + 1e-9):  # so written, a NaN is refused too
            spent = self._own.epsilon(delta)
            raise BudgetExceededError(
                spent=spent, would_be=would_be, limit=self._limit, delta=delta, place="differential_privacy.epsilon"
            )
        self._ledger.reserve(purpose, self._run, round_, event, key=None)
        self._own = after

    def spent(self) -> tuple[float, float] | None:
        """Epsilon spent by the institution over all runs, and its limit; None without a ledger."""
        if self._ledger is None:
            return None
        spent = self._ledger.spent()[0]
        return spent, spent + self._ledger.left()


def add_noise(
    words: npt.NDArray[np.uint64],
    encoding: StatisticsEncoding,
    sensitivity: float,
    multiplier: float,
    rng: Randomness,
) -> GaussianRelease:
    """Adds noise in place and says what releasing the words costs.

    Args:
        words: of one vector.
        encoding: that made them.
        sensitivity: L2, of the vector in its own units, for one patient more or less.
        multiplier: noise standard deviation over sensitivity.
        rng: the node's own.
    """
    quanta = rounded_sensitivity(sensitivity * encoding.scale, len(words))
    add_discrete_gaussian(words, Fraction(multiplier * quanta), rng)
    return GaussianRelease(multiplier)
