"""Two data sets that are not medical, as cohorts: handwritten digits in six views, articles as image and text.

They lie in `extra_multiview/` of the data folder. The class stands where a cohort has the stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from federation.tables import RawTable
from studies.cohorts import Cohort, StudyDataError

FOLDER: Final = "extra_multiview"
VIEWS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "DIGITS": ("uci_mfeat.npz", {v: v for v in ("fac", "fou", "kar", "mor", "pix", "zer")}),
    "ARTICLES": ("wikipedia.npz", {"image": "image_sift", "text": "text_lda"}),
}
"""Cohort to its file, and modality to the array's name."""

CLASSES: Final = 10


def load_views(root: Path, name: str) -> dict[str, Cohort]:
    """One of `VIEWS` as the only cohort.

    Raises:
        StudyDataError: its file is not there.
    """
    file, arrays = VIEWS[name]
    path = root / FOLDER / file
    if not path.is_file():
        raise StudyDataError(f"there is no {file}.", remedy="Add it, or leave the study out.", place=str(path.parent))
    with np.load(path) as held:
        labels = held["y"].astype(int)
        return {name: _cohort(name, labels - labels.min(), {m: held[a] for m, a in arrays.items()})}


def generated_views(name: str, seed: int, patients: int = 1200, width: int = 12) -> dict[str, Cohort]:
    """A stand-in: classes as clouds around centres of their own in every view."""
    rng = np.random.default_rng([seed, *name.encode()])
    labels = rng.permutation(np.arange(patients) % CLASSES)
    views = {
        m: 0.7 * rng.standard_normal((CLASSES, width))[labels] + rng.standard_normal((patients, width))
        for m in VIEWS[name][1]
    }
    return {name: _cohort(name, labels, views)}


def _cohort(name: str, labels: np.ndarray, views: Mapping[str, np.ndarray]) -> Cohort:
    ids = tuple(f"{name}-{k:04}" for k in range(len(labels)))
    tables = {
        m: RawTable(ids, {f"{m}_{j:03}": x[:, j].astype(np.float64) for j in range(x.shape[1])}, {})
        for m, x in views.items()
    }
    return Cohort(name, dict(zip(ids, labels.tolist(), strict=True)), tables)
