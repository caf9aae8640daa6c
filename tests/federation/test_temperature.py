from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.temperature import GRID, best_temperature, nll_grid
from security.errors import LocalMisuseError


def cohort(
    patients: int, seed: int, sharpness: float, classes: int = 3
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Logits that are `sharpness` times too sure, and labels drawn from what they should have been."""
    generator = np.random.default_rng(seed)
    true = generator.normal(scale=1.5, size=(patients, classes))
    chances = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([generator.choice(classes, p=p) for p in chances], dtype=np.int64)
    return (true * sharpness).astype(np.float32), labels


def test_the_grid_holds_one_exactly() -> None:
    assert GRID[16] == 1.0
    assert (GRID[0], GRID[-1]) == (0.25, 8.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 20), st.integers(2, 4), st.integers(0, 1000), st.floats(0.1, 10))
def test_the_grid_is_the_naive_loss_at_every_temperature(n: int, classes: int, seed: int, loss_max: float) -> None:
    logits, labels = cohort(n, seed, 1.0, classes)
    found = nll_grid(logits, labels, loss_max=loss_max)
    for temperature, value in zip(GRID, found, strict=True):
        expected = 0.0
        for row, label in zip(logits.astype(float), labels, strict=True):
            powers = np.exp(row / temperature)
            expected += min(loss_max, -float(np.log(powers[label] / powers.sum())))
        assert value == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_institutions_sums_find_the_temperature_that_none_could_alone(sharpness: float) -> None:
    parts = [cohort(400, seed, sharpness) for seed in range(6)]
    summed = np.sum([nll_grid(logits, labels) for logits, labels in parts], axis=0)
    assert best_temperature(summed) == pytest.approx(sharpness, rel=0.1)
    pooled = nll_grid(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))
    np.testing.assert_allclose(summed, pooled)


def test_huge_logits_stay_finite_and_ends_of_the_grid_hold() -> None:
    logits = np.array([[1e30, -1e30], [-1e30, 1e30]], np.float32)
    wrong = nll_grid(logits, np.array([1, 0]), loss_max=5.0)
    assert wrong.tolist() == [10.0] * GRID.size
    assert best_temperature(wrong) == 1.0  # it says nothing
    always_right = nll_grid(np.array([[3.0, 0.0]], np.float32), np.array([0]))
    assert best_temperature(always_right) == GRID[0]
    assert best_temperature(nll_grid(np.array([[3.0, 0.0]], np.float32), np.array([1]))) == GRID[-1]


def test_differences_below_the_floor_say_nothing_and_wrong_sums_are_refused() -> None:
    summed = (np.log(GRID) - 1.0) ** 2
    assert best_temperature(summed) == pytest.approx(np.e, rel=1e-6)
    assert best_temperature(summed, floor=100.0) == 1.0
    for wrong in (summed[:-1], np.full(GRID.size, np.nan)):
        with pytest.raises(LocalMisuseError):
            best_temperature(wrong)
