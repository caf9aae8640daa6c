"""Scales of a plot: ticks that people read easily, and values to pixels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
ZERO_GAP: Final = 0.12
"""Part of a logarithmic axis that is kept for zeros, below the smallest decade."""


class Scale(Protocol):
    """A value's place on an axis, 0 (low end) to 1, and the ticks to draw."""

    def place(self, value: float) -> float:
        """0 to 1; values outside are held at the ends."""

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels."""


def nice_step(span: float, wanted: int) -> float:
    """A round step that divides `span` into about `wanted` parts.

    Args:
        span: above 0.
        wanted: at least 1.
    """
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(s * power for s in _STEPS if s * power >= raw * 0.999)


@dataclass(frozen=True)
class Linear:
    """A linear scale with round ends; `percent` labels 0.5 as 50%."""

    low: float
    high: float
    percent: bool = False
    whole: bool = False
    wanted: int = 5

    @staticmethod
    def around(
        values: Iterable[float], *, percent: bool = False, zero: bool = False, least_span: float = 0.0, wanted: int = 5
    ) -> Linear:
        """A scale around finite values; 0 to 1 where there are none. `zero` keeps 0 on it."""
        found = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
        low, high = min(found), max(found)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0)
        span = max(high - low, least_span, abs(high) * 0.02, 1e-6)
        middle = (low + high) / 2
        if not zero:
            low, high = min(low, middle - span / 2), max(high, middle + span / 2)
        high = max(high, low + span)
        step = nice_step(high - low, wanted)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
        if percent:
            low, high = max(0.0, low), min(1.0, high)
        return Linear(low, high, percent, wanted=wanted)

    def place(self, value: float) -> float:
        """0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low))) if self.high > self.low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Round values with no more digits than they need."""
        if self.high <= self.low:
            return [(0.5, f"{self.low:g}")]
        step = nice_step(self.high - self.low, self.wanted)
        if self.whole:
            step = max(1.0, math.ceil(step))
        first = math.ceil(self.low / step - 1e-9)
        values = [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(self.place(v), self._label(v, step)) for v in values]

    def _label(self, value: float, step: float) -> str:
        if self.percent:
            digits = 0 if step >= 0.01 - 1e-9 and abs(step * 100 - round(step * 100)) < 1e-6 else 1
            return f"{value * 100:.{digits}f}%"
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
            digits += 1  # 2.5 needs one more digit than its power
        return f"{value + 0.0:,.{digits}f}"


@dataclass(frozen=True)
class Logarithmic:
    """Decades, with a place of its own for zero at the bottom: scores of DGB are often exactly 0."""

    lowest: int
    highest: int

    @staticmethod
    def around(values: Iterable[float]) -> Logarithmic:
        """Decades around the positive values."""
        logs = [math.log10(v) for v in values if v > 0 and math.isfinite(v)] or [0.0]
        lowest, highest = math.floor(min(logs)), math.ceil(max(logs))
        return Logarithmic(lowest, max(highest, lowest + 1))

    def place(self, value: float) -> float:
        """0 to 1; 0 for values that are not positive."""
        if value <= 0:
            return 0.0
        part = (math.log10(value) - self.lowest) / (self.highest - self.lowest)
        return ZERO_GAP + (1 - ZERO_GAP) * min(1.0, max(0.0, part))

    def ticks(self) -> list[tuple[float, str]]:
        """Zero and the decades, thinned to at most six."""
        step = max(1, math.ceil((self.highest - self.lowest) / 5))
        return [(0.0, "0")] + [
            (self.place(10.0**e), f"{10.0**e:g}" if -4 < e < 5 else f"1e{e}")
            for e in range(self.lowest, self.highest + 1, step)
        ]
