"""Patients of one institution who lack modalities one by one: as they are read, divided, trained on and evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from federation.layout import layout
from federation.names import modalities_of
from institution_node.data import FewPatientsError, InstitutionData, NoPatientError, load_institution_data, split
from institution_node.errors import TrainingDataError
from institution_node.models import InstitutionModel
from institution_node.private_training import PrivateGradients, PrivateTrainer
from institution_node.training import LocalTrainer
from security.privacy.randomness import SeededRandomness
from tests.institution_node.cases import WIDTHS, Case, case
from tests.plans import with_combinations

# What private_training says to torch itself; pytest starts every test with filters of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

FULL = "mrna+image+clinical"
LATTICE = ("mrna", "image", "clinical", "mrna+image", "mrna+clinical", "image+clinical", FULL)
PLAIN = {"optimiser": "sgd", "class_weights": "none", "local_steps": 1, "batch_size": 1000, "weight_decay": 0.0,
         "proximal": 0.0, "gradient_clip": 0.0}  # fmt: skip
NAME = "brca-1"
Vector = npt.NDArray[np.float64]


def several(
    listed: tuple[str, ...] = LATTICE, patients: int = 42, seed: int = 0, **changes: Any
) -> tuple[Case, tuple[str, ...]]:
    """A case and its patients' combinations, drawn at random, each at least once. What a patient lacks is NaN's
    stand-in: a number so large that whoever looked at it would notice."""
    made = case(NAME, patients, seed, **changes)
    plan = with_combinations(made.plan, {NAME: listed})
    with_lists = layout(plan, WIDTHS)
    generator = np.random.default_rng([seed, 1])
    own = [*listed, *generator.choice(listed, patients - len(listed)).tolist()]
    own = [own[k] for k in generator.permutation(patients)]
    for modality, values in made.features.items():
        values[[modality not in modalities_of(c) for c in own]] = 1e6
    weights = {name: with_lists.components[name].initial(plan.seed) for name in with_lists.owned(NAME)}
    return Case(plan, with_lists, NAME, made.features, made.labels, weights), tuple(own)


def trainer(made: Case, own: tuple[str, ...], split_at: int | None = None) -> LocalTrainer:
    n = made.labels.size
    at = n if split_at is None else split_at
    kind = PrivateTrainer if made.plan.differential_privacy.enabled else LocalTrainer
    return kind(made.plan, made.layout, NAME, made.features, made.labels, range(at), range(at, n), combinations=own)


def rng(seed: int = 0) -> SeededRandomness:
    return SeededRandomness(seed, "test")


def gradient_of(made: Case, own: tuple[str, ...], row: int) -> tuple[dict[str, Vector], dict[str, float]]:
    """One patient's gradient by component, and its losses by subset, by torch alone: its own classifier trains its
    encoders, classifiers of less are on detached encodings."""
    model = InstitutionModel(made.plan, made.layout, NAME)
    model.load(made.weights)
    held = modalities_of(own[row])
    label = torch.from_numpy(made.labels[[row]])
    encoded = {m: model.stack(f"encoder/{m}")(torch.from_numpy(made.features[m][[row]]), None) for m in held}
    losses: dict[str, torch.Tensor] = {}
    for subset in LATTICE:
        name = f"classifier/{subset}"
        if name in made.weights and set(modalities_of(subset)) <= set(held):
            inputs = [encoded[m] if subset == own[row] else encoded[m].detach() for m in modalities_of(subset)]
            if subset == own[row] or made.plan.model.heads:
                losses[subset] = functional.cross_entropy(model.stack(name)(torch.cat(inputs, dim=1), None), label)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch ships no type
    flat = model.gradients_flat.numpy().astype(np.float64)
    return {n: flat[part] for n, part in model.slices.items()}, {s: v.item() for s, v in losses.items()}


# -- training -------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.booleans(), st.sets(st.sampled_from(LATTICE), min_size=2).map(tuple))
def test_a_component_is_stepped_by_the_mean_over_those_who_train_it(
    seed: int, heads: bool, listed: tuple[str, ...]
) -> None:
    if len({m for c in listed for m in modalities_of(c)}) < 3:
        listed = (*listed, FULL)
    made, own = several(tuple(dict.fromkeys(listed)), seed=seed, training=PLAIN, model={"dropout": 0.0, "heads": heads})
    each = [gradient_of(made, own, row)[0] for row in range(len(own))]
    done = trainer(made, own).train(made.weights, {}, 0.1, rng())
    for name, update in done.updates.items():
        train = [k for k, c in enumerate(own) if c in made.layout.trained_by(NAME, name)]
        expected = -0.1 * np.mean([each[k][name] for k in train], axis=0)
        np.testing.assert_allclose(update, expected, rtol=2e-4, atol=2e-6, err_msg=name)
        untouched = [k for k in range(len(own)) if k not in train]
        assert all(not each[k][name].any() for k in untouched)


def test_losses_and_logits_are_over_the_patients_who_have_the_subset() -> None:
    made, own = several()
    at = 28
    found = trainer(made, own, at).evaluate(made.weights)
    losses = [gradient_of(made, own, row)[1] for row in range(len(own))]
    assert set(found.losses) == set(LATTICE)
    for subset, means in found.losses.items():
        training = [losses[k][subset] for k in range(at) if subset in losses[k]]
        validation = [losses[k][subset] for k in range(at, len(own)) if subset in losses[k]]
        assert means.training == pytest.approx(np.mean(training), rel=1e-5)
        assert means.validation == pytest.approx(np.mean(validation), rel=1e-5)
        assert found.trained(subset, at) == len(training)
        assert found.held(subset) == len(found.logits[subset]) == len(validation)
        values = torch.from_numpy(found.logits[subset])
        again = functional.cross_entropy(values, torch.from_numpy(found.labels_of(subset)), reduction="none")
        np.testing.assert_allclose(again.numpy(), validation, rtol=1e-4)
    # Each patient is predicted by the classifier of exactly what it has.
    for k in range(at, len(own)):
        chance = found.probabilities[k - at, made.labels[k]]
        assert -np.log(chance) == pytest.approx(losses[k][own[k]], rel=1e-4)
    rows = [found.rows_of([c]) for c in LATTICE]
    assert sorted(np.concatenate(rows).tolist()) == list(range(len(own) - at))


def test_who_has_nobody_for_a_subset_says_nothing_of_it() -> None:
    made, own = several(("mrna", FULL), patients=20)
    order = np.argsort([c == "mrna" for c in own], kind="stable")  # those with everything first
    made = Case(
        made.plan, made.layout, NAME, {m: v[order] for m, v in made.features.items()}, made.labels, made.weights
    )
    own = tuple(own[k] for k in order)
    whole = sum(c == FULL for c in own)
    found = trainer(made, own, whole).evaluate(made.weights)
    assert found.losses[FULL].validation is None
    assert found.held(FULL) == 0
    assert found.losses["mrna"].validation is not None


def test_one_combination_in_the_list_is_what_no_list_is_to_the_bit() -> None:
    plain = case(NAME)
    listed, own = several((FULL,), patients=30)
    one, other = trainer(plain, (), 24), trainer(listed, own, 24)
    assert one.evaluate(plain.weights).losses == other.evaluate(listed.weights).losses
    mine, theirs = (t.train(plain.weights, {}, 0.01, rng(3)) for t in (one, other))
    assert all(np.array_equal(mine.updates[n], theirs.updates[n]) for n in plain.weights)


def test_every_patient_must_say_what_it_has() -> None:
    made, own = several()
    with pytest.raises(TrainingDataError, match="say which is theirs"):
        trainer(made, own[1:])


# -- differential privacy ---------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.integers(0, 41), unique=True, max_size=12),
    norm=st.sampled_from([0.01, 0.5, 1.0, 100.0]),
    seed=st.integers(0, 100),
)
def test_a_patient_is_clipped_over_all_components_that_it_trains(rows: list[int], norm: float, seed: int) -> None:
    made, own = several(
        seed=seed,
        training={"class_weights": "none", "optimiser": "sgd"},
        differential_privacy={"enabled": True, "max_gradient_norm": norm},
        model={"dropout": 0.0},
    )
    one = trainer(made, own)
    one.model.load(made.weights)
    source = PrivateGradients(one, rng())
    with source:
        source.clipped_sum(np.array(rows, dtype=np.int64))
    expected = {name: np.zeros(w.size) for name, w in made.weights.items()}
    for row in rows:
        gradient, _ = gradient_of(made, own, row)
        length = float(np.sqrt(sum(np.square(g).sum() for g in gradient.values())))
        for name, values in gradient.items():
            expected[name] += values * min(1.0, norm / length)
    for name, part in one.model.slices.items():
        np.testing.assert_allclose(one.model.gradients_flat[part].numpy(), expected[name], rtol=1e-3, atol=1e-5)


# -- reading and dividing ---------------------------------------------------------------------------------------------


def write(folder: Path, rows: dict[str, list[str]]) -> dict[str, Path]:
    """Modality, or `labels`, to its lines without the header."""
    headers = {"mrna": "id,g0,g1,g2,g3", "image": "id,f0,f1,f2", "labels": "id,stage"}
    for name, header in headers.items():
        (folder / f"{name}.csv").write_text("\n".join([header, *rows[name]]) + "\n")
    return {name: folder / f"{name}.csv" for name in headers}


def tables(missing: dict[str, set[int]]) -> dict[str, list[str]]:
    """Ten patients, the even ones early."""
    rows: dict[str, list[str]] = {"labels": [f"p{k},{1 + k % 2}" for k in range(10)]}
    for modality, width in (("mrna", 4), ("image", 3)):
        there = [k for k in range(10) if k not in missing.get(modality, set())]
        rows[modality] = [f"p{k}," + ",".join(f"{k / 10 + c}" for c in range(width)) for k in there]
    return rows


def read(folder: Path, rows: dict[str, list[str]], *listed: str) -> InstitutionData:
    plan = with_combinations(case().plan, {"brca-2": listed})
    files = write(folder, rows)
    return load_institution_data(plan, "brca-2", files, files["labels"], "id")


def test_patients_are_read_with_what_they_have(tmp_path: Path) -> None:
    rows = tables({"image": {0, 1, 2, 3}, "mrna": {8, 9}})
    data = read(tmp_path, rows, "mrna+image", "mrna")
    assert data.ids == tuple(f"p{k}" for k in range(8))  # the last two have images alone, which is not listed
    assert data.combinations == ("mrna",) * 4 + ("mrna+image",) * 4
    assert np.isnan(data.tables["image"].numeric["f0"][:4]).all()
    assert data.tables["image"].numeric["f1"][5] == 1.5
    assert data.rows_with("image", np.arange(2, 7)).tolist() == [4, 5, 6]
    assert dict(data.counted(np.arange(2, 7))) == {"mrna": 2, "mrna+image": 3}
    assert read(tmp_path, rows).ids == tuple(f"p{k}" for k in range(4, 8))  # without a list, all of both


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    rows = tables({"image": {0, 1, 2, 3}, "mrna": {8, 9}})
    one = read(tmp_path, rows, "mrna+image", "mrna")
    other = read(tmp_path, {name: lines[::-1] for name, lines in rows.items()}, "mrna", "mrna+image")
    assert (one.ids, one.combinations, one.fingerprint) == (other.ids, other.combinations, other.fingerprint)
    assert np.array_equal(one.labels, other.labels)


def test_a_listed_combination_needs_two_patients_of_one_class(tmp_path: Path) -> None:
    rows = tables({"image": {0, 1}})  # one early, one late
    with pytest.raises(FewPatientsError, match="have exactly mrna, which the plan lists") as error:
        read(tmp_path, rows, "mrna+image", "mrna")
    assert "take mrna out of its combinations" in error.value.remedy
    assert read(tmp_path, tables({"image": {0, 2}}), "mrna+image", "mrna").combinations.count("mrna") == 2
    with pytest.raises(NoPatientError, match="all of one of mrna, image"):
        read(tmp_path, {**rows, "labels": ["other,1"]}, "mrna", "image")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(LATTICE), st.integers(0, 1)), min_size=4, max_size=60), st.integers(0, 9))
def test_the_split_is_stratified_by_combination_and_class(patients: list[tuple[str, int]], seed: int) -> None:
    own, labels = zip(*patients, strict=True)
    ids = tuple(f"p{k:02}" for k in range(len(own)))
    data = InstitutionData(ids, {}, np.array(labels, dtype=np.int64), "", combinations=own)
    training, validation = split(data, 0.2, rng(seed))
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(len(own)))
    for stratum in set(patients):
        rows = [k for k, each in enumerate(patients) if each == stratum]
        held = sum(k in validation for k in rows)
        assert held == min(max(1, int(0.2 * len(rows) + 0.5)), len(rows) - 1)
