"""Ratios that must not worsen: what was measured, against bench/baseline.json. No I/O, no clock.

Never a time: machines differ and are shared. Numerator and denominator of each ratio are measured in turn, in the same
run, in processor seconds where that is possible.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table

from security.errors import ConfigurationError

ALLOWED: Final = 4 / 3
"""A ratio that is more than a third above its baseline fails."""

Readings = Mapping[str, Sequence[float]]
"""Ratio to its readings."""


@dataclass(frozen=True)
class Verdict:
    """One ratio beside its baseline.

    Attributes:
        name: of the ratio.
        measured: the median of all readings.
        baseline: committed.
        readings: how many.
    """

    name: str
    measured: float
    baseline: float
    readings: int

    @property
    def worsened(self) -> float:
        """1 where nothing changed; above, it got worse."""
        return self.measured / self.baseline

    @property
    def passed(self) -> bool:
        """Whether it worsened by a third at most; never for NaN."""
        return self.worsened <= ALLOWED


def read_baseline(text: str, names: Sequence[str]) -> dict[str, float]:
    """The committed ratios.

    Raises:
        ConfigurationError: it is not a table of positive numbers for exactly these names.
    """
    remedy = "Measure it again: `python -m deploy.bench_small --write-baseline`, and say in the commit why it moved."
    try:
        found = {str(name): float(value) for name, value in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"the baseline cannot be read: {error}.", remedy=remedy) from None
    if set(found) != set(names):
        strange = ", ".join(sorted(set(found) ^ set(names)))
        raise ConfigurationError(f"the baseline has not the ratios that are measured: {strange}.", remedy=remedy)
    if not all(math.isfinite(value) and value > 0 for value in found.values()):
        raise ConfigurationError("the baseline holds a ratio that is no positive number.", remedy=remedy)
    return found


def verdicts(readings: Readings, baseline: Mapping[str, float]) -> list[Verdict]:
    """One verdict a ratio, in the baseline's order."""
    return [
        Verdict(name, statistics.median(readings[name]), allowed, len(readings[name]))
        for name, allowed in baseline.items()
    ]


def judge(measure: Callable[[Sequence[str]], Readings], baseline: Mapping[str, float], tries: int = 3) -> list[Verdict]:
    """Measures, and measures what failed again: a real slowdown is there every time, a busy neighbour is not.

    Args:
        measure: takes the names of the ratios that are wanted; may give others too.
        baseline: what they are held against.
        tries: a ratio fails if it does in all of them.
    """
    found: dict[str, Verdict] = {}
    wanted = list(baseline)
    for _ in range(tries):
        readings = measure(wanted)
        found |= {v.name: v for v in verdicts(readings, {name: baseline[name] for name in wanted})}
        wanted = [name for name in wanted if not found[name].passed]
        if not wanted:
            break
    return [found[name] for name in baseline]


def table(judged: Sequence[Verdict], meanings: Mapping[str, str]) -> Table:
    """The verdicts for people."""
    t = Table(title="Ratios that must not worsen by a third", box=SIMPLE_HEAD)
    t.add_column("ratio")
    for heading in ("now", "baseline", "change"):
        t.add_column(heading, justify="right", no_wrap=True)
    t.add_column("", no_wrap=True)
    for v in judged:
        said = "ok" if v.passed else "[bold red]worse[/]"
        t.add_row(meanings[v.name], f"{v.measured:.2f}", f"{v.baseline:.2f}", f"{v.worsened - 1:+.0%}", said)
    return t
