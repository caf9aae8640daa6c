"""Reads the hospital's own files, Parquet or CSV, into raw tables; every mistake is told with file and line.

Only the columns that the plan names are read. Messages name files, lines and columns, and show at most the one cell
that cannot be read; they never name a patient.
"""

from __future__ import annotations

import csv
import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from federation.plan import Label, Modality
from federation.tables import RawTable
from security.errors import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd  # imported inside the functions: half a second that `--help` must not pay

MISSING: Final = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "none", "<NA>")
"""Texts that mean "no value" in a CSV file, unless the plan lists one as a category or class value."""

_SHOWN: Final = 24  # characters of a cell that a message shows


class DataFileError(ConfigurationError):
    """A table's file is not there, cannot be read, or has no patient."""

    code = "data-file"


class DataColumnError(ConfigurationError):
    """A table lacks a column that it must have."""

    code = "data-column"


class PatientIdError(ConfigurationError):
    """A patient has no identifier, or stands in a table twice."""

    code = "data-patient-id"


class DataValueError(ConfigurationError):
    """A cell of a numeric column is not a number."""

    code = "data-value"


class LabelValueError(ConfigurationError):
    """A label that the plan does not know."""

    code = "data-label"


@dataclass(frozen=True)
class _Places:
    """Where the rows of a file are: the lines that they begin in, or only their numbers (Parquet)."""

    path: Path
    lines: Sequence[int] | None

    def __getitem__(self, row: int) -> str:
        return f"{self.path}: row {row + 1}" if self.lines is None else f"{self.path}:{self.lines[row]}"


@dataclass(frozen=True)
class _Source:
    """A file's wanted columns, and how to point at one of its rows."""

    frame: pd.DataFrame
    ids: tuple[str, ...]
    places: _Places


def read_table(path: Path, modality: Modality, id_column: str) -> RawTable:
    """The plan's columns of one modality. A patient without a value in any of them is left out.

    Args:
        path: `.parquet`, `.csv` (commas) or `.tsv` (tabs), UTF-8, with a header.
        modality: what to read; columns that the file does not have are left out of the table.
        id_column: column of patient identifiers, read as text.

    Raises:
        DataFileError, DataColumnError, PatientIdError, DataValueError: see there.
    """
    texts = {c.name: c.categories for c in modality.columns if c.kind == "categorical"}
    numbers = [c.name for c in modality.columns if c.kind == "numeric"]
    source = _read(path, id_column, numbers, texts)
    present = set(source.frame.columns)
    if not present & {c.name for c in modality.columns}:
        wanted = ", ".join(c.name for c in modality.columns[:5])
        raise DataColumnError(
            f"the table has none of the plan's {len(modality.columns)} columns of modality {modality.name}.",
            remedy=f"Name its columns as the plan does: {wanted}{', …' if len(modality.columns) > 5 else ''}.",
            place=str(path),
        )
    numeric = {name: _numbers(source, name) for name in numbers if name in present}
    categorical = {name: tuple(cell_text(v) for v in source.frame[name]) for name in texts if name in present}
    held = np.zeros(len(source.ids), dtype=np.bool_)
    for values in numeric.values():
        held |= ~np.isnan(values)
    for texts_of in categorical.values():
        held |= np.array([text is not None for text in texts_of])
    return RawTable(source.ids, numeric, categorical).select(np.flatnonzero(held).tolist())


def read_labels(path: Path, label: Label, id_column: str) -> dict[str, int]:
    """Patient to class index. A patient whose label is missing is left out.

    Raises:
        DataFileError, DataColumnError, PatientIdError: see there.
        LabelValueError: a value that none of the plan's classes lists.
    """
    classes = {value: k for k, each in enumerate(label.classes) for value in each.values}
    source = _read(path, id_column, [], {label.column: tuple(classes)})
    if label.column not in source.frame.columns:
        raise _no_column(path, label.column, "label column", _header(path))
    found: dict[str, int] = {}
    for row, (patient, cell) in enumerate(zip(source.ids, source.frame[label.column], strict=True)):
        text = cell_text(cell)
        if text is None:
            continue
        if text not in classes:
            accepted = "; ".join(f"{each.name}: {', '.join(each.values)}" for each in label.classes)
            raise LabelValueError(
                f"column {label.column!r} has an unknown value {text[:_SHOWN]!r}.",
                remedy=f"Write one of ({accepted}), or leave it empty for a patient who takes no part.",
                place=source.places[row],
            )
        found[patient] = classes[text]
    return found


