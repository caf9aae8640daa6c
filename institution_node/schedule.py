"""The learning rate of a round: a pure function of the plan, the same at every institution."""

from __future__ import annotations

import math
from typing import Protocol

from security.errors import ConfigurationError, LocalMisuseError


class ScheduleSettings(Protocol):
    """The part of the plan's training settings that decides the learning rate."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def schedule_period(self) -> int: ...
    @property
    def schedule_factor(self) -> float: ...


def learning_rate(settings: ScheduleSettings, round_index: int, rounds: int) -> float:
    """η of one round, before blending scales it per component.

    Args:
        settings: the plan's training settings.
        round_index: 0 for the first training round, below `rounds`.
        rounds: training rounds of the run.

    Returns:
        `constant`: η. `cosine`: η·(1 + cos(π·index/rounds))/2, η in the first round and above 0 in the last. `step`:
        η·factor^⌊index/period⌋.

    Raises:
        LocalMisuseError: no such round.
        ConfigurationError: an unknown schedule.
    """
    if not 0 <= round_index < rounds:
        raise LocalMisuseError(f"round index {round_index} is not in [0, {rounds}).", remedy="Count rounds from 0.")
    if settings.schedule == "constant":
        return settings.learning_rate
    if settings.schedule == "cosine":
        return settings.learning_rate * (1.0 + math.cos(math.pi * round_index / rounds)) / 2.0
    if settings.schedule == "step":
        drops = round_index // max(1, settings.schedule_period)
        return settings.learning_rate * float(settings.schedule_factor**drops)
    raise ConfigurationError(
        f"unknown schedule {settings.schedule!r}.", remedy="Use constant, cosine or step.", place="training.schedule"
    )
