"""Patients of one institution who lack modalities one by one: who is of which combination, and who trains what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from federation import names
from institution_node.models import InstitutionModel

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Several:
    """Patients of several combinations at one institution.

    Attributes:
        training, validation: combination of each patient.
        places: combination to the places of its modalities among the institution's.
        subsets: that the institution can evaluate, in layout order.
        scales: component to the training patients over those of them who train it, where these are fewer.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]
    places: Mapping[str, tuple[int, ...]]
    subsets: tuple[str, ...]
    scales: Mapping[str, float]

    @staticmethod
    def of(model: InstitutionModel, combinations: Sequence[str], training: Int64, validation: Int64) -> Several | None:
        """None: all patients have all of the institution's modalities."""
        if len(model.combinations) == 1:
            return None
        own = tuple(combinations[k] for k in training)
        counts = Counter(own)
        trained = {
            name: sum(n for c, n in counts.items() if name in model.components_of(c)) for name in model.components
        }
        return Several(
            own,
            tuple(combinations[k] for k in validation),
            {c: tuple(model.modalities.index(m) for m in names.modalities_of(c)) for c in model.combinations},
            tuple(names.component_subset(c) for c in model.components if names.component_kind(c) == "classifier"),
            {name: len(own) / n for name, n in trained.items() if 0 < n < len(own)},
        )


def grouped(own: Sequence[str], rows: Int64) -> list[tuple[str, Int64]]:
    """Rows by their combination, smallest first, each group in the order of the rows."""
    found: dict[str, list[int]] = {}
    for row in rows.tolist():
        found.setdefault(own[row], []).append(row)
    order = sorted(found, key=lambda c: (c.count("+"), c))
    return [(c, np.array(found[c], dtype=np.int64)) for c in order]
