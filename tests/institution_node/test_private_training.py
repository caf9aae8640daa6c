from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from institution_node.errors import NonFiniteTrainingError, TrainingDataError
from institution_node.models import InstitutionModel
from institution_node.private_training import PrivateGradients, PrivateTrainer, planned_event
from institution_node.trainer import Trajectory
from security.errors import ConfigurationError
from security.privacy.events import SampledGaussian
from security.privacy.randomness import SeededRandomness
from tests.cuda import DEVICES
from tests.institution_node.cases import Case, case

# What private_training says to torch itself; pytest starts every test with filters of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")

Vector = npt.NDArray[np.float64]


def private_case(institution: str = "brca-1", patients: int = 30, *, training: dict[str, Any] | None = None,
                 privacy: dict[str, Any] | None = None, **changes: Any) -> Case:  # fmt: skip
    return case(
        institution,
        patients,
        training={"class_weights": "none", "optimiser": "sgd", **(training or {})},
        differential_privacy={"enabled": True, **(privacy or {})},
        **{"model": {"dropout": 0.0}, **changes},
    )


def trainer(made: Case, device: str = "cpu") -> PrivateTrainer:
    n = made.labels.size
    return PrivateTrainer(made.plan, made.layout, made.institution, made.features, made.labels, range(n), (), device)


def rng(seed: int = 0) -> SeededRandomness:
    return SeededRandomness(seed, "test")


def clipped_sum(made: Case, rows: list[int]) -> Vector:
    """What Opacus' ghost clipping makes of these rows, before noise."""
    one = trainer(made)
    one.model.load(made.weights)
    source = PrivateGradients(one, rng())
    with source:
        source.clipped_sum(np.array(rows, dtype=np.int64))
    return one.model.gradients_flat.numpy().astype(np.float64)


def naive_gradient(made: Case, row: int) -> Vector:
    """One patient's gradient of the summed loss over all components, by torch alone."""
    model = InstitutionModel(made.plan, made.layout, made.institution)
    model.load(made.weights)
    logits = model([torch.from_numpy(made.features[m][[row]]) for m in model.modalities])
    label = torch.from_numpy(made.labels[[row]])
    torch.stack([functional.cross_entropy(values, label) for values in logits.values()]).sum().backward()  # type: ignore[no-untyped-call]  # torch ships no type
    return model.gradients_flat.numpy().astype(np.float64)


@settings(max_examples=25, deadline=None)
@given(
    institution=st.sampled_from(["brca-1", "brca-2", "brca-3", "lusc-2"]),
    rows=st.lists(st.integers(0, 29), unique=True, max_size=12),
    norm=st.sampled_from([0.01, 0.5, 1.0, 2.0, 100.0]),
    seed=st.integers(0, 100),
)
def test_ghost_clipping_is_the_naive_loop_over_patients(
    institution: str, rows: list[int], norm: float, seed: int
) -> None:
    made = private_case(institution, seed=seed, privacy={"max_gradient_norm": norm})
    expected = np.zeros(sum(w.size for w in made.weights.values()))
    for row in rows:
        gradient = naive_gradient(made, row)
        expected += gradient * min(1.0, norm / float(np.linalg.norm(gradient)))
    np.testing.assert_allclose(clipped_sum(made, rows), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.integers(0, 28), unique=True, max_size=8),
    norm=st.sampled_from([0.01, 0.3, 1.0]),
    size=st.sampled_from([1.0, 1e3, 1e15]),
)
def test_one_patient_moves_the_noise_free_sum_by_at_most_the_norm(rows: list[int], norm: float, size: float) -> None:
    """Clipped over all components together: a patient with an absurd table too."""
    made = private_case(privacy={"max_gradient_norm": norm})
    for values in made.features.values():
        values[29] *= size
    moved = clipped_sum(made, [*rows, 29]) - clipped_sum(made, rows)
    # The sums are float32: their rounding is the only thing beyond the norm.
    assert np.linalg.norm(moved) <= norm * (1 + 1e-4 * (len(rows) + 1))


def noise_of(made: Case, seed: int) -> Vector:
    """The sum of a step's noise: what is left of a step at the smallest sampling rate without its gradient."""
    one = trainer(made)
    one.model.load(made.weights)
    source = PrivateGradients(one, rng(seed))
    with source as gradient:
        while gradient() is not None:
            pass
    return one.model.gradients_flat.numpy().astype(np.float64) * made.plan.training.batch_size


def test_an_empty_batch_takes_a_step_of_noise_of_the_promised_size() -> None:
    made = private_case(
        privacy={"noise_multiplier": 3.0, "max_gradient_norm": 2.0}, training={"batch_size": 1, "local_steps": 1}
    )
    draws = np.concatenate([noise_of(made, seed) for seed in range(20)])
    assert draws.std() == pytest.approx(6.0, rel=0.05)
    assert abs(draws.mean()) < 6 * 4 / math.sqrt(draws.size)


def test_step_factors_scale_the_noise_too() -> None:
    """DGB after the noise: scaling a component's step scales its whole noised step."""
    made = private_case(training={"local_steps": 1})
    one = trainer(made).train(made.weights, {}, 0.1, rng())
    two = trainer(made).train(made.weights, {"encoder/mrna": 2.0}, 0.1, rng())
    np.testing.assert_allclose(two.updates["encoder/mrna"], 2 * one.updates["encoder/mrna"], rtol=1e-3, atol=1e-6)
    assert np.array_equal(two.updates["encoder/image"], one.updates["encoder/image"])


def updates_of(done: Trajectory[Any]) -> Vector:
    return np.concatenate(list(done.updates.values())).astype(np.float64)


