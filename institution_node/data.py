"""One institution's patients: its tables aligned on patients with a label, their fingerprint, and their split.

Until later work a patient needs all of the institution's modalities and a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from federation.plan import Plan
from federation.tables import RawTable
from institution_node.subgroups import read_subgroups
from institution_node.table_files import DataFileError, read_labels, read_table
from security.errors import ConfigurationError
from security.privacy.randomness import Randomness, permutation

Int64 = npt.NDArray[np.int64]


class CohortError(ConfigurationError):
    """The tables can be read, but their patients cannot be trained on."""

    code = "data-cohort"


class NoPatientError(CohortError):
    """No patient has everything that training needs."""

    code = "data-no-patient"


class OneClassError(CohortError):
    """All patients are of one class: nothing can be learned from them."""

    code = "data-one-class"


@dataclass(frozen=True)
class InstitutionData:
    """Patients who have all of the institution's modalities and a label, in the order of their identifiers.

    Attributes:
        ids: n patient identifiers, ascending.
        tables: modality, in plan order, to its table with exactly these rows.
        labels: int64[n], index into the plan's classes.
        fingerprint: SHA-256 over all of this, 64 hex digits; pinned per run. The order of a file's rows or columns
            and columns that the plan does not name do not change it.
        subgroups: attribute of the plan that this institution counts by, to int64[n], the group of each patient.
    """

    ids: tuple[str, ...]
    tables: Mapping[str, RawTable]
    labels: Int64
    fingerprint: str
    subgroups: Mapping[str, Int64] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def with_subgroups(self, groups: Mapping[str, Int64]) -> InstitutionData:
        """The same patients, whose groups are known too; another fingerprint, where there are any."""
        if not groups:
            return self
        digest = hashlib.sha256(self.fingerprint.encode())
        for name in sorted(groups):
            digest.update(f"/{name}/{len(self)}/".encode() + groups[name].astype("<i8").tobytes())
        return replace(self, subgroups=dict(groups), fingerprint=digest.hexdigest())


@dataclass(frozen=True)
class PatientTables:
    """Patients to stage, each with whatever modalities they have.

    Attributes:
        ids: every patient of any table, in order of first appearance.
        tables: modality to the table of those who have it.
    """

    ids: tuple[str, ...]
    tables: Mapping[str, RawTable]


def load_institution_data(
    plan: Plan,
    institution: str,
    tables: Mapping[str, Path],
    labels: Path,
    id_column: str,
    subgroups: Path | None = None,
) -> InstitutionData:
    """Reads and aligns an institution's tables.

    Args:
        plan: a checked plan with the institution in its roster.
        institution: its name.
        tables: modality to file; those of the institution's modalities are read.
        labels: the label table; its column is the plan's `label.column`.
        id_column: column of patient identifiers, in every file.
        subgroups: the table with the columns of the plan's subgroups; None: the label table.

    Raises:
        PlanError: the institution is not in the roster.
        DataFileError, DataColumnError, PatientIdError, DataValueError, LabelValueError: a file is wrong, and where.
        NoPatientError, OneClassError: nobody, or only one class, has all modalities and a label.
    """
    held = [m for m in plan.modalities if m.name in plan.institution(institution).modalities]
    for modality in held:
        if modality.name not in tables:
            raise DataFileError(
                f"no table is configured for modality {modality.name}, which the plan expects of {institution}.",
                remedy=f'Add `{modality.name} = "path"` to [data.tables] in node.toml.',
            )
    classes = read_labels(labels, plan.label, id_column)
    read = {modality.name: read_table(tables[modality.name], modality, id_column) for modality in held}
    data = align(read, classes, plan.class_names, str(labels))
    return data.with_subgroups(read_subgroups(plan, institution, subgroups or labels, id_column, data.ids))


def align(
    tables: Mapping[str, RawTable], classes: Mapping[str, int], class_names: Sequence[str], place: str
) -> InstitutionData:
    """The patients who have all tables and a label.

    Args:
        tables: modality, in plan order, to its table.
        classes: patient to class index.
        class_names: of the plan, for messages.
        place: where labels come from, for messages.

    Raises:
        NoPatientError, OneClassError: nobody, or only one class, has all modalities and a label.
    """
    ids = sorted(set(classes).intersection(*(table.ids for table in tables.values())))
    if not ids:
        sizes = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        raise NoPatientError(
            f"no patient has a label and all of {' + '.join(tables)} (patients: labels {len(classes)}, {sizes}).",
            remedy="Check that all tables use the same patient identifiers, and that labels are filled in.",
            place=place,
        )
    targets = np.array([classes[patient] for patient in ids], dtype=np.int64)
    if len(set(targets.tolist())) < 2:
        raise OneClassError(
            f"all {len(ids)} patients with a label and all modalities are of class {class_names[targets[0]]!r}.",
            remedy="Add patients of another class; an institution with one class cannot take part.",
            place=place,
        )
    aligned = {name: _aligned(table, ids) for name, table in tables.items()}
    return InstitutionData(tuple(ids), aligned, targets, _fingerprint(ids, aligned, targets))


def read_features(plan: Plan, modalities: Sequence[str], paths: Mapping[str, Path], id_column: str) -> PatientTables:
    """Reads tables without labels, for `predict`: each patient with whatever modalities they have.

    Args:
        plan: the plan of the model.
        modalities: those of the model that may be used; one without a path is left out.
        paths: modality to file.
        id_column: column of patient identifiers, in every file.

    Raises:
        DataFileError, DataColumnError, PatientIdError, DataValueError: a file is wrong, and where.
        NoPatientError: no table is given, or no patient has a value.
    """
    wanted = [m for m in plan.modalities if m.name in modalities and m.name in paths]
    read = {modality.name: read_table(paths[modality.name], modality, id_column) for modality in wanted}
    ids = tuple(dict.fromkeys(patient for table in read.values() for patient in table.ids))
    if not ids:
        raise NoPatientError(
            "there is no patient to stage.",
            remedy=f"Give a table for at least one of: {', '.join(modalities)}.",
        )
    return PatientTables(ids, read)


def split(data: InstitutionData, fraction: float, rng: Randomness) -> tuple[Int64, Int64]:
    """Draws validation patients, stratified by class; the same stream gives the same split.

    Args:
        data: at least two classes.
        fraction: part of each class kept for validation, in [0, 1), rounded to the nearest patient. Above 0, a class
            of two or more patients gives at least one; every class keeps at least one for training.
        rng: where the draw comes from; the plan's seed is public and must not be it (DESIGN.md, "Randomness").

    Returns:
        Rows for training and for validation, int64, ascending, disjoint; together all of `data`.
    """
    validation: list[int] = []
    for target in np.unique(data.labels):
        rows = np.flatnonzero(data.labels == target)
        wanted = max(int(fraction > 0), int(fraction * len(rows) + 0.5))
        order = permutation(rng, len(rows))
        validation += rows[order[: min(wanted, len(rows) - 1)]].tolist()
    kept = np.array(sorted(validation), dtype=np.int64)
    return np.setdiff1d(np.arange(len(data), dtype=np.int64), kept, assume_unique=True), kept


def split_each(data: InstitutionData, fraction: float, rng: Randomness) -> tuple[Int64, Int64]:
    """Divides the patients one by one: who validates follows from a secret of the stream and the patient's identifier.

    One patient more or less moves nobody else, as record-level differential privacy needs; `split`, which is
    stratified, draws from the whole class. One patient trains in any case.

    Args:
        data: at least one patient.
        fraction: expected part of the patients kept for validation, in [0, 1).
        rng: where the secret comes from.

    Returns:
        Rows for training and for validation, int64, ascending, disjoint; together all of `data`.
    """
    secret = rng.bytes(32)
    drawn = [int.from_bytes(blake2b(i.encode(), key=secret, digest_size=8).digest(), "big") / 2**64 for i in data.ids]
    validates = np.array([u < fraction for u in drawn])
    if validates.all():
        validates[int(np.argmax(drawn))] = False
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _aligned(table: RawTable, ids: Sequence[str]) -> RawTable:
    row = {patient: k for k, patient in enumerate(table.ids)}
    return table.select([row[patient] for patient in ids])


def _fingerprint(ids: Sequence[str], tables: Mapping[str, RawTable], labels: Int64) -> str:
    digest = hashlib.sha256(b"consilium/v1/data-fingerprint")

    def add(*parts: bytes) -> None:
        for part in parts:  # with its length, so that no two contents read the same
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)

    add(*(patient.encode() for patient in ids), labels.astype("<i8").tobytes())
    for name, table in tables.items():
        add(name.encode())
        for column in sorted(table.numeric):
            values = table.numeric[column].astype("<f8")
            values[np.isnan(values)] = np.nan  # one NaN of the many
            add(b"numeric", column.encode(), (values + 0.0).tobytes())  # + 0.0: one zero of the two
        for column in sorted(table.categorical):
            add(b"categorical", column.encode())
            add(*(b"-" if text is None else b"+" + text.encode() for text in table.categorical[column]))
    return digest.hexdigest()
