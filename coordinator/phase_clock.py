"""How long the phases of a round take, and whether the present one is late."""

from __future__ import annotations

from datetime import datetime, timedelta


class PhaseClock:
    """The phases of one round.

    Args:
        now: when the first one begins.

    Attributes:
        began: when the present phase began.
        seconds: spent so far, by phase that is over.
    """

    def __init__(self, now: datetime) -> None:
        self.began = now
        self.seconds: dict[str, float] = {}
        self._phase = ""

    def late(self, now: datetime, seconds: float) -> bool:
        """Whether the present phase has lasted so long."""
        return now - self.began >= timedelta(seconds=seconds)

    def turn(self, phase: str, now: datetime) -> tuple[str, float]:
        """Begins the next phase; returns the one that is over, empty for none, and how long it took."""
        ended, took = self._phase, (now - self.began).total_seconds()
        if ended:
            self.seconds[ended] = self.seconds.get(ended, 0.0) + took
        self._phase, self.began = phase, now
        return ended, took
