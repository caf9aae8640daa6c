from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from federation.plan import ComponentRule
from institution_node.errors import NonFiniteTrainingError, TrainingDataError, WeightsError
from institution_node.optimisers import FlatOptimiser
from institution_node.training import LocalTrainer, epochs
from security.errors import ConfigurationError, LocalMisuseError
from security.privacy.randomness import SeededRandomness
from tests.cuda import DEVICES
from tests.institution_node.cases import Case, case

PLAIN = {"optimiser": "sgd", "class_weights": "none", "local_steps": 1, "batch_size": 1000, "weight_decay": 0.0,
         "proximal": 0.0, "gradient_clip": 0.0}  # fmt: skip


def trainer(made: Case, split: int | None = None, device: str = "cpu") -> LocalTrainer:
    n = made.labels.size
    at = n * 4 // 5 if split is None else split
    return LocalTrainer(
        made.plan, made.layout, made.institution, made.features, made.labels, range(at), range(at, n), device
    )


def rng(seed: int = 0) -> SeededRandomness:
    return SeededRandomness(seed, "test")


def whole_gradient(made: Case, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Gradients of the mean loss at round 0, by torch alone, without the flat buffer's machinery around them."""
    one = trainer(made, rows)
    model = one.model
    model.load(made.weights)
    logits = model([torch.from_numpy(made.features[m][:rows]) for m in model.modalities])
    labels = torch.from_numpy(made.labels[:rows])
    torch.stack([functional.cross_entropy(v, labels) for v in logits.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch ships no type
    return {n: model.gradients_flat[part].numpy().copy() for n, part in model.slices.items()}


@pytest.mark.parametrize("institution", ["brca-1", "lusc-2", "brca-3"])
def test_one_sgd_step_is_the_gradient_times_each_components_step(institution: str) -> None:
    made = case(institution, training=PLAIN, model={"dropout": 0.0})
    gradients = whole_gradient(made, 24)
    factors = {name: 0.5 + k for k, name in enumerate(made.weights)}
    done = trainer(made).train(made.weights, factors, 0.1, rng())
    model = trainer(made).model
    for name, update in done.updates.items():
        head = name in {f"classifier/{m}" for m in model.heads}
        factor = 1.0 if head else factors[name]  # a head's step is η, unscaled
        np.testing.assert_allclose(update, -0.1 * factor * gradients[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_so_much_of_a_heads_gradient_reaches_its_encoder(share: float) -> None:
    made = case("brca-1", training={**PLAIN, "head_gradient": share}, model={"dropout": 0.0})
    model = trainer(made, 24).model
    model.load(made.weights)
    features, labels = [torch.from_numpy(made.features[m][:24]) for m in model.modalities], made.labels[:24]
    alone: dict[str, Any] = {}
    for subset in (model.combination, *model.heads):
        # The loss of one subset at a time, through encodings that are not detached.
        encodings = dict(zip(model.modalities, model.encode(features, None), strict=True))
        read = [encodings[m] for m in (model.modalities if subset == model.combination else (subset,))]
        logits = model.stack(f"classifier/{subset}")(torch.cat(read, dim=1), None)
        model.zero_grad()
        functional.cross_entropy(logits, torch.from_numpy(labels)).backward()  # type: ignore[no-untyped-call]  # torch ships no type
        alone[subset] = {m: model.gradients_flat[model.slices[f"encoder/{m}"]].clone() for m in model.modalities}
    whole = whole_gradient(made, 24)
    for m in model.modalities:
        expected = alone[model.combination][m] + share * alone[m][m]
        np.testing.assert_allclose(whole[f"encoder/{m}"], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_a_components_own_step_holds_for_heads_too() -> None:
    rule = ComponentRule(name="classifier/mrna", step=0.25)
    made = case("brca-1", components=(rule,))
    rates = trainer(made).rates({}, 0.1, frozenset())
    assert rates["classifier/mrna"] == pytest.approx(0.025)
    assert rates["classifier/image"] == pytest.approx(0.1)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_scaling_a_component_scales_its_step_under_every_optimiser(optimiser: str) -> None:
    made = case(training={**PLAIN, "optimiser": optimiser}, model={"dropout": 0.0})
    name = "encoder/image"
    one = trainer(made).train(made.weights, {}, 1e-3, rng())
    two = trainer(made).train(made.weights, {name: 2.0}, 1e-3, rng())
    np.testing.assert_allclose(two.updates[name], 2 * one.updates[name], rtol=1e-3, atol=1e-7)
    other = "encoder/mrna"
    assert np.array_equal(two.updates[other], one.updates[other])


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_flat_optimiser_is_torchs_with_parameter_groups(kind: str, decay: float) -> None:
    torch.manual_seed(0)
    start = torch.randn(10)
    rates = [(slice(0, 4), 0.1), (slice(4, 10), 0.02)]
    mine = start.clone()
    optimiser = FlatOptimiser(kind, mine, rates, momentum=0.9, weight_decay=decay, proximal=0.0)
    parts = [torch.nn.Parameter(start[part].clone()) for part, _ in rates]
    groups = [{"params": [p], "lr": rate} for p, (_, rate) in zip(parts, rates, strict=True)]
    theirs: torch.optim.Optimizer
    if kind == "adam":
        theirs = torch.optim.AdamW(groups, weight_decay=decay)
    else:
        theirs = torch.optim.SGD(groups, momentum=0.9 if kind == "momentum" else 0.0)
    for _ in range(7):
        gradient = torch.randn(10)
        for p, (part, rate) in zip(parts, rates, strict=True):
            p.grad = gradient[part].clone()
            if kind != "adam":  # torch's SGD decays through the gradient; ours, like AdamW, apart from it
                p.data.mul_(1 - rate * decay)
        theirs.step()
        optimiser.step(gradient.clone())
    np.testing.assert_allclose(mine.numpy(), torch.cat([p.detach() for p in parts]).numpy(), rtol=2e-5, atol=1e-6)


def test_fedprox_pulls_back_to_where_the_round_began() -> None:
    weights = torch.tensor([1.0, 2.0])
    optimiser = FlatOptimiser("sgd", weights, [(slice(0, 2), 0.5)], momentum=0.0, weight_decay=0.0, proximal=0.25)
    optimiser.step(torch.tensor([1.0, 0.0]))
    assert weights.tolist() == [0.5, 2.0]  # no pull yet
    optimiser.step(torch.tensor([0.0, 0.0]))
    assert weights.tolist() == [0.5 + 0.5 * 0.25 * 0.5, 2.0]


def test_a_gradient_is_clipped_as_one_vector() -> None:
    made = case(training={**PLAIN, "gradient_clip": 0.01}, model={"dropout": 0.0})
    free = trainer(case(training=PLAIN, model={"dropout": 0.0})).train(made.weights, {}, 1.0, rng())
    done = trainer(made).train(made.weights, {}, 1.0, rng())
    clipped, whole = (np.concatenate(list(t.updates.values())) for t in (done, free))
    # δ is a difference of float32 weights: 1e-7 of noise on entries of 1e-3
    assert np.linalg.norm(clipped) == pytest.approx(0.01, rel=1e-3)
    np.testing.assert_allclose(clipped, whole * 0.01 / np.linalg.norm(whole), atol=1e-6)


def test_balanced_classes_weigh_the_same() -> None:
    made = case(patients=40, training={**PLAIN, "class_weights": "balanced"}, model={"dropout": 0.0})
    labels = np.array([0] * 30 + [1] * 10)
    one = LocalTrainer(made.plan, made.layout, made.institution, made.features, labels, range(40), ())
    assert one.class_weights is not None
    weights = one.class_weights.numpy()[labels]
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum())
    assert weights.mean() == pytest.approx(1.0)
    only = LocalTrainer(made.plan, made.layout, made.institution, made.features, np.zeros(40, np.int64), range(40), ())
    assert only.train(made.weights, {}, 0.1, rng()).steps == 1  # an institution with one class trains too


def test_seeded_training_repeats_itself_and_trainers_do_not_disturb_each_other() -> None:
    made = case(training={"local_steps": 4, "batch_size": 5}, model={"dropout": 0.3})
    alone = trainer(made).train(made.weights, {}, 0.05, rng())
    one, two = trainer(made), trainer(case("brca-2"))
    two.train(case("brca-2").weights, {}, 0.5, rng(9))
    torch.manual_seed(123)
    again = one.train(made.weights, {}, 0.05, rng())
    third = one.train(made.weights, {}, 0.05, rng())  # no state is left from the round before
    for name in alone.updates:
        assert alone.updates[name].tobytes() == again.updates[name].tobytes() == third.updates[name].tobytes()
    other = one.train(made.weights, {}, 0.05, rng(1))
    assert any(other.updates[n].tobytes() != alone.updates[n].tobytes() for n in other.updates)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_training_lowers_the_losses_of_classifier_and_heads(optimiser: str) -> None:
    made = case(training={"local_steps": 60, "batch_size": 8, "optimiser": optimiser})
    one = trainer(made)
    before = one.evaluate(made.weights)
    done = one.train(made.weights, {}, 0.1 if optimiser == "sgd" else 0.02, rng())
    after = one.evaluate({n: made.weights[n] + done.updates[n] for n in made.weights})
    assert set(after.losses) == {"mrna+image+clinical", "mrna", "image", "clinical"}
    for subset, losses in after.losses.items():
        assert losses.training < before.losses[subset].training
    assert done.mean_loss > 0


@pytest.mark.parametrize(("patients", "split"), [(1, 1), (2, 1), (3, 2), (7, 5)])
def test_tiny_institutions_train_and_evaluate(patients: int, split: int) -> None:
    made = case(patients=patients, training={"local_steps": 3, "batch_size": 16})
    one = trainer(made, split)
    done = one.train(made.weights, {}, 0.1, rng())
    seen = one.evaluate(made.weights)
    assert all(np.isfinite(u).all() for u in done.updates.values())
    held = patients - split
    assert seen.probabilities.shape == (held, 2)
    np.testing.assert_allclose(seen.probabilities.sum(axis=1), np.ones(held))
    assert all((losses.validation is None) == (held == 0) for losses in seen.losses.values())


def test_evaluation_clips_each_patients_loss_and_ignores_dropout() -> None:
    made = case(proximity={"loss_max": 0.5}, model={"dropout": 0.9})
    one = trainer(made)
    seen = one.evaluate(made.weights)
    logits = torch.from_numpy(seen.logits["image"])
    per_patient = functional.cross_entropy(logits, torch.from_numpy(seen.labels), reduction="none")
    assert bool((per_patient > 0.5).any())
    assert seen.losses["image"].validation == pytest.approx(float(per_patient.clamp(max=0.5).double().mean()))
    assert seen.losses == one.evaluate(made.weights).losses


def test_without_heads_an_institution_evaluates_its_combination_alone() -> None:
    made = case(model={"heads": False})
    assert set(trainer(made).evaluate(made.weights).losses) == {"mrna+image+clinical"}


@pytest.mark.parametrize("poison", [math.nan, math.inf, 3e38])
def test_nothing_leaves_when_training_diverges(poison: float) -> None:
    made = case(training={"local_steps": 3})
    weights = dict(made.weights)
    weights["encoder/image"] = np.full_like(weights["encoder/image"], poison)
    one = trainer(made)
    with pytest.raises(NonFiniteTrainingError) as refusal:
        one.train(weights, {}, 0.1, rng())
    assert refusal.value.code == "non-finite-training"
    with pytest.raises(NonFiniteTrainingError):
        one.evaluate(weights)


def test_a_finite_loss_with_an_infinite_update_is_refused() -> None:
    made = case(training={**PLAIN, "local_steps": 1})
    for values in made.features.values():
        values *= 1e10
    with pytest.raises(NonFiniteTrainingError, match="update"):
        trainer(made).train(made.weights, {}, 1e30, rng())


def test_an_infinite_loss_with_a_finite_update_is_refused() -> None:
    made = case(training={**PLAIN, "local_steps": 1})
    weights = {name: np.full_like(vector, 3e38) for name, vector in made.weights.items()}
    with pytest.raises(NonFiniteTrainingError, match="loss"):
        trainer(made).train(weights, {}, 0.0, rng())  # no step at all: w(K) = w(t)


def test_patients_that_cannot_be_trained_on() -> None:
    made = case()
    n = made.labels.size

    def build(features: Any = made.features, labels: Any = made.labels, train: Any = range(4), held: Any = ()) -> None:
        LocalTrainer(made.plan, made.layout, made.institution, features, labels, train, held)

    build()
    with pytest.raises(TrainingDataError, match="no training patients"):
        build(train=())
    with pytest.raises(TrainingDataError, match="distinct"):
        build(held=[0])
    with pytest.raises(TrainingDataError, match="distinct"):
        build(held=[n])
    with pytest.raises(TrainingDataError, match="class indices"):
        build(labels=made.labels + 1)
    with pytest.raises(TrainingDataError, match="missing"):
        build(features={m: x for m, x in made.features.items() if m != "image"})
    with pytest.raises(TrainingDataError, match="shaped"):
        build(features={**made.features, "image": made.features["image"][:, :-1]})
    broken = made.features["image"].copy()
    broken[3, 1] = np.nan
    with pytest.raises(TrainingDataError, match="NaN"):
        build(features={**made.features, "image": broken})
    with pytest.raises(TrainingDataError, match="not in the plan"):
        LocalTrainer(made.plan, made.layout, "elsewhere", made.features, made.labels, range(4), ())


def test_bad_steps_and_weights_are_refused() -> None:
    made = case()
    for factor in (-1.0, math.nan, math.inf, 1e300):
        with pytest.raises(LocalMisuseError, match="encoder/mrna"):
            trainer(made).train(made.weights, {"encoder/mrna": factor}, 0.1, rng())
    with pytest.raises(WeightsError):
        trainer(made).train({}, {}, 0.1, rng())
    with pytest.raises(ConfigurationError, match="optimiser"):
        FlatOptimiser("rmsprop", torch.zeros(1), [], momentum=0.0, weight_decay=0.0, proximal=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 2**32))
def test_an_epoch_takes_every_patient_once_in_batches_of_like_size(patients: int, size: int, seed: int) -> None:
    batches = epochs(patients, size, SeededRandomness(seed, "test"))
    count = math.ceil(patients / size)
    for _ in range(2):
        epoch = [next(batches) for _ in range(count)]
        assert sorted(np.concatenate(epoch).tolist()) == list(range(patients))
        lengths = {len(batch) for batch in epoch}
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("optimiser", ["momentum", "adam"])
def test_every_device_gives_the_cpus_trajectory(device: str, optimiser: str) -> None:
    made = case(training={"local_steps": 5, "batch_size": 8, "optimiser": optimiser, "proximal": 0.1})
    on_cpu, there = trainer(made), trainer(made, device=device)
    expected = on_cpu.train(made.weights, {"encoder/mrna": 0.5}, 0.01, rng())
    found = there.train(made.weights, {"encoder/mrna": 0.5}, 0.01, rng())
    for name, update in expected.updates.items():
        np.testing.assert_allclose(found.updates[name], update, rtol=1e-3, atol=1e-5)
    near, far = on_cpu.evaluate(made.weights), there.evaluate(made.weights)
    np.testing.assert_allclose(near.probabilities, far.probabilities, atol=1e-5)


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_a_held_component_stays_to_the_bit_and_has_no_part_in_the_clipping(optimiser: str) -> None:
    held = frozenset({"encoder/mrna", "classifier/mrna", "classifier/image"})
    training = {**PLAIN, "optimiser": optimiser, "local_steps": 3, "weight_decay": 0.1, "proximal": 0.5}
    made = case(training={**training, "gradient_clip": 0.01}, model={"dropout": 0.0})
    one = trainer(made)
    updates = one.train(made.weights, {}, 0.1, rng(), held).updates
    for name, update in updates.items():
        assert np.any(update) == (name not in held), name
    assert np.all(np.concatenate([one.model.gradients_flat[one.model.slices[n]].numpy() for n in held]) == 0)
    free = one.train(made.weights, {}, 0.1, rng()).updates
    assert all(np.any(update) for update in free.values()), "held for one round only"
    assert np.array_equal(
        free["encoder/mrna"], trainer(made).train(made.weights, {}, 0.1, rng()).updates["encoder/mrna"]
    )


def test_the_gradient_of_what_is_left_is_clipped_alone() -> None:
    held = frozenset({"encoder/mrna"})
    made = case(training={**PLAIN, "gradient_clip": 0.01}, model={"dropout": 0.0})
    free = trainer(case(training=PLAIN, model={"dropout": 0.0})).train(made.weights, {}, 1.0, rng(), held).updates
    clipped = trainer(made).train(made.weights, {}, 1.0, rng(), held).updates
    whole = np.concatenate(list(free.values()))
    np.testing.assert_allclose(np.concatenate(list(clipped.values())), whole * 0.01 / np.linalg.norm(whole), atol=1e-6)
