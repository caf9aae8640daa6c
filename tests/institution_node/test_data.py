"""Reading a hospital's tables: what comes out, and what every mistake is told as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.plan import Plan, Subgroup, Subgroups
from institution_node.data import (
    InstitutionData,
    NoPatientError,
    OneClassError,
    load_institution_data,
    read_features,
    split,
    split_each,
)
from institution_node.table_files import (
    DataColumnError,
    DataFileError,
    DataValueError,
    LabelValueError,
    PatientIdError,
    read_labels,
    read_table,
)
from security.errors import ConsiliumError
from security.privacy.randomness import SeededRandomness
from tests.plans import example_plan

INSTITUTION = "lihc-2"  # mrna and clinical
MRNA = pd.DataFrame(
    {"case_id": ["p3", "p1", "p2", "p4"], "g0": [1.0, 2.0, 3.0, 4.0], "g1": [0.5, np.nan, 0.25, 1.0], "other": 7}
)
CLINICAL = pd.DataFrame(
    {
        "case_id": ["p1", "p2", "p3", "p5"],
        "age": [50, 60, 70, 80],
        "marker": [None, 3.5, 4.0, 5.0],
        "smoker": ["yes", None, " no ", "yes"],
    }
)
LABELS = pd.DataFrame({"case_id": ["p1", "p2", "p3", "p4", "p5"], "stage": ["1", "3", "2", "1", None]})


@pytest.fixture
def plan() -> Plan:
    return example_plan()


def write(folder: Path, kind: str, **changed: pd.DataFrame) -> tuple[dict[str, Path], Path]:
    paths = {}
    for name, frame in {"mrna": MRNA, "clinical": CLINICAL, "labels": LABELS, **changed}.items():
        paths[name] = folder / f"{name}.{kind}"
        if kind == "parquet":
            frame.to_parquet(paths[name])
        else:
            frame.to_csv(paths[name], index=False, sep="\t" if kind == "tsv" else ",")
    return paths, paths.pop("labels")


def load(plan: Plan, folder: Path, kind: str = "csv", **changed: pd.DataFrame) -> InstitutionData:
    tables, labels = write(folder, kind, **changed)
    return load_institution_data(plan, INSTITUTION, tables, labels, "case_id")


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_patients_with_everything_are_aligned(plan: Plan, tmp_path: Path, kind: str) -> None:
    data = load(plan, tmp_path, kind)
    assert data.ids == ("p1", "p2", "p3")
    assert data.labels.tolist() == [0, 1, 1]
    assert list(data.tables) == ["mrna", "clinical"]
    for table in data.tables.values():
        assert table.ids == data.ids
    assert data.tables["mrna"].numeric["g0"].tolist() == [2.0, 3.0, 1.0]
    np.testing.assert_array_equal(data.tables["mrna"].numeric["g1"], [np.nan, 0.25, 0.5])
    assert set(data.tables["mrna"].numeric) == {"g0", "g1"}
    np.testing.assert_array_equal(data.tables["clinical"].numeric["marker"], [np.nan, 3.5, 4.0])
    assert data.tables["clinical"].categorical["smoker"] == ("yes", None, "no")


def test_fingerprint_is_of_the_content(plan: Plan, tmp_path: Path) -> None:
    first = load(plan, tmp_path, "csv").fingerprint
    assert load(plan, tmp_path, "parquet").fingerprint == first
    assert load(plan, tmp_path, mrna=MRNA.iloc[::-1, [0, 2, 1]]).fingerprint == first
    changes: list[dict[str, pd.DataFrame]] = [
        {"mrna": MRNA.assign(g0=[1.0, 2.0, 3.0000001, 4.0])},
        {"mrna": MRNA.rename(columns={"g1": "g2"})},
        {"clinical": CLINICAL.assign(smoker=["yes", "yes", "no", "yes"])},
        {"labels": LABELS.assign(stage=["1", "1", "2", "1", None])},
        {"clinical": CLINICAL[CLINICAL.case_id != "p1"], "labels": LABELS.assign(stage=["1", "1", "2", "1", None])},
    ]
    prints = [load(plan, tmp_path, **change).fingerprint for change in changes]
    assert len({first, *prints}) == len(changes) + 1


def test_integer_labels_and_ids_with_gaps_read_as_text(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "labels.parquet"
    pd.DataFrame({"id": [7, 8, 9], "stage": [1.0, None, 2.0]}).to_parquet(path)
    assert read_labels(path, plan.label, "id") == {"7": 0, "9": 1}
    path = tmp_path / "labels.csv"
    path.write_text("id,stage\n007,1\n008,\n009,2\n")
    assert read_labels(path, plan.label, "id") == {"007": 0, "009": 1}


def test_a_missing_marker_that_the_plan_lists_is_a_value(tmp_path: Path) -> None:
    clinical = next(m for m in example_plan().modalities if m.name == "clinical")
    column = clinical.columns[2].model_copy(update={"categories": ("None", "light")})
    modality = clinical.model_copy(update={"columns": (column,)})
    path = tmp_path / "t.csv"
    path.write_text("id,smoker\na,None\nb,NA\nc,light\n")
    table = read_table(path, modality, "id")
    assert table.ids == ("a", "c")  # b has no value in any column: the patient does not have this modality
    assert table.categorical["smoker"] == ("None", "light")


SEX = Subgroup(name="sex", column="sex", categories=("female", "male"))
AGE = Subgroup(name="age", column="age", cuts=(50.0, 65.0))
PEOPLE = pd.DataFrame({"case_id": ["p2", "p1", "p9"], "sex": [" male", None, "female"], "age": ["64.9", "65", "30"]})


def counting(plan: Plan, *by: Subgroup) -> Plan:
    evaluation = plan.evaluation.model_copy(update={"subgroups": Subgroups(by=by)})
    return plan.model_copy(update={"evaluation": evaluation})


def load_by(plan: Plan, folder: Path, people: pd.DataFrame, *by: Subgroup) -> InstitutionData:
    tables, labels = write(folder, "csv", people=people)
    people_file = tables.pop("people")
    return load_institution_data(counting(plan, *by), INSTITUTION, tables, labels, "case_id", people_file)


def test_every_patient_is_in_a_group_of_the_plans(plan: Plan, tmp_path: Path) -> None:
    data = load_by(plan, tmp_path, PEOPLE, SEX, AGE)
    assert data.ids == ("p1", "p2", "p3")
    assert data.subgroups["sex"].tolist() == [2, 1, 2]  # no value; male; not in the table
    assert data.subgroups["age"].tolist() == [2, 1, 3]
    odd = PEOPLE.assign(sex=["Male", "f", "female"])
    assert load_by(plan, tmp_path, odd, SEX).subgroups["sex"].tolist() == [2, 2, 2]  # what the plan does not list


def test_groups_are_in_the_fingerprint(plan: Plan, tmp_path: Path) -> None:
    without = load(plan, tmp_path).fingerprint
    first = load_by(plan, tmp_path, PEOPLE, SEX).fingerprint
    other = load_by(plan, tmp_path, PEOPLE.assign(sex=["female", None, "female"]), SEX).fingerprint
    assert len({without, first, other}) == 3
    assert load_by(plan, tmp_path, PEOPLE.assign(sex=["male ", "unknown", "male"]), SEX).fingerprint == first


def test_a_subgroup_without_its_column_is_told_unless_the_plan_leaves_the_institution_out(
    plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(DataColumnError, match="column 'gender', by which the plan counts sex") as caught:
        load_by(plan, tmp_path, PEOPLE, SEX.model_copy(update={"column": "gender"}), AGE)
    assert "leave lihc-2 out" in caught.value.remedy
    others = tuple(name for name in plan.roster if name != INSTITUTION)
    left_out = SEX.model_copy(update={"column": "gender", "institutions": others})
    assert set(load_by(plan, tmp_path, PEOPLE, left_out, AGE).subgroups) == {"age"}
    with pytest.raises(DataValueError, match="'old', which is not a number") as wrong:
        load_by(plan, tmp_path, PEOPLE.assign(age=["64", "65", "old"]), AGE)
    assert wrong.value.place.endswith("people.csv:4")


def test_without_a_table_of_their_own_groups_are_read_beside_the_labels(plan: Plan, tmp_path: Path) -> None:
    labels = LABELS.assign(sex=["female", "male", "male", "female", "male"])
    assert load(counting(plan, SEX), tmp_path, labels=labels).subgroups["sex"].tolist() == [0, 1, 1]


BAD: dict[str, tuple[type[ConsiliumError], str, str]] = {
    # name: (error, text in the message, place)
    "no id column": (DataColumnError, "no id column 'case_id' (did you mean 'caseid'?)", "mrna.csv"),
    "duplicate patient": (PatientIdError, "already stands at", "mrna.csv:6"),
    "no identifier": (PatientIdError, "no identifier", "mrna.csv:3"),
    "unknown stage": (LabelValueError, "early: 1; late: 2, 3", "labels.csv:3"),
    "no label column": (DataColumnError, "no label column 'stage'", "labels.csv"),
    "nobody": (NoPatientError, "labels 3, mrna 4, clinical 4", "labels.csv"),
    "one class": (OneClassError, "class 'late'", "labels.csv"),
    "not a number": (DataValueError, "column 'g1' has '0,25', which is not a number", "mrna.csv:5"),
    "no file": (DataFileError, "no such file", "mrna.csv"),
    "empty file": (DataFileError, "empty", "mrna.csv"),
    "no rows": (DataFileError, "no patient", "mrna.csv"),
    "none of the columns": (DataColumnError, "none of the plan's 4 columns", "mrna.csv"),
    "not text": (DataFileError, "not UTF-8", "mrna.csv"),
    "ragged": (DataFileError, "4 fields, the header 2", "mrna.csv:3"),
    "column twice": (DataColumnError, "'g0' stands in the header twice", "mrna.csv"),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_told_with_their_place(plan: Plan, tmp_path: Path, case: str) -> None:
    tables, labels = write(tmp_path, "csv")
    mrna = tables["mrna"]
    texts: dict[str, str | bytes] = {
        "no id column": "caseid,g0\np1,1\n",
        "duplicate patient": 'case_id,g0,note\np1,1,"two\nlines"\np2,2,\n\np1,3,\n',
        "no identifier": "case_id,g0\np1,1\n,2\n",
        "not a number": 'case_id,g0,g1\np1,1,\np2,2,NA\n\np3,2,"0,25"\n',
        "empty file": "",
        "no rows": "case_id,g0\n",
        "none of the columns": "case_id,G0\np1,1\n",
        "not text": b"case_id,g0\n\xff\xfe,1\n",
        "ragged": "case_id,g0\np1,1\np2,1,2,3\n",
        "column twice": "case_id,g0,g0\np1,1,2\n",
    }
    if case in texts:
        text = texts[case]
        mrna.write_bytes(text if isinstance(text, bytes) else text.encode())
    elif case == "no file":
        mrna.unlink()
    elif case == "one class":
        labels.write_text("case_id,stage\np1,2\np2,3\np3,2\n")
    elif case == "nobody":
        labels.write_text("case_id,stage\nq1,2\nq2,1\nq3,2\n")
    elif case == "unknown stage":
        labels.write_text("case_id,stage\np1,2\np2,IVc\np3,2\n")
    else:
        labels.write_text("case_id,Stadium\np1,2\n")
    kind, message, place = BAD[case]
    with pytest.raises(kind) as caught:
        load_institution_data(plan, INSTITUTION, tables, labels, "case_id")
    assert message in str(caught.value)
    assert caught.value.place == str(tmp_path / place)
    assert caught.value.remedy


def test_parquet_mistakes_name_the_row(plan: Plan, tmp_path: Path) -> None:
    tables, labels = write(tmp_path, "parquet", mrna=MRNA.assign(case_id=["p1", "p2", "p1", "p3"]))
    with pytest.raises(PatientIdError) as caught:
        load_institution_data(plan, INSTITUTION, tables, labels, "case_id")
    assert caught.value.place.endswith("mrna.parquet: row 3")
    tables["mrna"].write_bytes(b"PAR1 and no more")
    with pytest.raises(DataFileError, match="cannot be read"):
        load_institution_data(plan, INSTITUTION, tables, labels, "case_id")
    excel = tmp_path / "mrna.xlsx"
    excel.write_bytes(b"x")
    with pytest.raises(DataFileError, match=r"\.xlsx is not a kind"):
        load_institution_data(plan, INSTITUTION, {**tables, "mrna": excel}, labels, "case_id")


def test_a_modality_without_a_table_is_told(plan: Plan, tmp_path: Path) -> None:
    tables, labels = write(tmp_path, "csv")
    del tables["clinical"]
    with pytest.raises(DataFileError, match="clinical"):
        load_institution_data(plan, INSTITUTION, tables, labels, "case_id")


def test_no_error_names_a_patient(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("case_id,stage\nCANARY-7,1\nCANARY-7,2\n")
    with pytest.raises(PatientIdError) as caught:
        read_labels(path, plan.label, "case_id")
    assert "CANARY" not in str(caught.value).replace(str(tmp_path), "")


def test_predict_takes_whatever_modalities_a_patient_has(plan: Plan, tmp_path: Path) -> None:
    tables, _ = write(tmp_path, "csv")
    found = read_features(plan, ("mrna", "image", "clinical"), tables, "case_id")
    assert found.ids == ("p3", "p1", "p2", "p4", "p5")
    assert found.tables["mrna"].ids == ("p3", "p1", "p2", "p4")
    assert found.tables["clinical"].ids == ("p1", "p2", "p3", "p5")
    assert read_features(plan, ("clinical",), tables, "case_id").ids == ("p1", "p2", "p3", "p5")
    with pytest.raises(NoPatientError, match="no patient to stage"):
        read_features(plan, ("image",), tables, "case_id")


def of_classes(counts: list[int]) -> InstitutionData:
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = labels[np.random.default_rng(0).permutation(len(labels))]
    return InstitutionData(tuple(f"p{i:04}" for i in range(len(labels))), {}, labels.astype(np.int64), "")


@settings(deadline=None, max_examples=60)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    fraction=st.floats(0.0, 0.9),
    seed=st.integers(0, 1000),
)
def test_split_is_stratified_and_repeatable(counts: list[int], fraction: float, seed: int) -> None:
    data = of_classes(counts)
    train, validation = split(data, fraction, SeededRandomness(seed, "split"))
    again: Any = split(data, fraction, SeededRandomness(seed, "split"))
    np.testing.assert_array_equal(train, again[0])
    np.testing.assert_array_equal(validation, again[1])
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(len(data)))
    for k, count in enumerate(counts):
        held = int(np.count_nonzero(data.labels[validation] == k))
        assert held <= count - 1
        assert abs(held - fraction * count) <= 1.0
        assert held >= (1 if fraction > 0 and count > 1 else 0)


def test_another_stream_gives_another_split() -> None:
    data = of_classes([30, 30])
    splits = {tuple(split(data, 0.2, SeededRandomness(seed, "split"))[1].tolist()) for seed in range(5)}
    assert len(splits) == 5


def test_patients_come_in_order_whatever_the_files_say(plan: Plan, tmp_path: Path) -> None:
    ids = [f"p{i}" for i in np.random.default_rng(0).permutation(40)]
    frame = pd.DataFrame({"case_id": ids, "g0": np.arange(40.0), "age": 50.0, "stage": ["1", "2"] * 20})
    data = load(plan, tmp_path, mrna=frame, clinical=frame.iloc[::-1], labels=frame.sample(frac=1, random_state=0))
    assert data.ids == tuple(sorted(ids))
    rows = {patient: k for k, patient in enumerate(ids)}
    assert data.tables["mrna"].numeric["g0"].tolist() == [rows[patient] for patient in data.ids]
    assert data.labels.tolist() == [rows[patient] % 2 for patient in data.ids]


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_a_patient_more_moves_nobody_else_where_each_is_drawn_alone(count: int, seed: int) -> None:
    ids = tuple(f"p{i:03}" for i in range(count))
    labels = np.arange(count, dtype=np.int64) % 2
    whole = InstitutionData(ids, {}, labels, "")
    fewer = InstitutionData(ids[1:], {}, labels[1:], "")
    train, held = split_each(whole, 0.3, SeededRandomness(seed, "split"))
    assert sorted([*train, *held]) == list(range(count))
    after = {fewer.ids[i] for i in split_each(fewer, 0.3, SeededRandomness(seed, "split"))[1]}
    before = {ids[i] for i in held}
    assert len(train) >= 1
    if len(before - {ids[0]}) < count - 1:  # else everybody else validates, and one of them has to train
        assert after == before - {ids[0]}