def _read(path: Path, id_column: str, numbers: Sequence[str], texts: Mapping[str, Sequence[str]]) -> _Source:
    """The wanted columns that the file has, as they stand; ids checked."""
    if not path.is_file():
        raise DataFileError(
            "there is no such file.", remedy="Correct the path in node.toml, or put the table there.", place=str(path)
        )
    header = _header(path)
    if id_column not in header:
        raise _no_column(path, id_column, "id column", header)
    wanted = {id_column, *numbers, *texts}
    twice = sorted(name for name, times in Counter(header).items() if times > 1 and name in wanted)
    if twice:
        raise DataColumnError(
            f"column {twice[0]!r} stands in the header twice.", remedy="Keep one of them.", place=str(path)
        )
    lines = None
    if _is_parquet(path):
        frame = _read_parquet(path, [name for name in header if name in wanted])
    else:
        lines = _lines(path, len(header))
        frame = _read_csv(path, wanted, id_column, texts)
    if frame.empty:
        raise DataFileError("the table has no patient.", remedy="Export the table again.", place=str(path))
    places = _Places(path, lines)
    return _Source(frame, _ids(places, frame[id_column]), places)


def _ids(places: _Places, column: pd.Series) -> tuple[str, ...]:
    first: dict[str, int] = {}
    for row, cell in enumerate(column):
        patient = cell_text(cell)
        if patient is None:
            raise PatientIdError(
                f"a patient has no identifier in column {column.name!r}.",
                remedy="Give every patient an identifier, the same in all tables.",
                place=places[row],
            )
        if patient in first:
            raise PatientIdError(
                f"the patient already stands at {places[first[patient]]}.",
                remedy="Keep one row per patient.",
                place=places[row],
            )
        first[patient] = row
    return tuple(first)


def _numbers(source: _Source, name: str) -> npt.NDArray[np.float64]:
    import pandas as pd

    column = source.frame[name]
    if pd.api.types.is_numeric_dtype(column):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan), dtype=np.float64)
    values = np.full(len(column), np.nan)
    for row, cell in enumerate(column):
        text = cell_text(cell)
        if text is None:
            continue
        try:
            values[row] = float(text)
        except ValueError:
            comma = " Decimals take a point, not a comma." if "," in text else ""
            raise DataValueError(
                f"column {name!r} has {text[:_SHOWN]!r}, which is not a number.",
                remedy=f"Write a number, or leave the cell empty where it is missing.{comma}",
                place=source.places[row],
            ) from None
    return values


def cell_text(cell: Any) -> str | None:
    """A cell as text, None where it is missing; 1.0 and 1 are the same text, since a gap turns integers into floats."""
    if cell is None or cell != cell or type(cell).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(cell, (float, np.floating)) and float(cell).is_integer():
        return str(int(cell))
    return str(cell).strip() or None


def _is_parquet(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".csv", ".tsv"):
        raise DataFileError(
            f"{suffix or 'a file without a suffix'} is not a kind of table that can be read.",
            remedy="Save the table as .parquet, .csv (commas) or .tsv (tabs).",
            place=str(path),
        )
    return suffix == ".parquet"


def _header(path: Path) -> list[str]:
    if _is_parquet(path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
    for _, fields in _records(path):
        return fields
    raise DataFileError("the file is empty.", remedy="Export the table again.", place=str(path))


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV file with the line that each begins in (from 1); blank lines are skipped, as pandas does."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_delimiter(path))
            line = 1
            for fields in reader:
                if fields:
                    yield line, fields
                line = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise _unreadable(path, error) from error


def _lines(path: Path, width: int) -> list[int]:
    """The line that each row begins in. A row of another width is refused: its values would slip into other columns."""
    lines = []
    for line, fields in _records(path):
        if len(fields) != width:
            raise DataFileError(
                f"the row has {len(fields)} fields, the header {width}.",
                remedy="Put a cell that holds the separator in quotes; decimals take a point.",
                place=f"{path}:{line}",
            )
        lines.append(line)
    return lines[1:]


def _read_parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Whatever index pandas may have noted in the file, the id column is a column here.
        return pq.read_table(path, columns=columns).to_pandas(ignore_metadata=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error


def _read_csv(path: Path, wanted: Collection[str], id_column: str, texts: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    import pandas as pd

    missing = {name: [m for m in MISSING if m not in texts.get(name, ())] for name in wanted}
    missing[id_column] = [""]
    try:
        return pd.read_csv(
            path,
            sep=_delimiter(path),
            usecols=lambda name: name in wanted,
            dtype=dict.fromkeys((id_column, *texts), str),
            keep_default_na=False,
            na_values=missing,
            index_col=False,
            encoding="utf-8-sig",
            low_memory=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        raise _unreadable(path, error) from error


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _unreadable(path: Path, error: Exception) -> DataFileError:
    reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error).strip().splitlines()[0]
    return DataFileError(
        f"the file cannot be read: {reason}.", remedy="Export the table again, or give read access.", place=str(path)
    )


def _no_column(path: Path, name: str, what: str, header: Sequence[str]) -> DataColumnError:
    near = difflib.get_close_matches(name, header, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    shown = ", ".join(header[:6]) + (", …" if len(header) > 6 else "")
    return DataColumnError(
        f"the table has no {what} {name!r}{guess}.",
        remedy=f"Name it in the configuration, or rename a column of the table; it has: {shown}.",
        place=str(path),
    )
