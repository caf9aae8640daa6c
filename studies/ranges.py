"""From whole cohorts to a plan's columns: those in common, with rounded ranges that could be read off a data sheet.

Ranges and categories are taken from the cohorts' tables as published, without labels, and are the same for every seed
and split. Rules, per numeric column:
- values within ±10 that may be negative (z-scores): [-10, 10];
- otherwise the smallest and largest value, rounded outward to the power of ten below their distance;
- a lone -1 below values that are never negative stands for "no such region": the range begins at 0;
- `log1p` where no value is negative and the upper tail is heavy: from the median to the 99th percentile it is more
  than three times as far as from the median down to the first.
Per categorical column: the values that at least `COMMON` patients have, or as many as asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Final

import numpy as np
import numpy.typing as npt

from federation.plan import Column
from federation.tables import RawTable

COMMON: Final = 20
_HEAVY: Final = 3.0
_Z: Final = 10.0


def common_columns(tables: Sequence[RawTable], common: int = COMMON) -> tuple[Column, ...]:
    """Columns that all tables have, with the same kind and any value, in the first table's order.

    Args:
        tables: at least one.
        common: fewest patients of a category that is told apart.
    """
    first, rest = tables[0], tables[1:]
    columns: list[Column] = []
    for name in first.numeric:
        if all(name in table.numeric for table in rest):
            values = np.concatenate([table.numeric[name] for table in tables])
            values = values[np.isfinite(values)]
            if len(values):
                columns.append(_numeric(name, values))
    for name in first.categorical:
        if all(name in table.categorical for table in rest):
            counts = Counter(text for table in tables for text in table.categorical[name] if text is not None)
            kept = sorted(text for text, count in counts.items() if count >= common)
            if kept:
                columns.append(Column(name=name, kind="categorical", categories=tuple(kept)))
    return tuple(columns)


def _numeric(name: str, values: npt.NDArray[np.float64]) -> Column:
    bottom, top = float(values.min()), float(values.max())
    if bottom == -1.0 and not np.any((values < 0.0) & (values != -1.0)):
        bottom = 0.0
    if bottom < 0.0 and bottom >= -_Z and top <= _Z:
        return Column(name=name, low=-_Z, high=_Z)
    first, median, last = (float(x) for x in np.quantile(values, [0.01, 0.5, 0.99]))
    low, high = _outward(bottom, top)
    heavy = low >= 0.0 and last - median > _HEAVY * (median - max(first, 0.0))
    return Column(name=name, low=low, high=high, transform="log1p" if heavy else "none")


def _outward(bottom: float, top: float) -> tuple[float, float]:
    if top <= bottom:
        top = bottom + 1.0
    digits = floor(log10(top - bottom))
    unit = 10.0**digits
    # round() takes off the dust of 3 * 0.1.
    low, high = round(floor(bottom / unit) * unit, -digits), round(ceil(top / unit) * unit, -digits)
    return float(low), float(high)
