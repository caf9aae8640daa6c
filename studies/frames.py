"""Pandas tables in, the node's raw tables out; every mistake is told with institution, table and column.

A table is indexed by patient. Columns of numbers are numeric; texts, categories and truth values are categorical;
a gap is NaN, None or NA. The same column is of one kind at every institution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from federation.plan import Column
from federation.tables import RawTable
from institution_node.table_files import DataColumnError, DataValueError, PatientIdError, cell_text
from security.errors import ConfigurationError
from studies.ranges import common_columns

Kind = Literal["numeric", "categorical"]

MOST_CATEGORIES: Final = 100
RARE: Final = 5
"""A category that fewer patients have in all tables together is "other"; it would not pass the floors anyway."""


class FrameError(ConfigurationError):
    """A table is not a pandas DataFrame that is indexed by patient."""

    code = "frame"


def patients_of(index: pd.Index, place: str) -> tuple[str, ...]:
    """Identifiers of patients, as text.

    Raises:
        FrameError: the index is none of patients.
        PatientIdError: one is missing, or stands there twice.
    """
    if isinstance(index, (pd.RangeIndex, pd.MultiIndex)):
        what = "several levels" if isinstance(index, pd.MultiIndex) else "row numbers, not patients"
        raise FrameError(
            f"the index has {what}.",
            remedy='Give it one, of patient identifiers that all tables share: table.set_index("patient").',
            place=place,
        )
    ids = [cell_text(each) for each in index]
    if any(patient is None for patient in ids):
        raise PatientIdError("a patient has no identifier.", remedy="Fill the index, or drop the row.", place=place)
    twice = int(index.duplicated().sum()) or len(ids) - len(set(ids))
    if twice:
        raise PatientIdError(
            f"{twice} rows repeat a patient.",
            remedy="Keep one row per patient: table[~table.index.duplicated()].",
            place=place,
        )
    return tuple(str(patient) for patient in ids)


def kinds_of(frame: Any, place: str) -> dict[str, Kind | None]:
    """Column to its kind; None: it has no value.

    Raises:
        FrameError: no DataFrame, or one without columns or patients.
        DataColumnError: a column's name is no text, or comes twice.
        DataValueError: a column of numbers and texts, or of something else.
    """
    if not isinstance(frame, pd.DataFrame):
        raise FrameError(
            f"this is a {type(frame).__name__}.", remedy="Give a pandas DataFrame indexed by patient.", place=place
        )
    if frame.empty:
        raise FrameError("the table is empty.", remedy="Leave the modality out of this institution.", place=place)
    for name in frame.columns:
        if not isinstance(name, str):
            raise DataColumnError(
                f"a column is called {name!r}.", remedy="Name columns by texts: table.rename(columns=str).", place=place
            )
    if frame.columns.has_duplicates:
        name = frame.columns[frame.columns.duplicated()][0]
        raise DataColumnError(f"column {name!r} comes twice.", remedy="Keep one of them.", place=place)
    return {name: _kind(frame[name], f"{place}, column {name!r}") for name in frame.columns}


def _kind(column: pd.Series, place: str) -> Kind | None:
    if not column.notna().any():
        return None
    if pd.api.types.is_bool_dtype(column):
        return "categorical"
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_complex_dtype(column):
        return "numeric"
    values = column.dropna()
    texts = sum(isinstance(value, (str, bool)) for value in values)
    numbers = sum(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)
    if texts == len(values):
        return "categorical"
    if numbers == len(values):
        return "categorical" if isinstance(column.dtype, pd.CategoricalDtype) else "numeric"
    if texts + numbers == len(values):
        raise DataValueError(
            f"the column holds {numbers} numbers and {texts} texts.",
            remedy="Make it one or the other: pd.to_numeric(column, errors='coerce'), or column.astype(str).",
            place=place,
        )
    raise DataValueError(
        f"the column holds values of type {column.dtype}, neither numbers nor texts.",
        remedy="Turn them into numbers (days, years) or texts, or drop the column.",
        place=place,
    )


def raw_table(frame: pd.DataFrame, kinds: Mapping[str, Kind], place: str) -> RawTable:
    """The columns of `kinds` that the frame has, for patients with a value in any of them.

    Raises:
        FrameError, DataColumnError, PatientIdError, DataValueError: as told by `kinds_of` and `patients_of`; or a
            column is of another kind, or a number is infinite.
    """
    ids = patients_of(frame.index, place)
    found = kinds_of(frame, place)
    numeric, categorical = {}, {}
    held = np.zeros(len(ids), dtype=np.bool_)
    for name, kind in kinds.items():
        if name not in found:
            continue
        if found[name] not in (None, kind):
            raise _other_kind(name, found[name], kind, place, "the other tables")
        if kind == "numeric":
            values = np.asarray(frame[name].to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
            if np.isinf(values).any():
                raise DataValueError(
                    "the column holds an infinite number.",
                    remedy="Replace it by a number, or by NaN where it is missing.",
                    place=f"{place}, column {name!r}",
                )
            numeric[name], held = values, held | ~np.isnan(values)
        else:
            texts = tuple(cell_text(value) for value in frame[name])
            categorical[name], held = texts, held | np.array([text is not None for text in texts])
    return RawTable(ids, numeric, categorical).select(np.flatnonzero(held).tolist())


def agreed_kinds(modality: str, frames: Mapping[str, pd.DataFrame]) -> dict[str, Kind]:
    """Kinds of one modality's columns, over all institutions that hold it.

    Args:
        modality: its name.
        frames: institution to its table.

    Raises:
        DataColumnError: a column is numeric here and categorical there; and as `kinds_of`.
    """
    agreed: dict[str, Kind] = {}
    first: dict[str, str] = {}
    for institution, frame in frames.items():
        place = place_of(institution, modality)
        for name, kind in kinds_of(frame, place).items():
            if kind is None:
                continue
            if agreed.setdefault(name, kind) != kind:
                raise _other_kind(name, kind, agreed[name], place, first[name])
            first.setdefault(name, institution)
    return agreed


def place_of(institution: str, modality: str) -> str:
    """How messages call a table."""
    return f"{institution}, table {modality!r}"


def shared_columns(modality: str, tables: Mapping[str, RawTable]) -> tuple[Column, ...]:
    """The plan's columns: those that every institution with the modality has, with ranges read off all their tables.

    Raises:
        DataColumnError: none is in common, or a column has too many different texts.
    """
    for name in set.intersection(*(set(table.categorical) for table in tables.values())):
        for institution, table in tables.items():
            different = len(set(table.categorical[name]) - {None})
            if different > MOST_CATEGORIES:
                raise DataColumnError(
                    f"column {name!r} has {different} different texts: free text or identifiers, not categories.",
                    remedy="Drop the column, or group its values.",
                    place=place_of(institution, modality),
                )
    columns = common_columns(list(tables.values()), RARE)
    if not columns:
        raise DataColumnError(
            f"the institutions' tables of {modality!r} have no usable column in common.",
            remedy="Give the same columns the same names everywhere; a column needs values at every institution.",
            place=", ".join(tables),
        )
    return columns


def label_texts(labels: Any, place: str) -> dict[str, str]:
    """Patient to label as text; patients without one are left out.

    Raises:
        FrameError: no Series indexed by patient.
        PatientIdError: as `patients_of`.
    """
    if isinstance(labels, Mapping):
        labels = pd.Series(dict(labels), dtype=object)
    if not isinstance(labels, pd.Series):
        raise FrameError(
            f"the labels are a {type(labels).__name__}.",
            remedy='Give a pandas Series indexed by patient: table["stage"].',
            place=place,
        )
    ids = patients_of(labels.index, place)
    texts = (cell_text(value) for value in labels)
    return {patient: text for patient, text in zip(ids, texts, strict=True) if text is not None}


def _other_kind(name: str, kind: str | None, agreed: str, place: str, elsewhere: str) -> DataColumnError:
    return DataColumnError(
        f"column {name!r} is {kind} here and {agreed} at {elsewhere}.",
        remedy="Make it one of both everywhere: pd.to_numeric(column, errors='coerce'), or column.astype(str).",
        place=place,
    )


def plan_kinds(columns: Sequence[Column]) -> dict[str, Kind]:
    """Kinds of a plan's columns."""
    return {column.name: column.kind for column in columns}
