"""One institution's patients: its tables aligned on patients with a label, their fingerprint, and their split.

A patient needs a label, and all modalities of one of the combinations that the plan lists for the institution; the
largest such combination is the patient's, and what there is beyond it is not used.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from federation import names
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


class FewPatientsError(CohortError):
    """A combination that the plan lists for the institution has too few patients to train and to validate on."""

    code = "data-few-patients"


class OneClassError(CohortError):
    """All patients are of one class: nothing can be learned from them."""

    code = "data-one-class"


@dataclass(frozen=True)
class InstitutionData:
    """Patients who can be trained on, in the order of their identifiers.

    Attributes:
        ids: n patient identifiers, ascending.
        tables: modality, in plan order, to its table with exactly these rows; a row without any value for a patient
            who lacks the modality.
        labels: int64[n], index into the plan's classes.
        fingerprint: SHA-256 over all of this, 64 hex digits; pinned per run. The order of a file's rows or columns
            and columns that the plan does not name do not change it.
        subgroups: attribute of the plan that this institution counts by, to int64[n], the group of each patient.
        combinations: n names, each patient's; empty: every patient has all modalities of the tables.
    """

    ids: tuple[str, ...]
    tables: Mapping[str, RawTable]
    labels: Int64
    fingerprint: str
    subgroups: Mapping[str, Int64] = field(default_factory=dict)
    combinations: tuple[str, ...] = ()

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

    def rows_with(self, modality: str, rows: Int64) -> Int64:
        """Those of some rows whose patients have a modality."""
        if not self.combinations:
            return rows
        return rows[[modality in names.modalities_of(self.combinations[k]) for k in rows.tolist()]]

    def counted(self, rows: Int64) -> Mapping[str, int]:
        """Patients of some rows by combination; under an empty name where all have everything."""
        return Counter(self.combinations[k] for k in rows.tolist()) if self.combinations else {"": len(rows)}


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
        FewPatientsError: of a combination that the plan lists there are not two patients of one class.
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
    data = align(read, classes, plan.class_names, str(labels), plan.combinations(institution))
    return data.with_subgroups(read_subgroups(plan, institution, subgroups or labels, id_column, data.ids))


def align(
    tables: Mapping[str, RawTable],
    classes: Mapping[str, int],
    class_names: Sequence[str],
    place: str,
    listed: Sequence[str] = (),
) -> InstitutionData:
    """The patients who have a label and, of the tables, a listed combination.

    Args:
        tables: modality, in plan order, to its table.
        classes: patient to class index.
        class_names: of the plan, for messages.
        place: where labels come from, for messages.
        listed: the institution's combinations, smallest first; empty or one: all tables.

    Raises:
        NoPatientError, OneClassError: nobody, or only one class, has all modalities and a label.
        FewPatientsError: of a combination that is listed there are not two patients of one class.
    """
    listed = listed or ("+".join(tables),)
    own = own_combinations(classes, {name: table.ids for name, table in tables.items()}, listed)
    ids = sorted(own)
    if not ids:
        sizes = ", ".join(f"{name} {len(table)}" for name, table in tables.items())
        wanted = f"all of {' + '.join(tables)}" if len(listed) == 1 else f"all of one of {', '.join(listed)}"
        raise NoPatientError(
            f"no patient has a label and {wanted} (patients: labels {len(classes)}, {sizes}).",
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
    if len(listed) == 1:
        aligned = {name: _aligned(table, ids) for name, table in tables.items()}
        return InstitutionData(tuple(ids), aligned, targets, _fingerprint(ids, aligned, targets))
    combinations = tuple(own[patient] for patient in ids)
    check_each_combination(listed, combinations, targets, place)
    aligned = {
        name: with_gaps(table, ids, [name in names.modalities_of(c) for c in combinations])
        for name, table in tables.items()
    }
    return InstitutionData(tuple(ids), aligned, targets, _fingerprint(ids, aligned, targets), combinations=combinations)


def own_combinations(
    patients: Iterable[str], held: Mapping[str, Iterable[str]], listed: Sequence[str]
) -> dict[str, str]:
    """Patient to the largest of the listed combinations that they have all of; who has none of them is left out.

    Args:
        patients: whom it is about, each once.
        held: modality to those who have it.
        listed: combinations, smallest first.
    """
    having = {modality: frozenset(ids) for modality, ids in held.items()}
    found: dict[str, str] = {}
    for patient in patients:
        own = names.largest_within([m for m, ids in having.items() if patient in ids], listed)
        if own is not None:
            found[patient] = own
    return found


def check_each_combination(listed: Sequence[str], combinations: Sequence[str], labels: Int64, place: str) -> None:
    """Passes where every listed combination has two patients of one class: one trains and one validates.

    What an institution has nobody for would otherwise show: in sums that its patients do not move, and in weights.

    Raises:
        FewPatientsError: one has not.
    """
    counts = Counter(zip(combinations, labels.tolist(), strict=True))
    for combination in listed:
        if max((n for (c, _), n in counts.items() if c == combination), default=0) < 2:
            raise FewPatientsError(
                f"no two patients of one class have exactly {combination}, which the plan lists for this institution.",
                remedy=f"Ask the operator to take {combination} out of its combinations, or complete the tables.",
                place=place,
            )


def with_gaps(table: RawTable, ids: Sequence[str], there: Sequence[bool]) -> RawTable:
    """A table with exactly these patients; a row without any value where `there` is false."""
    row = {patient: k for k, patient in enumerate(table.ids)}
    kept = np.flatnonzero(np.asarray(there, dtype=np.bool_))
    rows = [row[ids[k]] for k in kept.tolist()]
    numeric: dict[str, npt.NDArray[np.float64]] = {}
    for name, values in table.numeric.items():
        numeric[name] = np.full(len(ids), np.nan)
        numeric[name][kept] = values[rows]
    categorical: dict[str, tuple[str | None, ...]] = {}
    for name, texts in table.categorical.items():
        found: list[str | None] = [None] * len(ids)
        for k, at in zip(kept.tolist(), rows, strict=True):
            found[k] = texts[at]
        categorical[name] = tuple(found)
    return RawTable(tuple(ids), numeric, categorical)


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
    """Draws validation patients, stratified by class, and by combination where there are several; the same stream gives
    the same split.

    Args:
        data: at least two classes.
        fraction: part of each class (of a combination) kept for validation, in [0, 1), rounded to the nearest patient.
            Above 0, a class of two or more patients gives at least one; every class keeps at least one for training.
        rng: where the draw comes from; the plan's seed is public and must not be it (DESIGN.md, "Randomness").

    Returns:
        Rows for training and for validation, int64, ascending, disjoint; together all of `data`.
    """
    validation: list[int] = []
    for rows in _strata(data):
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


def _strata(data: InstitutionData) -> Iterator[Int64]:
    """Rows of each class, of each combination."""
    own = np.array(data.combinations) if data.combinations else np.zeros(len(data), dtype=np.int64)
    for combination in np.unique(own):
        for target in np.unique(data.labels[own == combination]):
            yield np.flatnonzero((data.labels == target) & (own == combination))


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
