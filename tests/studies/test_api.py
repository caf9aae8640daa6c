"""A federation on one's own tables: what comes out, that masks change nothing, and what bad tables are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from torch import nn

from federation.model_archive import pack
from institution_node.data import NoPatientError, OneClassError
from institution_node.errors import EncoderError, StagingError
from institution_node.table_files import DataColumnError, DataValueError, LabelValueError, PatientIdError
from institution_node.training import LocalTrainer
from security.errors import ConsiliumError
from studies.api import Encoder, FederationWarning, Institution, curves, load_model, run_federation
from studies.batched_training import BatchedTrainers
from studies.federation import StudyError
from studies.frames import FrameError
from tests.studies.own_tables import HELD, OPTIONS, institutions, patients, run


def test_history_has_a_row_for_each_round() -> None:
    result = run()
    assert result.history.index.tolist() == [1, 2, 3]
    assert result.history["exported"].sum() == 1
    assert result.history["patients"].tolist() == [60.0] * 3  # a fifth of six times fifty
    assert result.history[["accuracy", "auroc"]].notna().all(axis=None)
    assert set(result.losses.index.get_level_values("subset")) == {"blood", "chart", "blood+chart"}
    assert result.losses["training_loss"].notna().all()


def test_runs_are_drawn_beside_each_other(tmp_path: Path) -> None:
    figure = curves({"ours": run(), "plain <averages>": run(method="cm-fl")}, "accuracy")
    told = figure.save(tmp_path / "figure.svg").read_text(encoding="utf-8")
    assert told.startswith("<svg")
    assert "ours" in told
    assert "plain &lt;averages&gt;" in told
    for bad in ({}, {"ours": run()}):
        with pytest.raises(ConsiliumError) as error:
            curves(bad, "magic")
        assert error.value.remedy


def test_masks_keys_and_shares_change_no_bit() -> None:
    plain, masked = run(), run(masks=True)
    assert {n: v.tobytes() for n, v in plain.model.parts.components.items()} == {
        n: v.tobytes() for n, v in masked.model.parts.components.items()
    }
    pd.testing.assert_frame_equal(plain.history, masked.history)
    pd.testing.assert_frame_equal(plain.losses, masked.losses)
    assert "cohort" in masked.records[1]


def test_patients_are_counted_by_sex_and_age_where_the_plan_says_so() -> None:
    by = [{"name": "sex", "column": "sex", "categories": ["f", "m"]}, {"name": "age", "column": "age", "cuts": [60]}]
    options = {"evaluation": {"bins": 10, "subgroups": {"by": by, "every": 1, "min_patients": 1}}}
    rng = np.random.default_rng(4)
    known = []
    for each in institutions():
        ids = next(iter(each.tables.values())).index
        sex, age = rng.choice(["f", "m"], len(ids)), rng.integers(40, 80, len(ids))
        known.append(replace(each, people=pd.DataFrame({"sex": sex, "age": age}, index=ids)))
    found = run_federation(known, rounds=2, options=options, data="synthetic").subgroups
    assert found.index.get_level_values("round").unique().tolist() == [1, 2]
    for attribute in ("sex", "age"):
        assert found.loc[(2, attribute), "patients"].sum() == 60.0
        assert found.loc[(2, attribute), "accuracy"].dropna().between(0, 1).all()
    assert run().subgroups.empty
    with pytest.raises(DataColumnError, match="column 'sex', by which the plan counts sex") as nobody:
        run_federation(institutions(), rounds=2, options=options, data="synthetic")
    assert "people" in nobody.value.remedy


def test_the_method_is_a_choice() -> None:
    assert run(method="cm-fl").plan.blending.kind == "off"
    assert run(method="cm-fl").history["auroc"].tolist() != run().history["auroc"].tolist()


def test_new_patients_are_staged_from_what_they_have_and_why_not_is_said() -> None:
    tables, labels = patients("new", ("blood", "chart"), 40)
    chart = tables["chart"].iloc[10:]
    blood = tables["blood"].iloc[:30].assign(unknown=1.0)
    blood.iloc[0] = np.nan
    rows = run().predict({"blood": blood, "chart": chart})
    assert sorted(rows.index) == sorted(tables["blood"].index[1:].tolist())  # who has no value is in no table
    assert rows.loc["new-001", "basis"] == "classifier/blood"
    assert rows.loc["new-015", "basis"] == "classifier/blood+chart"
    assert rows.loc["new-035", "basis"] == "classifier/chart"
    np.testing.assert_allclose(rows[["probability_early", "probability_late"]].sum(axis=1), 1.0, atol=1e-6)
    score = run().score(tables, labels)
    assert score["patients"] == 40
    assert score["auroc"] > 0.7
    with pytest.raises(StagingError, match="no modality 'scan'"):
        run().predict({"scan": blood})


def test_a_saved_model_is_the_same_model(tmp_path: Path) -> None:
    folder = run().save(tmp_path / "model")
    tables, _ = patients("new", ("blood", "chart"), 10)
    pd.testing.assert_frame_equal(load_model(folder).predict(tables), run().predict(tables))
    assert pack(load_model(folder).parts) == pack(run().model.parts)
    assert pd.read_csv(folder / "history.csv")["round"].tolist() == [1, 2, 3]


def test_numbers_given_as_texts_of_categories_and_gaps_are_read() -> None:
    own = institutions()
    for each in own:
        blood = each.tables["blood"]
        blood["site"] = pd.Categorical(np.arange(len(blood)) % 3)
        blood.loc[blood.index[:4], "crp"] = np.nan
        blood["own note" + each.name] = blood.index
        assert isinstance(each.labels, pd.Series)
        each.labels.iloc[0] = None
    result = run_federation(own, rounds=1, options=OPTIONS, data="synthetic")
    assert {"site=0", "site=1", "site=2", "crp=missing"} <= set(result.model.features["blood"])


def test_who_takes_no_part_is_warned_of_and_named() -> None:
    own = [*institutions()[:4], Institution("plain", *patients("plain", ("chart",)))]
    with pytest.warns(FederationWarning, match="chart; took no part: plain"):
        plain = run_federation(own, rounds=1, options=OPTIONS, data="synthetic")
    assert plain.sat_out == ("plain",)
    with pytest.warns(FederationWarning):
        masked = run_federation(own, rounds=1, options=OPTIONS, data="synthetic", masks=True)
    assert pack(masked.model.parts).keys() == pack(plain.model.parts).keys()
    pd.testing.assert_frame_equal(plain.history, masked.history)


def _index_reset(own: Institution) -> Institution:
    return replace(own, tables={**own.tables, "blood": own.tables["blood"].reset_index()})


def _blood(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Institution], Institution]:
    return lambda own: replace(own, tables={**own.tables, "blood": change(own.tables["blood"])})


def _labels(change: Callable[[pd.Series], Any]) -> Callable[[Institution], Institution]:
    return lambda own: replace(own, labels=change(own.labels))


def _twice(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[:2]])


BAD: dict[str, tuple[Callable[[Institution], Institution], type[ConsiliumError], str, str]] = {
    "row numbers for patients": (_index_reset, FrameError, "row numbers", "set_index"),
    "an index of two levels": (
        _blood(lambda t: t.set_index([t.index, t.index])), FrameError, "several levels", "set_index"
    ),
    "no table": (_blood(lambda t: t.to_numpy()), FrameError, "ndarray", "DataFrame"),
    "an empty table": (_blood(lambda t: t.iloc[:0]), FrameError, "empty", "Leave the modality out"),
    "a patient twice": (_blood(_twice), PatientIdError, "2 rows repeat", "duplicated"),
    "a patient twice, as number and text": (
        _blood(lambda t: t.set_axis([1, "1", *t.index[2:]])), PatientIdError, "1 rows repeat", "duplicated"
    ),
    "a patient without identifier": (
        _blood(lambda t: t.set_axis([None, *t.index[1:]])), PatientIdError, "no identifier", "Fill the index"
    ),
    "a column here numbers, there texts": (
        _blood(lambda t: t.assign(crp=["high"] * len(t))), DataColumnError, "categorical here and numeric at north",
        "to_numeric",
    ),
    "numbers and texts in one column": (
        _blood(lambda t: t.assign(crp=["high", *t["crp"].iloc[1:]])), DataValueError, "49 numbers and 1 texts",
        "to_numeric",
    ),
    "dates": (
        _blood(lambda t: t.assign(day=pd.Timestamp("2020-01-01"))), DataValueError, "neither numbers nor texts", "days"
    ),
    "an infinite number": (_blood(lambda t: t.assign(crp=np.inf)), DataValueError, "infinite", "NaN"),
    "a column without a name": (
        _blood(lambda t: t.rename(columns={"crp": 7})), DataColumnError, "called 7", "rename"
    ),
    "a column twice": (
        _blood(lambda t: t.rename(columns={"crp": "hb"})), DataColumnError, "'hb' comes twice", "Keep one"
    ),
    "no column in common": (_blood(lambda t: t.add_suffix("_x")), DataColumnError, "in common", "same names"),
    "free text": (
        _blood(lambda t: t.assign(note=[f"{k}" for k in range(len(t))])), DataColumnError, "different texts", "Drop"
    ),
    "labels that are a table": (_labels(lambda s: s.to_frame()), FrameError, "DataFrame", "Series"),
    "a label outside the classes": (_labels(lambda s: s.replace("late", "IV")), LabelValueError, "'IV'", "early"),
    "one class": (_labels(lambda s: s.replace("late", "early")), OneClassError, "early", "another class"),
    "nobody with a label": (
        _labels(lambda s: s.set_axis([f"{k}" for k in range(len(s))])), NoPatientError, "no patient", "identifiers"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tables_are_told_with_place_and_remedy(name: str) -> None:
    spoil, kind, message, remedy = BAD[name]
    own = institutions()
    if name == "free text":  # of a column that only one table has, nothing is used and nothing told
        own[1] = Institution("south", *patients("south", HELD["south"], 120))
        own = [spoil(each) for each in own]
    else:
        own[1] = spoil(own[1])
    with pytest.raises(kind, match=message) as told:
        run_federation(own, classes=["early", "late"], rounds=1, options=OPTIONS)
    assert remedy in told.value.remedy
    assert "south" in told.value.place


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"options": {"training": {"local_stepz": 3}}}, "training.local_stepz"),
        ({"options": {"training": {"local_steps": 0}}}, "training.local_steps"),
        ({"options": {"rounds": 3}}, "'rounds' is no option"),
        ({"options": {"differential_privacy": {"enabled": True}, "training": {"class_weights": "none"}}}, "ledger"),
        ({"hidden": {"scan": (4,)}}, "no institution has a table 'scan'"),
        ({"method": "magic"}, "'magic'"),
        ({"classes": {"early": ["early"]}}, "1 classes"),
    ],
)
def test_arguments_that_make_no_plan_are_told(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConsiliumError, match=message) as told:
        run_federation(institutions(), **{"rounds": 1, **arguments})
    assert told.value.remedy


def test_two_institutions_of_one_name_are_refused() -> None:
    with pytest.raises(FrameError, match="comes twice") as told:
        run_federation([*institutions(), institutions()[0]])
    assert told.value.place == "north"


def test_labels_that_do_not_fit_the_model_are_told() -> None:
    tables, labels = patients("new", ("blood",), 10)
    with pytest.raises(LabelValueError, match="'IV'"):
        run().score(tables, labels.replace("late", "IV"))
    with pytest.raises(FrameError, match="both a prediction and a label"):
        run().score(tables, labels.rename(index=lambda patient: f"other {patient}"))


def _layers(inputs: int, width: int, options: Mapping[str, float | str]) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, int(options["hidden"])), nn.Tanh(), nn.Linear(int(options["hidden"]), width))


def test_an_encoder_of_ones_own_is_trained_saved_and_used(tmp_path: Path) -> None:
    own = {"blood": Encoder("layers", _layers, {"hidden": 4.0})}
    plain = run_federation(institutions(), rounds=2, options=OPTIONS, encoders=own, data="synthetic")
    masked = run_federation(institutions(), rounds=2, options=OPTIONS, encoders=own, data="synthetic", masks=True)
    assert pack(plain.model.parts)["model.safetensors"] == pack(masked.model.parts)["model.safetensors"]
    assert [t.name for t in plain.plan.modalities[0].tensors] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    tables, _ = patients("new", ("blood", "chart"), 10)
    folder = plain.save(tmp_path / "model")
    again = load_model(folder, {"layers": _layers})
    pd.testing.assert_frame_equal(again.predict(tables), plain.predict(tables))
    with pytest.raises(EncoderError, match="whose code is not in the model"):
        load_model(folder).predict(tables)
    assert load_model(folder).predict({"chart": tables["chart"]})["predicted"].notna().all()


def test_an_encoder_that_cannot_be_federated_is_refused() -> None:
    def normalised(inputs: int, width: int, options: Mapping[str, float | str]) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width))

    with pytest.raises(EncoderError, match="which no sum covers"):
        run_federation(institutions(), rounds=1, encoders={"blood": Encoder("normalised", normalised)})
    with pytest.raises(ConsiliumError, match="two factories"):
        run_federation(institutions(), encoders={"blood": Encoder("one", _layers), "chart": Encoder("one", normalised)})


def test_batched_training_refuses_it() -> None:
    own = {"blood": Encoder("layers", _layers, {"hidden": 4.0})}
    result = run_federation(institutions(), rounds=1, options=OPTIONS, encoders=own, data="synthetic")
    parts, labels = result.model.parts, np.arange(20) % 2
    features = {m: np.zeros((20, parts.schema.width(m)), np.float32) for m in ("blood", "chart")}
    rows = range(20)
    one = LocalTrainer(
        result.plan, parts.layout, "north", features, labels, rows, (), "cpu", encoders={"layers": _layers}
    )
    weights = {name: parts.layout.components[name].initial(1) for name in parts.layout.owned("north")}
    with pytest.raises(StudyError, match="cannot be stacked"):
        BatchedTrainers().evaluate([one], [weights])