def test_proximity_and_decay_are_outside_of_clipping() -> None:
    base = {"local_steps": 1, "batch_size": 1000}
    small = {"max_gradient_norm": 1e-3, "noise_multiplier": 1e-3}
    plain = private_case(training=base, privacy=small)
    decayed = private_case(training={**base, "weight_decay": 0.5}, privacy=small)
    done = trainer(decayed).train(decayed.weights, {}, 0.1, rng())
    without = trainer(plain).train(plain.weights, {}, 0.1, rng())
    weights = np.concatenate(list(plain.weights.values()))
    # Far more than the clipping norm could let through.
    np.testing.assert_allclose(updates_of(done) - updates_of(without), -0.05 * weights, atol=1e-6)
    pulled = private_case(training={**base, "local_steps": 2, "proximal": 5.0}, privacy=small)
    twice = private_case(training={**base, "local_steps": 2}, privacy=small)
    first = updates_of(without)
    gap = updates_of(trainer(pulled).train(pulled.weights, {}, 0.1, rng())) - updates_of(
        trainer(twice).train(twice.weights, {}, 0.1, rng())
    )
    np.testing.assert_allclose(gap, -0.1 * 5.0 * first, atol=1e-5)


def test_the_event_is_known_before_any_patient_is_touched() -> None:
    made = private_case(training={"batch_size": 8, "local_steps": 5}, privacy={"noise_multiplier": 1.5})
    assert planned_event(made.plan, 32) == SampledGaussian(1.5, 0.25, 5)
    assert planned_event(made.plan, 3) == SampledGaussian(1.5, 1.0, 5)
    with pytest.raises(TrainingDataError):
        planned_event(made.plan, 0)


def test_private_training_repeats_itself_when_seeded_and_learns() -> None:
    made = private_case(
        patients=200, training={"local_steps": 60, "batch_size": 100}, privacy={"noise_multiplier": 0.5}
    )
    one = trainer(made)
    first, second = one.train(made.weights, {}, 0.5, rng()), one.train(made.weights, {}, 0.5, rng())
    assert updates_of(first).tobytes() == updates_of(second).tobytes()
    assert updates_of(first).tobytes() != updates_of(one.train(made.weights, {}, 0.5, rng(1))).tobytes()
    after = one.evaluate({n: w + first.updates[n] for n, w in made.weights.items()})
    before = one.evaluate(made.weights)
    assert all(after.losses[s].training < before.losses[s].training for s in before.losses)


@pytest.mark.parametrize("patients", [1, 2])
def test_tiny_institutions(patients: int) -> None:
    made = private_case(patients=patients, training={"local_steps": 3, "batch_size": 1})
    done = trainer(made).train(made.weights, {}, 0.1, rng())
    assert np.isfinite(updates_of(done)).all()


def test_dropout_and_momentum_work_under_privacy() -> None:
    made = private_case(training={"optimiser": "adam", "local_steps": 4}, model={"dropout": 0.5})
    assert np.isfinite(updates_of(trainer(made).train(made.weights, {}, 0.01, rng()))).all()


def test_no_hook_is_left_behind_even_after_an_error() -> None:
    made = private_case(training={"local_steps": 2, "batch_size": 1000})
    one = trainer(made)
    broken = {n: np.full_like(w, np.nan) for n, w in made.weights.items()}
    with pytest.raises(NonFiniteTrainingError):
        one.train(broken, {}, 0.1, rng())
    one.train(made.weights, {}, 0.1, rng())
    assert not any(m._forward_hooks or m._backward_hooks for m in one.model.modules())


def test_plans_that_would_not_be_private_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not enable"):
        trainer(private_case(privacy={"enabled": False}))
    with pytest.raises(ConfigurationError, match="class weights"):
        trainer(private_case(training={"class_weights": "balanced"}))


def test_mixed_precision_is_refused_under_privacy() -> None:
    made = private_case()
    n = made.labels.size
    with pytest.raises(ConfigurationError, match="mixed precision") as told:
        PrivateTrainer(
            made.plan, made.layout, made.institution, made.features, made.labels, range(n), (), precision="mixed"
        )
    assert "compute" in told.value.place


@pytest.mark.parametrize("device", DEVICES)
def test_every_device_gives_the_cpus_private_trajectory(device: str) -> None:
    made = private_case(training={"local_steps": 4}, model={"dropout": 0.2})
    expected = trainer(made).train(made.weights, {}, 0.05, rng())
    found = trainer(made, device).train(made.weights, {}, 0.05, rng())
    np.testing.assert_allclose(updates_of(found), updates_of(expected), rtol=1e-3, atol=1e-5)


def test_a_held_component_stays_and_leaves_the_whole_norm_to_the_others() -> None:
    """Per patient the norm is of what is trained alone; noise does not move what is held either."""
    held = frozenset({"encoder/mrna", "classifier/mrna"})
    made = private_case(privacy={"max_gradient_norm": 0.3}, training={"local_steps": 2, "optimiser": "adam"})
    updates = trainer(made).train(made.weights, {}, 0.1, rng(), held).updates
    assert {name for name, update in updates.items() if not np.any(update)} == held
    one = trainer(made)
    one.model.load(made.weights)
    one.model.hold(held)
    source = PrivateGradients(one, rng())
    with source:
        source.clipped_sum(np.arange(8))
    fixed = np.concatenate([np.arange(s.start, s.stop) for n, s in one.model.slices.items() if n in held])
    expected = np.zeros(one.model.gradients_flat.numel())
    for row in range(8):
        gradient = naive_gradient(made, row)
        gradient[fixed] = 0.0
        expected += gradient * min(1.0, 0.3 / float(np.linalg.norm(gradient)))
    np.testing.assert_allclose(one.model.gradients_flat.numpy(), expected, rtol=1e-4, atol=1e-5)
