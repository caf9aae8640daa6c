"""Losses under differential privacy: a patient moves a row by no more than the noise is made for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from federation import statistics
from institution_node.statistics import Divisors, LossPair, encode_losses, rescaled
from tests.plans import example_plan

PLAN = example_plan()
LARGEST = PLAN.proximity.loss_max


def row(training: list[float], logits: np.ndarray, labels: np.ndarray, divisors: Divisors) -> np.ndarray:
    exact = -np.log(np.exp(logits)[np.arange(len(labels)), labels] / np.exp(logits).sum(axis=1)) if len(labels) else []
    held = float(np.mean(np.minimum(exact, LARGEST))) if len(labels) else None
    means = LossPair(float(np.mean(training)) if training else 0.0, held)
    pair = rescaled(means, len(training), len(labels), divisors)
    e = encode_losses(PLAN, pair, logits.astype(np.float32), labels, 1.0, None, divisors, 9)
    return statistics.decode(e.words, e.encoding) / e.sensitivity


losses = st.lists(st.floats(0, LARGEST), min_size=1, max_size=12)


@given(losses, st.integers(0, 8), st.integers(0, 2**31), st.integers(1, 60))
def test_one_validation_patient_moves_the_row_by_its_sensitivity(
    training: list[float], held: int, seed: int, noised: int
) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 6, (held + 1, 2)), rng.integers(0, 2, held + 1)
    divisors = Divisors.of_noised(noised, 0.2)
    more = row(training, logits, labels, divisors)
    fewer = row(training, logits[1:], labels[1:], divisors)
    assert np.linalg.norm(more - fewer) <= 1 + 1e-3


@given(losses, st.integers(0, 2**31), st.integers(1, 60))
def test_one_training_patient_moves_the_row_by_its_sensitivity(training: list[float], seed: int, noised: int) -> None:
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(0, 2, (5, 2)), rng.integers(0, 2, 5)
    divisors = Divisors.of_noised(noised, 0.2)
    more, fewer = row(training, logits, labels, divisors), row(training[1:], logits, labels, divisors)
    assert np.linalg.norm(more - fewer) <= 1 + 1e-3


def test_without_privacy_losses_are_means_and_nobody_means_none() -> None:
    pair = LossPair(0.5, 0.7)
    assert rescaled(pair, 30, 8, Divisors(30, 8)) == pair
    assert rescaled(LossPair(0.5, None), 30, 0, Divisors(30, 1)).validation is None


def test_under_privacy_nobody_validating_looks_like_a_loss_of_zero() -> None:
    assert rescaled(LossPair(0.5, None), 30, 0, Divisors.of_noised(28, 0.2)).validation == 0.0
