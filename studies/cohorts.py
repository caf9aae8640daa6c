"""Cohorts of patients as studies see them: the TCGA tables, read whole, or generated ones of the same shape.

A data folder has `labels.csv` (`case_id, cohort, stage`, …) and, per modality, `{modality}/{COHORT}.parquet` with a
`case_id` column. It is found in `CONSILIUM_DATA`, or beside the repository; real tables are never part of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from federation.tables import RawTable
from security.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

MODALITIES: Final = ("mrna", "image", "clinical")
ID_COLUMN: Final = "case_id"
SITE_COLUMN: Final = "tss"
"""Of the labels: the tissue source site."""
VARIABLE: Final = "CONSILIUM_DATA"
_BESIDE: Final = ("..", "shared", "tcga")


class StudyDataError(ConfigurationError):
    """A data folder is not laid out as a study needs it."""

    code = "study-data"


@dataclass(frozen=True)
class Cohort:
    """One cancer.

    Attributes:
        name: as in the data folder, `BRCA`.
        stages: patient to stage, 1 to 4, in order of identifier.
        tables: modality to the table of those patients who have it; a modality may be absent.
        sites: patient to the hospital that the tissue came from, where that is known.
    """

    name: str
    stages: Mapping[str, int]
    tables: Mapping[str, RawTable]
    sites: Mapping[str, str] = field(default_factory=dict)


def find_data(environment: Mapping[str, str] | None = None, repository: Path | None = None) -> Path | None:
    """The data folder: `CONSILIUM_DATA`, else the folder beside the repository, else None.

    Raises:
        StudyDataError: `CONSILIUM_DATA` names a folder without `labels.csv`. It is never silently passed over.
    """
    named = (os.environ if environment is None else environment).get(VARIABLE)
    if named:
        if not (Path(named) / "labels.csv").is_file():
            raise StudyDataError(
                f"{VARIABLE} names a folder without labels.csv.",
                remedy="Correct the variable, or unset it to use what lies beside the repository.",
                place=named,
            )
        return Path(named)
    beside = (Path(__file__).resolve().parent.parent if repository is None else repository).joinpath(*_BESIDE)
    return beside if (beside / "labels.csv").is_file() else None


def load_cohorts(root: Path, cohorts: Sequence[str], modalities: Sequence[str] = MODALITIES) -> dict[str, Cohort]:
    """Reads cohorts of a data folder.

    Args:
        root: the folder.
        cohorts: names, in the order wanted.
        modalities: in the order wanted.

    Raises:
        StudyDataError: no labels, an unknown cohort, or a table that cannot be used.
    """
    path = root / "labels.csv"
    labels = _labels(root)
    known = known_cohorts(root)
    found: dict[str, Cohort] = {}
    for name in cohorts:
        if name not in known:
            raise StudyDataError(
                f"there is no cohort {name!r}.", remedy=f"Choose from: {', '.join(known)}.", place=str(path)
            )
        rows = labels[(labels["cohort"] == name) & labels["stage"].isin(["1", "2", "3", "4"])].sort_values(ID_COLUMN)
        if rows[ID_COLUMN].duplicated().any():
            raise StudyDataError(
                f"a patient of {name} stands there twice.", remedy="Keep one row per patient.", place=str(path)
            )
        stages = dict(zip(rows[ID_COLUMN], rows["stage"].astype(int), strict=True))
        files = {m: root / m / f"{name}.parquet" for m in modalities}
        sites = dict(zip(rows[ID_COLUMN], rows[SITE_COLUMN], strict=True)) if SITE_COLUMN in rows else {}
        found[name] = Cohort(name, stages, {m: read_whole(file) for m, file in files.items() if file.is_file()}, sites)
    return found


def known_cohorts(root: Path) -> tuple[str, ...]:
    """Names of a data folder's cohorts, in the order of its labels; raises as `load_cohorts` does."""
    return tuple(str(name) for name in _labels(root)["cohort"].dropna().unique())


def _labels(root: Path) -> pd.DataFrame:
    import pandas as pd

    path = root / "labels.csv"
    if not path.is_file():
        raise StudyDataError("there is no labels.csv.", remedy=f"Correct {VARIABLE}.", place=str(root))
    labels = pd.read_csv(path, dtype=str)
    absent = [name for name in (ID_COLUMN, "cohort", "stage") if name not in labels.columns]
    if absent:
        raise StudyDataError(f"there is no column {absent[0]!r}.", remedy="Add it.", place=str(path))
    return labels


def write_cohorts(cohorts: Mapping[str, Cohort], root: Path) -> None:
    """Writes a data folder that `load_cohorts` reads."""
    import pandas as pd

    root.mkdir(parents=True, exist_ok=True)
    rows = [(patient, c.name, stage) for c in cohorts.values() for patient, stage in c.stages.items()]
    pd.DataFrame(rows, columns=[ID_COLUMN, "cohort", "stage"]).to_csv(root / "labels.csv", index=False)
    for cohort in cohorts.values():
        for modality, table in cohort.tables.items():
            write_table(table, root / modality / f"{cohort.name}.parquet")


def read_whole(path: Path) -> RawTable:
    """A Parquet table with all its columns: numbers are numeric, anything else categorical.

    Raises:
        StudyDataError: no `case_id`, or a patient twice.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    frame = pq.read_table(path).to_pandas(ignore_metadata=True)
    if ID_COLUMN not in frame.columns or frame[ID_COLUMN].duplicated().any():
        raise StudyDataError(
            f"{ID_COLUMN!r} must be a column with every patient once.", remedy="Mend the table.", place=str(path)
        )
    numeric: dict[str, npt.NDArray[np.float64]] = {}
    categorical: dict[str, tuple[str | None, ...]] = {}
    for name in frame.columns.drop(ID_COLUMN):
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column):
            numeric[name] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            categorical[name] = tuple(None if gone else str(v) for v, gone in zip(column, column.isna(), strict=True))
    return RawTable(tuple(frame[ID_COLUMN].astype(str)), numeric, categorical)


def write_table(table: RawTable, path: Path) -> None:
    """Writes a Parquet table as an institution would hold it; numbers in float32, as the TCGA tables are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, pa.Array] = {ID_COLUMN: pa.array(table.ids, pa.string())}
    for name, values in table.numeric.items():
        columns[name] = pa.array(values.astype(np.float32), pa.float32(), from_pandas=True)
    for name, texts in table.categorical.items():
        columns[name] = pa.array(texts, pa.string())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
