"""Scores on the test patients who have every modality of the federation, per cohort and over all (README of the data).

Over all cohorts together a model can score by telling the cohorts apart; the cohorts' own rows show what it knows of
the stage.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from federation.evaluation import Scores, scores_exact
from federation.features import FeatureSchema
from federation.model_archive import Model
from federation.plan import Label, Plan
from federation.tables import RawTable
from institution_node.inference import NumpyModel
from institution_node.predict import basis_of
from studies.federation import StudyError
from studies.tcga import Federation

ALL: Final = "all"

Probabilities = npt.NDArray[np.float64]
SeedScores = Mapping[str, Scores]
"""One method, one seed: `all` and each cohort to its scores on the same test patients."""


def class_index(label: Label, stage: int) -> int:
    """Number of the class that a stage means.

    Raises:
        StudyError: it means none.
    """
    for index, each in enumerate(label.classes):
        if str(stage) in each.values:
            return index
    raise StudyError(f"stage {stage} means no class of the plan.", remedy="List it in the label's classes.")


def stacked(tables: Sequence[RawTable]) -> RawTable:
    """Tables of the same columns, one under the other."""
    first = tables[0]
    return RawTable(
        tuple(patient for table in tables for patient in table.ids),
        {name: np.concatenate([table.numeric[name] for table in tables]) for name in first.numeric},
        {name: tuple(v for table in tables for v in table.categorical[name]) for name in first.categorical},
    )


@dataclass
class TestPatients:
    """Those who results are scored on, and a model's predictions of them.

    Attributes:
        ids: n patients.
        cohorts: their cohorts.
        labels: int64[n], class indices.
        tables: modality, in plan order, to its table of those who have it, in the order of `ids`.
    """

    __test__ = False  # not a test, whatever pytest makes of the name

    ids: tuple[str, ...]
    cohorts: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    tables: Mapping[str, RawTable]
    _features: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    _schema: FeatureSchema | None = None

    @classmethod
    def of(cls, federation: Federation, plan: Plan) -> TestPatients:
        """The complete test patients of all cohorts: whom none of their cohort's modalities lacks.

        Raises:
            StudyError: there is none.
        """
        parts = {name: test for name, test in federation.test.items() if test.complete}
        if not parts:
            raise StudyError(
                "no test patient has all modalities: there is nobody to score on.",
                remedy="Take cohorts that have every modality, or leave a modality out of the study.",
            )
        held = {
            m: [_rows(t.tables[m], t.complete) for t in parts.values() if m in t.tables] for m in plan.modality_order
        }
        tables = {m: stacked(own) for m, own in held.items() if own}
        return cls(
            tuple(p for test in parts.values() for p in test.complete),
            tuple(name for name, test in parts.items() for _ in test.complete),
            np.array([class_index(plan.label, t.stages[p]) for t in parts.values() for p in t.complete], np.int64),
            tables,
        )

    def predict(self, model: Model, held: Sequence[str] | None = None) -> Probabilities:
        """float64[n, classes]: by the classifier of a patient's modalities, or by their heads where the model has none.

        Args:
            model: any whose plan has these modalities.
            held: modalities to predict from, in plan order; None: all.

        Raises:
            StudyError: the model has neither the classifier nor a head for some patients.
        """
        machine = NumpyModel(model)
        if self._schema is not model.schema:  # a run keeps one schema for all its rounds
            self._schema, self._features = model.schema, {}
        made = np.zeros((len(self.ids), len(model.plan.label.classes)))
        for have, who in self._by_modalities.items():
            wanted = tuple(m for m in have if held is None or m in held)
            subsets, reason = basis_of(wanted, machine.subsets)
            if not subsets:
                raise StudyError(f"test patients cannot be staged: {reason}.", remedy="Switch the plan's heads on.")
            features = {m: self._transformed(m, model)[self._row_of[m][who]] for m in wanted}
            made[who] = np.exp(machine.blend(subsets, {m: machine.encode(m, x) for m, x in features.items()}))
        return made

    def _transformed(self, modality: str, model: Model) -> npt.NDArray[np.float32]:
        if modality not in self._features:
            self._features[modality] = model.schema.transform(modality, self.tables[modality])
        return self._features[modality]

    @cached_property
    def _row_of(self) -> Mapping[str, npt.NDArray[np.int64]]:
        """Modality to int64[n], each patient's row in its table; −1 where the patient has none."""
        places = {m: {p: k for k, p in enumerate(table.ids)} for m, table in self.tables.items()}
        return {m: np.array([rows.get(p, -1) for p in self.ids], np.int64) for m, rows in places.items()}

    @cached_property
    def _by_modalities(self) -> Mapping[tuple[str, ...], npt.NDArray[np.int64]]:
        """Modalities to the int64 indices of the patients who have just these."""
        found: dict[tuple[str, ...], list[int]] = {}
        for k in range(len(self.ids)):
            found.setdefault(tuple(m for m, rows in self._row_of.items() if rows[k] >= 0), []).append(k)
        return {have: np.array(who, np.int64) for have, who in found.items()}

    def scores(self, probabilities: Probabilities) -> dict[str, Scores]:
        """`all`, then each cohort, to its scores."""
        cohorts = np.array(self.cohorts)
        found = {ALL: scores_exact(self.labels, probabilities)}
        for name in dict.fromkeys(self.cohorts):
            found[name] = scores_exact(self.labels[cohorts == name], probabilities[cohorts == name])
        return found


def validation_patients(whole: Federation, plan: Plan, validating: Mapping[str, Collection[str]]) -> TestPatients:
    """The institutions' validation patients who have every modality, for choosing between configurations.

    Those at institutions that hold some modalities only are here too, with all of theirs: data that the institution's
    run never saw, of patients whom nobody trained on.

    Args:
        whole: the same deal with all modalities everywhere.
        plan: of the run.
        validating: institution to its validation patients in the run.

    Raises:
        StudyError: none of them has all modalities.
    """
    kept = [
        (shard, tuple(p for p in shard.stages if p in set(validating[shard.name])))
        for shard in whole.shards
        if set(shard.modalities) == set(plan.modality_order)
    ]
    kept = [(shard, patients) for shard, patients in kept if patients]
    if not kept:
        raise StudyError("no validation patient has all modalities: there is nobody to score on.")
    return TestPatients(
        tuple(p for _, patients in kept for p in patients),
        tuple(shard.cohort for shard, patients in kept for _ in patients),
        np.array([class_index(plan.label, shard.stages[p]) for shard, patients in kept for p in patients], np.int64),
        {m: stacked([_rows(shard.tables[m], patients) for shard, patients in kept]) for m in plan.modality_order},
    )


def mean_scores(many: Sequence[SeedScores]) -> dict[str, Scores]:
    """The mean of each figure over several sets of predictions of the same patients: `alone`, over institutions."""
    return {row: _mean([scores[row] for scores in many]) for row in many[0]}


def _mean(scores: Sequence[Scores]) -> Scores:
    def over(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) / len(known) if len(known) == len(values) else None

    return Scores(
        scores[0].patients,
        over([s.accuracy for s in scores]),
        over([s.balanced_accuracy for s in scores]),
        over([s.macro_f1 for s in scores]),
        over([s.auroc for s in scores]),
        over([s.calibration_error for s in scores]),
    )


def _rows(table: RawTable, patients: Sequence[str]) -> RawTable:
    row = {patient: k for k, patient in enumerate(table.ids)}
    return table.select([row[patient] for patient in patients])
