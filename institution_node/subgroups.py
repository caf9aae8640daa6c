"""Subgroups at one institution: whose patients are in which group, and in which they are counted.

What decides it stays here: counts of the institution's own validation patients by group. Of them only one bit a group
is summed, in round 0: whether the group is counted by itself (`federation.subgroups`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from federation import subgroups
from federation.plan import Column, Modality, Plan, Subgroup
from federation.rounds import Cohorts, Setup
from federation.tables import RawTable
from institution_node.table_files import DataColumnError, read_table
from security.secure_sum.errors import TranscriptError

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def counts_by(plan: Plan, institution: str) -> tuple[Subgroup, ...]:
    """The attributes that an institution counts its patients by."""
    wanted = Cohorts(plan).subgroups
    return tuple(each for each in plan.evaluation.subgroups.by if institution in wanted[each.name])


def read_subgroups(plan: Plan, institution: str, path: Path, id_column: str, ids: Sequence[str]) -> dict[str, Int64]:
    """Attribute to int64[n], the group of each patient; who has no value, or another one, is in `other`.

    Args:
        plan: a checked plan.
        institution: of its roster.
        path: the table.
        id_column: column of patient identifiers.
        ids: the n patients.

    Raises:
        DataFileError, PatientIdError, DataValueError: the file is wrong, and where.
        DataColumnError: a column is not there.
    """
    attributes = counts_by(plan, institution)
    if not attributes:
        return {}
    columns = tuple(
        Column(name=a.column, kind="categorical" if a.categories else "numeric", categories=a.categories)
        for a in attributes
    )
    table = read_table(path, Modality(name="subgroups", columns=columns), id_column)
    return groups_in(table, attributes, ids, institution, str(path))


def groups_in(
    table: RawTable, attributes: Sequence[Subgroup], ids: Sequence[str], institution: str, place: str
) -> dict[str, Int64]:
    """Attribute to int64[n], the group of each of n patients; a patient whom the table lacks is in `other`.

    Raises:
        DataColumnError: a column is not there; `place` says where.
    """
    row = {patient: k for k, patient in enumerate(table.ids)}
    found: dict[str, Int64] = {}
    for a in attributes:
        if a.column not in table.numeric and a.column not in table.categorical:
            raise DataColumnError(
                f"the table has no column {a.column!r}, by which the plan counts {a.name}.",
                remedy="Add it, name another table ([data] subgroups in node.toml, `people` in memory), or leave "
                f"{institution} out of the institutions of that subgroup in the plan.",
                place=place,
            )
        places = (
            subgroups.place_texts(a, table.categorical[a.column])
            if a.categories
            else subgroups.place_numbers(a, table.numeric[a.column])
        )
        other = len(subgroups.groups_of(a)) - 1
        found[a.name] = np.array([places[row[i]] if i in row else other for i in ids], dtype=np.int64)
    return found


class CountedGroups:
    """In which groups an institution's validation patients are counted.

    Args:
        plan: a checked plan.
        institution: of its roster.
        patients: attribute to int64[n], the group of each of its patients.
        validation_rows: the patients that are counted.

    Raises:
        DataColumnError: the groups of an attribute are not there.

    Attributes:
        counted: attribute to bool[groups]: those with patients that it counts by themselves.
    """

    def __init__(self, plan: Plan, institution: str, patients: Mapping[str, Int64], validation_rows: Int64) -> None:
        self._settings, self._private = plan.evaluation.subgroups, plan.differential_privacy.enabled
        self._places: dict[str, Int64] = {}
        self.counted: dict[str, Bools] = {}
        for each in counts_by(plan, institution):
            if each.name not in patients:
                raise DataColumnError(
                    f"there is no {each.name} of the patients of {institution}, by which the plan counts them.",
                    remedy="Give InstitutionData the subgroups of the plan.",
                )
            places, groups = patients[each.name][validation_rows], len(subgroups.groups_of(each))
            if not self._private:  # there one patient must move one count alone
                counts = np.bincount(places, minlength=groups)
                places = subgroups.moved(places, subgroups.held_back(counts, self._settings.min_patients))
            self._places[each.name] = places
            self.counted[each.name] = np.bincount(places, minlength=groups) > 0

    def of(self, setup: Setup) -> dict[str, Int64]:
        """Attribute to int64[validation patients], the group that each is counted in during this run."""
        if self._private:
            return dict(self._places)
        floor = self._settings.min_institutions
        return {
            name: subgroups.moved(places, subgroups.closed(setup.groups[name], floor))
            for name, places in self._places.items()
            if name in setup.groups
        }


def check_groups(cohorts: Cohorts, setup: Setup) -> None:
    """Passes numbers of institutions that there can be: against the plan, never against this institution's patients.

    Raises:
        TranscriptError: there cannot.
    """
    plan = cohorts.plan
    known = {} if plan.differential_privacy.enabled else {each.name: each for each in plan.evaluation.subgroups.by}
    for name, holders in setup.groups.items():
        sound = name in known and len(holders) == len(subgroups.groups_of(known[name]))
        if not sound or max(holders) > len(cohorts.subgroups[name] & setup.institutions):
            raise TranscriptError("the groups of an attribute are not counted as the plan has them.")
