"""Whether memory and open files of a process stay where they were, from readings over many rounds. No I/O."""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from deploy.bench_watch import Usage

WARM_ROUNDS: Final = 10
"""After so many rounds caches, pools and the allocator are as they will be."""
MEMORY_MARGIN: Final = 0.05
MEMORY_MARGIN_BYTES: Final = 8 << 20
"""Typical memory may end 5% and 8 MiB above where it was: over 190 rounds a leak of 50 KiB a round is seen."""
FILES_MARGIN: Final = 2
"""A transfer holds a file or a connection for a moment."""


@dataclass(frozen=True)
class Drift:
    """One process early and late.

    Attributes:
        name: of the process.
        memory: median `RssAnon`, bytes, in the early and the late rounds.
        peak: the largest `RssAnon` in them.
        files: median of its open file descriptors in them.
    """

    name: str
    memory: tuple[float, float]
    peak: tuple[float, float]
    files: tuple[float, float]

    @property
    def passed(self) -> bool:
        """Whether it ended where it was, within the margins; peaks may be 10% and 16 MiB higher, being less steady."""
        return (
            _within(self.memory, MEMORY_MARGIN, MEMORY_MARGIN_BYTES)
            and _within(self.peak, 2 * MEMORY_MARGIN, 2 * MEMORY_MARGIN_BYTES)
            and self.files[1] <= self.files[0] + FILES_MARGIN
        )


def _within(values: tuple[float, float], share: float, size: float) -> bool:
    early, late = values
    return late <= early * (1 + share) + size


def windows(commits: Sequence[float]) -> tuple[tuple[float, float], tuple[float, float]]:
    """The moments between which early and late readings are taken: rounds 10 to 20, and as many at the end.

    Args:
        commits: moment of each round's commit, from round 1 on.

    Raises:
        ValueError: too few rounds to tell.
    """
    length = min(WARM_ROUNDS, (len(commits) - WARM_ROUNDS) // 2)
    if length < 2:
        raise ValueError(f"{len(commits)} rounds do not tell what grows; {WARM_ROUNDS + 4} at least")
    early = (commits[WARM_ROUNDS - 1], commits[WARM_ROUNDS - 1 + length])
    return early, (commits[-1 - length], commits[-1])


def drift(name: str, usage: Usage, commits: Sequence[float]) -> Drift:
    """One process, early and late.

    Raises:
        ValueError: too few rounds, or a window without a reading.
    """
    memory: list[list[float]] = []
    files: list[list[int]] = []
    for begin, end in windows(commits):
        inside = slice(bisect_left(usage.times, begin), bisect_right(usage.times, end))
        memory.append(usage.memory[inside])
        files.append(usage.files[inside])
    if not all(memory):
        raise ValueError(f"{name} was not read in the rounds that count")
    typical, open_ = ([statistics.median(part) for part in parts] for parts in (memory, files))
    return Drift(name, (typical[0], typical[1]), (max(memory[0]), max(memory[1])), (open_[0], open_[1]))


def table(drifts: Iterable[Drift], rounds: int) -> Table:
    """The drifts for people."""
    t = Table(title=f"After round {WARM_ROUNDS}, and at the end of {rounds}", box=SIMPLE_HEAD)
    t.add_column("process", no_wrap=True)
    for heading in ("RssAnon MiB", "at the end", "peak MiB", "at the end", "open files", "at the end"):
        t.add_column(heading, justify="right")
    t.add_column("")
    for d in drifts:
        sizes = [f"{value / 2**20:.1f}" for value in (*d.memory, *d.peak)]
        said = "ok" if d.passed else "[bold red]grew[/]"
        t.add_row(d.name, *sizes, f"{d.files[0]:.0f}", f"{d.files[1]:.0f}", said)
    return t
