"""PCW: the products in blocks, and the cosine without oneself, against plain vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.proximity import BLOCK, ComponentDots, ProximitySettings, component_dots, cosine, inner, proximity


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
def test_the_products_are_those_of_the_whole_vectors(size: int) -> None:
    rng = np.random.default_rng(size)
    own, total = (rng.normal(0, 0.01, size).astype(np.float32) for _ in range(2))
    dots = component_dots(own, total)
    a, b = own.astype(np.float64), total.astype(np.float64)
    assert (dots.inner, dots.own, dots.total) == pytest.approx((a @ b, a @ a, b @ b), rel=1e-12, abs=1e-15)


@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_cosine_is_that_with_the_mean_of_the_others(institutions: int, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    alphas, deltas = rng.random(institutions) + 0.05, rng.normal(0, 1, (institutions, size))
    total = alphas @ deltas / alphas.sum()
    others = alphas[1:] @ deltas[1:] / alphas[1:].sum()
    expected = deltas[0] @ others / (np.linalg.norm(deltas[0]) * np.linalg.norm(others))
    dots = ComponentDots(float(deltas[0] @ total), float(deltas[0] @ deltas[0]), float(total @ total))
    assert cosine(dots, float(alphas[0] / alphas.sum())) == pytest.approx(expected, abs=1e-6)


@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_cosine_does_not_depend_on_the_length_of_ones_step_when_it_is_not_in_the_sum(scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, total = (rng.normal(0, 1, 20).astype(np.float32) for _ in range(2))
    stretched = (own * np.float32(scale)).astype(np.float32)
    assert cosine(component_dots(stretched, total), 0.0) == pytest.approx(
        cosine(component_dots(own, total), 0.0), abs=1e-5
    )


@given(
    st.sampled_from(["inner", "cosine", "size"]),
    st.dictionaries(
        st.sampled_from("abcd"), st.tuples(st.floats(-1, 1), st.floats(0, 10), st.floats(0, 10)), max_size=4
    ),
    st.floats(0, 1),
)
def test_any_products_give_a_proximity_in_range(kind, products, share) -> None:  # type: ignore[no-untyped-def] # Hypothesis draws them
    settings = ProximitySettings(kind, bound=4.0)
    # Cauchy-Schwarz holds of real vectors.
    dots = {k: ComponentDots(c * math.sqrt(own * total), own, total) for k, (c, own, total) in products.items()}
    p = proximity(settings, dots, dict.fromkeys(dots, share), "abcd", share)
    assert 0 <= p <= settings.largest
    if kind == "cosine":
        assert p >= settings.floor


def test_an_institution_alone_agrees_with_nobody_even_through_rounding() -> None:
    """δ_G of one owner is δ_i up to the rounding of the fixed point and of float32."""
    rng = np.random.default_rng(2)
    own = rng.normal(0, 0.01, 1000).astype(np.float32)
    total = (own + rng.uniform(-1e-10, 1e-10, 1000)).astype(np.float32)
    assert cosine(component_dots(own, total), 1.0) == 0.0
    assert cosine(component_dots(own, total), 1.0 - 1e-9) == 0.0


def test_inner_is_the_projection_on_the_global_trajectory() -> None:
    total = np.array([0.3, -0.4, 1.2], np.float32)
    for factor in (0.5, 1.0, 3.0):
        dots = component_dots((total * np.float32(factor)).astype(np.float32), total)
        assert inner([dots], 16.0) == pytest.approx(factor, rel=1e-6)
