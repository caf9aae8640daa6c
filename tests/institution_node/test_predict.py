from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from federation.model_archive import ModelArchiveError, manifest_digest, pack
from federation.tables import RawTable
from institution_node.errors import StagingError
from institution_node.inference import NumpyModel
from institution_node.model_folder import read_model, write_model
from institution_node.predict import basis_of, predict, to_csv, to_json
from tests.federation.models import example_model


def genes(*ids: str, empty: tuple[str, ...] = ()) -> RawTable:
    values = {i: np.nan if i in empty else float(k) for k, i in enumerate(ids)}
    return RawTable(ids, {f"g{k}": np.array([values[i] + k for i in ids]) for k in range(4)}, {})


def images(*ids: str) -> RawTable:
    return RawTable(ids, {f"f{k}": np.linspace(-1, 1, len(ids)) * (k + 1) for k in range(3)}, {})


def clinical(*ids: str) -> RawTable:
    return RawTable(ids, {"age": np.linspace(20, 80, len(ids))}, {"smoker": ["yes"] * len(ids)})


def test_every_patient_is_staged_from_what_it_has() -> None:
    model = example_model(["classifier/image+clinical"])
    tables = {
        "image": images("both", "three", "ic"),
        "mrna": genes("one", "both", "three"),
        "clinical": clinical("ic", "three"),
    }
    found = predict(model, tables)
    assert {row.id: row.basis for row in found.staged} == {
        "one": "classifier/mrna",
        "both": "classifier/mrna+image",
        "three": "classifier/mrna+image+clinical",
        "ic": "heads: image, clinical",
    }
    assert [row.id for row in found.staged] == ["one", "both", "three", "ic"]  # as they first appear, in plan order
    for row in found.staged:
        assert sum(row.probabilities) == pytest.approx(1.0)
        assert row.predicted == found.classes[int(np.argmax(row.probabilities))]
    assert found.unstaged == ()


def test_a_patients_prediction_does_not_depend_on_who_else_is_in_the_table() -> None:
    model = example_model()
    together = {r.id: r for r in predict(model, {"mrna": genes("a", "b", "c"), "image": images("c", "a")}).staged}
    alone = predict(model, {"mrna": genes("a", "b", "c").select([2]), "image": images("c", "a").select([0])}).staged
    assert len(alone) == 1
    np.testing.assert_allclose(alone[0].probabilities, together["c"].probabilities, atol=1e-6)
    machine = NumpyModel(model)
    encodings = {
        "mrna": machine.encode("mrna", model.schema.transform("mrna", genes("a", "b", "c").select([2]))),
        "image": machine.encode("image", model.schema.transform("image", images("c", "a").select([0]))),
    }
    by_hand = np.exp(machine.log_probabilities("mrna+image", encodings))[0]
    np.testing.assert_allclose(alone[0].probabilities, by_hand, atol=1e-6)


def test_a_row_without_values_is_no_modality() -> None:
    found = predict(example_model(), {"mrna": genes("full", "empty", empty=("empty",)), "image": images("full")})
    assert [row.basis for row in found.staged] == ["classifier/mrna+image"]
    assert [row.id for row in found.unstaged] == ["empty"]
    assert "no value" in found.unstaged[0].reason
    # with values elsewhere it is staged from those
    also = predict(example_model(), {"mrna": genes("empty", empty=("empty",)), "image": images("empty")})
    assert [row.basis for row in also.staged] == ["classifier/image"]


def test_a_model_without_a_part_uses_the_rest() -> None:
    no_encoder = example_model(["encoder/clinical", "classifier/clinical"])
    found = predict(no_encoder, {"clinical": clinical("x", "y"), "mrna": genes("x")})
    assert {r.id: r.basis for r in found.staged} == {"x": "classifier/mrna"}
    assert [r.id for r in found.unstaged] == ["y"]
    assert basis_of(("mrna", "image"), ("mrna+image", "mrna")) == (("mrna+image",), "classifier/mrna+image")
    heads = ("mrna", "clinical")
    assert basis_of(("mrna", "image", "clinical"), heads) == (heads, "heads: mrna, clinical")
    assert basis_of(("mrna", "image"), ("clinical",))[0] == ()


def test_tables_that_cannot_be_staged() -> None:
    model = example_model()
    with pytest.raises(StagingError, match="no table"):
        predict(model, {})
    with pytest.raises(StagingError, match="sound"):
        predict(model, {"sound": genes("a")})
    with pytest.raises(StagingError, match="twice"):
        predict(model, {"mrna": genes("a", "a")})
    assert predict(model, {"mrna": genes()}).staged == ()


def test_csv_and_json_say_the_same_and_name_the_data() -> None:
    found = predict(example_model(), {"mrna": genes("a,1", "b", empty=("b",))})
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    document = json.loads(to_json(found))
    assert [r["id"] for r in rows] == ["a,1"] == [r["id"] for r in document["staged"]]
    assert rows[0]["model_data"] == document["model_data"] == "synthetic"
    assert rows[0]["predicted"] == document["staged"][0]["predicted"]
    assert float(rows[0]["probability_late"]) == pytest.approx(document["staged"][0]["probabilities"]["late"], abs=1e-6)
    assert [r["id"] for r in document["unstaged"]] == ["b"]


def test_a_folder_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = example_model()
    files = pack(model)
    folder = tmp_path / "models" / "final"
    write_model(folder, files)
    write_model(folder, files)  # again, over itself
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files
    found = read_model(folder, manifest_digest(files))
    assert found.components.keys() == model.components.keys()
    (folder / "schema.json").unlink()
    with pytest.raises(ModelArchiveError, match=r"schema\.json cannot be read"):
        read_model(folder)
