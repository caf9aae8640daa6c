"""A finished model on pandas tables: predict, score, save and load again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from federation.evaluation import scores_exact
from federation.model_archive import Model, pack_files
from federation.plan import Plan
from federation.tables import RawTable
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.model_folder import read_model, write_model
from institution_node.predict import predict
from institution_node.table_files import LabelValueError
from security.errors import ConfigurationError
from studies.frames import FrameError, label_texts, plan_kinds, raw_table


@dataclass(frozen=True)
class TrainedModel:
    """A model and what is needed to use it.

    Attributes:
        parts: plan, feature schema and weights. Classifiers that fewer than `k_min` institutions own stay with them
            and are not in it; such patients are staged by the heads of their modalities.
        encoders: factories of its kinds of encoders other than `mlp`; their code is never part of a model.
    """

    parts: Model
    encoders: Encoders = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """Of the run that trained it."""
        return self.parts.plan

    @property
    def round(self) -> int:
        """The round whose weights these are."""
        return self.parts.round

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """Modality to the names of its inputs, in order."""
        return {
            modality: tuple(label for each in used for label in each.labels)
            for modality, used in self.parts.schema.modalities.items()
        }

    def predict(self, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        """Stages patients from whatever modalities each one has.

        Args:
            tables: modality to a DataFrame indexed by patient, with the columns that were trained on; a patient may be
                in some tables only, and columns may be missing.

        Returns:
            One row per patient: `predicted`, a `probability_CLASS` each (they sum to 1), `basis` (what it rests on),
            and `reason`, why a patient without a prediction has none.

        Raises:
            FrameError, PatientIdError, DataColumnError, DataValueError: a table, and where.
            StagingError: no table, or one of a modality that the model does not know.
        """
        told = predict(self.parts, self._read(tables), self.encoders)
        names = [f"probability_{c}" for c in told.classes]
        rows: dict[str, dict[str, Any]] = {}
        for row in told.staged:
            chances = dict(zip(names, row.probabilities, strict=True))
            rows[row.id] = {"predicted": row.predicted, **chances, "basis": row.basis, "reason": ""}
        for left in told.unstaged:
            rows[left.id] = {"predicted": None, **dict.fromkeys(names, np.nan), "basis": "", "reason": left.reason}
        index = pd.Index(list(rows), name="patient", dtype=object)
        return pd.DataFrame(list(rows.values()), index=index, columns=["predicted", *names, "basis", "reason"])

    def score(self, tables: Mapping[str, pd.DataFrame], labels: pd.Series | Mapping[str, Any]) -> pd.Series:
        """Figures of the predictions of all patients who are staged and have a label.

        Returns:
            `accuracy`, `balanced_accuracy`, `auroc`, `macro_f1`, `calibration_error`, `patients`.

        Raises:
            LabelValueError: a label that means no class.
            FrameError: no patient has both; and as `predict`.
        """
        classes = {v: k for k, each in enumerate(self.plan.label.classes) for v in each.values}
        truth = label_texts(labels, "labels")
        unknown = next((text for text in truth.values() if text not in classes), None)
        if unknown is not None:
            raise LabelValueError(
                f"{unknown[:24]!r} is no value of a class.", remedy=f"Use: {', '.join(classes)}.", place="labels"
            )
        rows = self.predict(tables)
        rows = rows[(rows["reason"] == "") & rows.index.isin(list(truth))]
        if rows.empty:
            raise FrameError(
                "no patient has both a prediction and a label.",
                remedy="Index tables and labels by the same identifiers.",
                place="labels",
            )
        targets = np.array([classes[truth[patient]] for patient in rows.index], dtype=np.int64)
        chances = rows[[f"probability_{c}" for c in self.plan.class_names]].to_numpy(dtype=np.float64)
        return pd.Series(asdict(scores_exact(targets, chances)), dtype="float64")

    def save(self, folder: str | Path) -> Path:
        """Writes the files of `consilium export`: `consilium-node predict` and `load_model` read them.

        Raises:
            ConfigurationError: the disk refused.
        """
        target = Path(folder)
        try:
            write_model(target, pack_files(self.parts))
        except OSError as error:
            raise ConfigurationError(
                f"the model cannot be written: {error.strerror or type(error).__name__}.",
                remedy="Name a folder that can be made and written.",
                place=str(target),
            ) from error
        return target

    def _read(self, tables: Mapping[str, pd.DataFrame]) -> dict[str, RawTable]:
        kinds = {modality.name: plan_kinds(modality.columns) for modality in self.plan.modalities}
        # A modality that the plan does not have is told by `predict`.
        return {m: raw_table(frame, kinds.get(m, {}), f"table {m!r}") for m, frame in tables.items()}


def load_model(folder: str | Path, encoders: Encoders = NO_ENCODERS) -> TrainedModel:
    """A model that was saved, exported, or kept by a node.

    Args:
        folder: its folder.
        encoders: kind to factory, where the model has kinds of encoders other than `mlp`.

    Raises:
        ModelArchiveError: not such a folder, or its files were altered.
    """
    return TrainedModel(read_model(Path(folder)), encoders)
