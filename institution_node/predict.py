"""Staging patients with a finished model, from whatever modalities each one has (METHOD.md, "Uni-modal heads").

A patient *has* a modality if it is in that modality's table with a value in at least one of the columns that the model
uses, and the model has an encoder for it. It is then staged by

- the classifier of exactly its modalities, where the model has one;
- otherwise the mean of the calibrated log-probabilities of its modalities' heads, renormalised;
- otherwise not at all: it is reported, with the reason.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from federation import names
from federation.features import FeatureSchema, NumericInput
from federation.model_archive import Model
from federation.plan import digest
from federation.tables import RawTable
from institution_node.encoder_kinds import NO_ENCODERS, Encoders
from institution_node.errors import StagingError
from institution_node.inference import NumpyModel


@dataclass(frozen=True)
class Staged:
    """One patient's prediction.

    Attributes:
        id: the patient's, as in the tables.
        predicted: name of the most probable class.
        probabilities: per class, in the plan's order; they sum to 1.
        basis: what it rests on: `classifier/mrna+image`, or `heads: mrna, image`.
    """

    id: str
    predicted: str
    probabilities: tuple[float, ...]
    basis: str


@dataclass(frozen=True)
class Unstaged:
    """A patient who cannot be staged, and why, for the screen."""

    id: str
    reason: str


@dataclass(frozen=True)
class Predictions:
    """All patients of the tables, each in one of the two lists, in the order in which they first appear.

    Attributes:
        classes: names, in the order of every row's probabilities.
        staged: one row per patient who can be staged.
        unstaged: the others.
        data: what the model was trained on, `real` or `synthetic`.
        run: digest of the run that trained it, 64 hex digits.
        round: the round whose weights these are.
    """

    classes: tuple[str, ...]
    staged: tuple[Staged, ...]
    unstaged: tuple[Unstaged, ...]
    data: str
    run: str
    round: int


def predict(model: Model, tables: Mapping[str, RawTable], encoders: Encoders = NO_ENCODERS) -> Predictions:
    """Stages every patient in the tables.

    Args:
        model: from `model_archive.unpack`.
        tables: modality to its raw table; a patient may be in some of them only.
        encoders: factories of kinds of encoders other than `mlp`, where the model has such.

    Raises:
        StagingError: no table, a table of a modality that the plan does not have, or a patient twice in one.
        FeatureTableError: a column of the wrong kind.
        EncoderError: a table's encoder is of a kind that was not given.
    """
    _check_tables(model, tables)
    machine = NumpyModel(model, encoders)
    patients = list(dict.fromkeys(p for m in model.plan.modality_order if m in tables for p in tables[m].ids))
    rows: dict[str, dict[str, int]] = {}  # modality to patient to row of `encodings`
    encodings: dict[str, npt.NDArray[np.float32]] = {}
    for modality in machine.modalities:
        if modality in tables:
            table = tables[modality]
            known = np.flatnonzero(has_values(model.schema, modality, table)).tolist()
            chosen = table.select(known)
            rows[modality] = {patient: k for k, patient in enumerate(chosen.ids)}
            encodings[modality] = machine.encode(modality, model.schema.transform(modality, chosen))
    groups: dict[tuple[str, ...], list[str]] = {}
    for patient in patients:
        groups.setdefault(tuple(m for m, there in rows.items() if patient in there), []).append(patient)
    found: dict[str, Staged | Unstaged] = {}
    for held, members in groups.items():
        subsets, basis = basis_of(held, machine.subsets)
        if not subsets:
            found.update({p: Unstaged(p, basis) for p in members})
            continue
        own = {m: encodings[m][[rows[m][p] for p in members]] for m in held}
        probabilities = np.exp(machine.blend(subsets, own))
        for patient, row in zip(members, probabilities, strict=True):
            top = model.plan.class_names[int(np.argmax(row))]
            found[patient] = Staged(patient, top, tuple(float(p) for p in row), basis)
    every = [found[p] for p in patients]
    return Predictions(
        classes=model.plan.class_names,
        staged=tuple(r for r in every if isinstance(r, Staged)),
        unstaged=tuple(r for r in every if isinstance(r, Unstaged)),
        data=model.plan.data,
        run=digest(model.plan.to_bytes()).hex(),
        round=model.round,
    )


def basis_of(held: tuple[str, ...], subsets: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Which classifiers stage a patient, and how that is called; no classifiers, and the reason.

    Args:
        held: modalities that the patient has and the model can encode, in plan order.
        subsets: those that the model has a classifier for.
    """
    if not held:
        return (), "no value in any modality that the model reads"
    exact = "+".join(held)
    if exact in subsets:
        return (exact,), names.classifier(exact)
    heads = tuple(m for m in held if m in subsets)
    if not heads:
        return (), f"the model has neither a classifier for {exact} nor heads for its modalities"
    return heads, f"heads: {', '.join(heads)}"


def has_values(schema: FeatureSchema, modality: str, table: RawTable) -> npt.NDArray[np.bool_]:
    """bool[patients]: whether any column that the model uses has a value."""
    there = np.zeros(len(table), dtype=np.bool_)
    for each in schema.modalities[modality]:
        if isinstance(each, NumericInput):
            if each.name in table.numeric:
                there |= ~np.isnan(table.numeric[each.name])
        elif each.name in table.categorical:
            there |= np.array([value is not None for value in table.categorical[each.name]], dtype=np.bool_)
    return there


def to_csv(predictions: Predictions) -> str:
    """One row per staged patient: id, predicted, a probability per class, basis, and what the model was trained on."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "predicted", *(f"probability_{c}" for c in predictions.classes), "basis", "model_data"])
    for row in predictions.staged:
        chances = [f"{p:.6f}" for p in row.probabilities]
        writer.writerow([row.id, row.predicted, *chances, row.basis, predictions.data])
    return out.getvalue()


def to_json(predictions: Predictions) -> str:
    """The same and more: the run, its round, and the patients who could not be staged."""
    document = {
        "run": predictions.run,
        "round": predictions.round,
        "model_data": predictions.data,
        "classes": list(predictions.classes),
        "staged": [
            {
                "id": row.id,
                "predicted": row.predicted,
                "probabilities": dict(zip(predictions.classes, row.probabilities, strict=True)),
                "basis": row.basis,
            }
            for row in predictions.staged
        ],
        "unstaged": [{"id": row.id, "reason": row.reason} for row in predictions.unstaged],
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _check_tables(model: Model, tables: Mapping[str, RawTable]) -> None:
    order = ", ".join(model.plan.modality_order)
    if not tables:
        raise StagingError("there is no table to stage from.", remedy=f"Give a table for one or more of: {order}.")
    for modality, table in tables.items():
        if modality not in model.plan.modality_order:
            raise StagingError(f"the model has no modality {modality!r}.", remedy=f"It knows: {order}.", place=modality)
        if len(set(table.ids)) != len(table.ids):
            raise StagingError(
                "a patient stands twice in the table.", remedy="Keep one row per patient.", place=modality
            )
