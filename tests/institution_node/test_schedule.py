from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from institution_node.schedule import learning_rate
from security.errors import ConfigurationError, LocalMisuseError


@dataclass(frozen=True)
class Settings:
    schedule: str = "constant"
    learning_rate: float = 0.1
    schedule_period: int = 2
    schedule_factor: float = 0.5


def test_constant_and_step() -> None:
    assert [learning_rate(Settings(), k, 5) for k in range(5)] == [0.1] * 5
    stepped = [learning_rate(Settings("step"), k, 5) for k in range(5)]
    assert stepped == [0.1, 0.1, 0.05, 0.05, 0.025]


@given(st.integers(1, 200))
def test_cosine_starts_at_the_rate_falls_and_never_reaches_zero(rounds: int) -> None:
    rates = [learning_rate(Settings("cosine"), k, rounds) for k in range(rounds)]
    assert rates[0] == 0.1
    assert all(a > b for a, b in pairwise(rates))
    assert rates[-1] > 0.0


def test_a_round_outside_the_run_and_an_unknown_schedule_are_refused() -> None:
    for index in (-1, 3):
        with pytest.raises(LocalMisuseError):
            learning_rate(Settings(), index, 3)
    with pytest.raises(ConfigurationError, match="unknown schedule"):
        learning_rate(Settings("linear"), 0, 3)
