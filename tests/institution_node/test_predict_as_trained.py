"""`predict` on raw tables sees what training saw: the same transform, from the schema that the federation agreed on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from federation import names
from federation.features import FeatureSchema
from federation.layout import layout
from federation.model_archive import Model, pack
from institution_node.cli import app
from institution_node.data import load_institution_data, read_features
from institution_node.inference import NumpyModel
from institution_node.model_folder import write_model
from institution_node.predict import predict
from institution_node.training import LocalTrainer
from tests.small_federation import finished, small_plan

THREE = "mrna+image+clinical"
NAME = "brca-1"  # holds all three


class Trained:
    """The model of a federation after a run; without a `repr` of all its weights."""

    def __init__(self) -> None:
        federation = finished(small_plan(7, rounds=2))
        state = federation.run.state
        reader = federation.coordinator.content.open(state.setup.schema)
        data = bytearray(reader.length)
        reader.read_into(0, memoryview(data))
        components = {name: federation.weights(name).copy() for name in state.components}
        subsets = [names.component_subset(n) for n in components if names.component_kind(n) == "classifier"]
        schema, temperatures = FeatureSchema.from_bytes(bytes(data)), dict.fromkeys(subsets, 1.0)
        self.model = Model(federation.plan, schema, components, 2, temperatures)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


CELL = st.one_of(
    st.just(""),
    st.sampled_from(["NA", "nan", "0", "-0.0", "1e3", "-1e9"]),
    st.floats(-200, 2000, allow_nan=False).map(lambda x: f"{x:.4g}"),
)
WORD = st.sampled_from(["yes", "no", "", "NA", " yes ", "sometimes"])


@st.composite
def cohorts(draw: st.DrawFn) -> dict[str, list[dict[str, str]]]:
    """Raw tables as texts: cells that are missing, out of range, or of an unknown category; patients in some only."""
    plan = small_plan(7)
    ids = [f"p{i}" for i in range(draw(st.integers(4, 8)))]
    tables: dict[str, list[dict[str, str]]] = {}
    for modality in plan.modalities:
        held = [i for k, i in enumerate(ids) if k < 3 or draw(st.booleans())]  # the first three have everything
        rows = []
        for patient in draw(st.permutations(held)):
            cells = {c.name: draw(WORD if c.kind == "categorical" else CELL) for c in modality.columns}
            if patient in ids[:3]:
                cells[modality.columns[0].name] = draw(st.integers(0, 5).map(str))  # a value, so that it is there
            rows.append({"case_id": patient, **cells})
        tables[modality.name] = rows
    return tables


def write(folder: Path, tables: dict[str, list[dict[str, str]]]) -> dict[str, Path]:
    paths = {}
    for name, rows in tables.items():
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        paths[name] = folder / f"{name}.csv"
        paths[name].write_text(text.getvalue())
    return paths


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=cohorts())
def test_predict_sees_what_training_saw(
    tables: dict[str, list[dict[str, str]]], trained: Trained, tmp_path: Path
) -> None:
    """The trainer's own logits, on features made as a run makes them, are `predict`'s probabilities."""
    model = trained.model
    plan = model.plan
    paths = write(tmp_path, tables)
    ids = sorted({row["case_id"] for rows in tables.values() for row in rows})
    labels = tmp_path / "labels.csv"
    labels.write_text("case_id,stage\n" + "".join(f"{p},{1 + k % 2}\n" for k, p in enumerate(ids)))
    data = load_institution_data(plan, NAME, paths, labels, "case_id")
    features = {m: model.schema.transform(m, data.tables[m]) for m in plan.modality_order}  # as LocalRun does
    made = layout(plan, model.schema.widths)
    rows = np.arange(len(data))
    trainer = LocalTrainer(plan, made, NAME, features, data.labels, rows[:1], rows[1:])
    seen = trainer.evaluate({name: model.components[name] for name in made.owned(NAME)}).probabilities

    found = {
        row.id: row for row in predict(model, read_features(plan, plan.modality_order, paths, "case_id").tables).staged
    }
    assert set(data.ids) <= set(found)
    for row, patient in enumerate(data.ids[1:]):
        assert found[patient].basis == f"classifier/{THREE}"
        np.testing.assert_allclose(found[patient].probabilities, seen[row], atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=cohorts())
def test_whoever_lacks_a_modality_is_staged_from_the_rest_and_csv_and_json_agree(
    tables: dict[str, list[dict[str, str]]], trained: Trained, tmp_path: Path
) -> None:
    model = trained.model
    plan = model.plan
    paths = write(tmp_path, tables)
    raw = read_features(plan, plan.modality_order, paths, "case_id").tables
    machine = NumpyModel(model)
    write_model(tmp_path / "model", pack(model))
    given_: list[str] = ["predict", "--model", str(tmp_path / "model")]
    for name, path in paths.items():
        given_ += ["--table", f"{name}={path}"]
    runner = CliRunner()
    as_csv, as_json = runner.invoke(app, given_), runner.invoke(app, [*given_, "--format", "json"])
    assert as_csv.exit_code == as_json.exit_code == 0, as_csv.output
    rows: dict[str, Any] = {row["id"]: row for row in csv.DictReader(io.StringIO(as_csv.stdout))}
    staged = {row["id"]: row for row in json.loads(as_json.stdout)["staged"]}
    assert list(rows) == list(staged)
    for patient, row in staged.items():
        held = tuple(m for m in plan.modality_order if patient in raw[m].ids)
        own = {
            m: machine.encode(m, model.schema.transform(m, raw[m].select([raw[m].ids.index(patient)]))) for m in held
        }
        if held == plan.modality_order or len(held) == 1:
            subsets: tuple[str, ...] = ("+".join(held),)
            basis = f"classifier/{subsets[0]}"
        else:  # no institution has this combination: the mean of the heads
            subsets, basis = held, f"heads: {', '.join(held)}"
        expected = np.exp(machine.blend(subsets, own))[0]
        assert row["basis"] == rows[patient]["basis"] == basis
        assert list(row["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        shown = [float(rows[patient][f"probability_{c}"]) for c in plan.class_names]
        assert shown == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["predicted"] == rows[patient]["predicted"] == plan.class_names[int(np.argmax(expected))]
