"""A raw table of one modality, as numpy columns: what data readers produce and the feature schema consumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RawTable:
    """Rows are patients, keyed by `ids`; no two alike.

    Attributes:
        ids: n patient identifiers.
        numeric: column name to float64[n]; NaN is missing.
        categorical: column name to n texts; None is missing.
    """

    ids: tuple[str, ...]
    numeric: Mapping[str, npt.NDArray[np.float64]]
    categorical: Mapping[str, Sequence[str | None]]

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Sequence[int]) -> RawTable:
        """The table of these rows, in this order."""
        index = np.asarray(rows, dtype=np.int64)
        return RawTable(
            ids=tuple(self.ids[i] for i in rows),
            numeric={name: values[index] for name, values in self.numeric.items()},
            categorical={name: tuple(values[i] for i in rows) for name, values in self.categorical.items()},
        )
