"""What the soak calls growth: readings of made-up processes."""

from __future__ import annotations

import pytest

from deploy.bench_drift import FILES_MARGIN, MEMORY_MARGIN_BYTES, Drift, drift, windows
from deploy.bench_watch import Usage

COMMITS = [float(k) for k in range(1, 61)]
MIB = 2**20


def readings(memory: float, growth: float = 0.0, files: int = 10, more: int = 0) -> Usage:
    """Two readings a round; `growth` bytes and `more` files a round."""
    times = [k / 2 for k in range(2, 121)]
    return Usage(
        times=times,
        cpu=[0.0] * len(times),
        memory=[memory + growth * t for t in times],
        files=[files + int(more * t) for t in times],
    )


def test_early_is_after_round_ten_and_late_the_end() -> None:
    assert windows(COMMITS) == ((10.0, 20.0), (50.0, 60.0))
    assert windows(COMMITS[:20]) == ((10.0, 15.0), (15.0, 20.0))


@pytest.mark.parametrize("rounds", [0, 5, 13])
def test_too_few_rounds_tell_nothing(rounds: int) -> None:
    with pytest.raises(ValueError, match="do not tell"):
        drift("node-1", readings(100 * MIB), COMMITS[:rounds])


def test_a_process_that_was_not_read_tells_nothing() -> None:
    with pytest.raises(ValueError, match="node-1 was not read"):
        drift("node-1", Usage(times=[0.5], cpu=[0.0], memory=[1.0], files=[1]), COMMITS)


def test_steady_passes_and_a_leak_a_round_does_not() -> None:
    assert drift("node-1", readings(100 * MIB), COMMITS).passed
    assert drift("node-1", readings(100 * MIB, growth=-MIB), COMMITS).passed
    assert drift("node-1", readings(100 * MIB, growth=0.1 * MIB), COMMITS).passed
    assert not drift("node-1", readings(100 * MIB, growth=0.5 * MIB), COMMITS).passed


def test_open_files_may_not_pile_up() -> None:
    assert not drift("coordinator", readings(100 * MIB, more=1), COMMITS).passed


def test_a_peak_that_grows_is_seen_where_the_typical_memory_stays() -> None:
    steady = (100.0 * MIB, 100.0 * MIB)
    assert Drift("a", steady, steady, (5, 5 + FILES_MARGIN)).passed
    assert not Drift("a", steady, (100.0 * MIB, 110.0 * MIB + 2 * MEMORY_MARGIN_BYTES + 1), (5, 5)).passed
    assert not Drift("a", (100.0 * MIB, 105.0 * MIB + MEMORY_MARGIN_BYTES + 1), steady, (5, 5)).passed
