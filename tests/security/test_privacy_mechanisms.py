"""Exact noise against its exact law, every fast path against the plain one."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from security.privacy import samplers
from security.privacy.events import LaplaceRelease
from security.privacy.mechanisms import (
    add_discrete_gaussian,
    add_gaussian,
    count_event,
    gaussian_float32,
    noised_count,
    rounded_sensitivity,
)
from security.privacy.randomness import Randomness, SeededRandomness
from security.privacy.samplers import (
    bernoulli_exp,
    discrete_gaussian,
    discrete_gaussians,
    discrete_laplace,
    discrete_laplaces,
)


def fits(draws: npt.NDArray[np.int64], log_weight: npt.NDArray[np.float64], low: int) -> float:
    """The p-value of `draws` under chances proportional to exp(log_weight) on `low`, `low + 1`, …; tails joined."""
    chance = np.exp(log_weight - log_weight.max())
    chance /= chance.sum()
    counts = np.bincount(np.clip(draws - low, 0, len(chance) - 1), minlength=len(chance))
    expected = chance * len(draws)
    enough = expected >= 10
    observed = np.append(counts[enough], counts[~enough].sum())
    wanted = np.append(expected[enough], expected[~enough].sum())
    if wanted[-1] < 10:
        observed, wanted = np.append(observed[:-2], observed[-2:].sum()), np.append(wanted[:-2], wanted[-2:].sum())
    return float(stats.chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def laplace_fit(draws: npt.NDArray[np.int64], scale: float) -> float:
    low = -math.ceil(60 * scale) - 2
    return fits(draws, -np.abs(np.arange(low, -low + 1)) / scale, low)


def gaussian_fit(draws: npt.NDArray[np.int64], sigma2: float) -> float:
    low = -math.ceil(12 * math.sqrt(sigma2)) - 2
    return fits(draws, -(np.arange(low, -low + 1) ** 2) / (2 * sigma2), low)


SCALES = [Fraction(1, 3), Fraction(1), Fraction(7, 2), Fraction(5)]
VARIANCES = [Fraction(1, 5), Fraction(1), Fraction(17, 4), Fraction(100)]


@pytest.mark.parametrize("scale", SCALES)
def test_discrete_laplace_has_its_law(scale: Fraction) -> None:
    rng = SeededRandomness(11, f"laplace {scale}")
    one = np.array([discrete_laplace(scale, rng) for _ in range(5000)])
    assert laplace_fit(one, float(scale)) > 1e-3
    many = discrete_laplaces(scale, 100_000, rng)
    assert laplace_fit(many, float(scale)) > 1e-3
    assert laplace_fit(many, float(scale) * 1.05) < 1e-6  # the test sees a scale that is 5% off


@pytest.mark.parametrize("sigma2", VARIANCES)
def test_discrete_gaussian_has_its_law(sigma2: Fraction) -> None:
    rng = SeededRandomness(12, f"gaussian {sigma2}")
    one = np.array([discrete_gaussian(sigma2, rng) for _ in range(3000)])
    assert gaussian_fit(one, float(sigma2)) > 1e-3
    many = discrete_gaussians(sigma2, 100_000, rng)
    assert gaussian_fit(many, float(sigma2)) > 1e-3
    assert gaussian_fit(many, float(sigma2) * 1.05) < 1e-6


def test_a_rounded_normal_is_told_from_a_discrete_gaussian() -> None:
    rounded = np.rint(np.random.default_rng(1).normal(0, math.sqrt(0.5), 100_000)).astype(np.int64)
    assert gaussian_fit(rounded, 0.5) < 1e-6


@pytest.mark.parametrize("sigma2", [Fraction(2) ** 60, Fraction(2) ** 112 - 12345, Fraction(10**9, 7)])
def test_wide_discrete_gaussians_are_normal(sigma2: Fraction) -> None:
    many = discrete_gaussians(sigma2, 50_000, SeededRandomness(13, f"wide {sigma2}"))
    assert stats.kstest(many / math.sqrt(sigma2), "norm").pvalue > 1e-3
    assert abs(int(np.sum(many & 1)) - 25_000) < 600  # the last bit is a fair coin: no grid shows


@pytest.mark.parametrize("gamma", [Fraction(0), Fraction(1, 1000), Fraction(1, 2), Fraction(1), Fraction(5, 2)])
def test_bernoulli_exp_has_its_chance(gamma: Fraction) -> None:
    rng = SeededRandomness(14, f"bernoulli {gamma}")
    hits = sum(bernoulli_exp(gamma, rng) for _ in range(20_000))
    assert stats.binomtest(hits, 20_000, math.exp(-gamma)).pvalue > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    st.fractions(min_value=Fraction(1, 50), max_value=10**6)
    | st.integers(1, samplers.LARGEST_SCALE**2 - 1).map(Fraction),
    st.integers(0, 10**6),
)
def test_floats_only_decide_what_exact_arithmetic_decides_too(sigma2: Fraction, seed: int) -> None:
    quick = discrete_gaussians(sigma2, 60, SeededRandomness(seed, "same"))
    exact = discrete_gaussians(sigma2, 60, SeededRandomness(seed, "same"), margin=1.0)
    assert np.array_equal(quick, exact)
    scale = Fraction(sigma2.numerator % samplers.LARGEST_SCALE + 1, sigma2.denominator)
    quick = discrete_laplaces(scale, 60, SeededRandomness(seed, "same"))
    exact = discrete_laplaces(scale, 60, SeededRandomness(seed, "same"), margin=1.0)
    assert np.array_equal(quick, exact)


class Scripted:
    """A source that plays given words and then fails."""

    seeded = True

    def __init__(self, *words: int) -> None:
        self._left = b"".join(word.to_bytes(8, "little") for word in words)

    def bytes(self, n: int) -> bytes:
        taken, self._left = self._left[:n], self._left[n:]
        assert len(taken) == n, "asked for more randomness than this case needs"
        return taken

    def child(self, label: str) -> Randomness:
        return self


def exp_words(gamma: Decimal) -> tuple[int, int]:
    """The first 128 bits of exp(-gamma) as two words."""
    with localcontext() as context:
        context.prec = 80
        bits = int((-gamma).exp() * 2**128)
    return bits >> 64, bits & (2**64 - 1)


@pytest.mark.parametrize(("second", "below"), [(-1, True), (1, False)])
def test_a_uniform_on_the_border_is_decided_by_its_next_bits(second: int, below: bool) -> None:
    high, low = exp_words(Decimal("0.5"))
    rng = Scripted(high, low + second)
    gamma = np.array([0.5])
    assert samplers._happens(gamma, lambda _: Fraction(1, 2), rng, samplers.MARGIN).tolist() == [below]
    # without the next bits, float64 would see no difference at all
    assert high * 2.0**-64 == math.exp(-0.5)


@pytest.mark.parametrize(("second", "value"), [(-1, 3), (1, 2)])
def test_a_geometric_on_a_border_of_its_table_is_decided_by_its_next_bits(second: int, value: int) -> None:
    high, low = exp_words(Decimal(3))
    assert samplers._geometric(1, Scripted(high, low + second)).tolist() == [value]


def test_a_geometric_beyond_its_table_goes_on_counting() -> None:
    # 2^-64 · 2^-3 lies between exp(-47) and exp(-46): P(V >= k) = exp(-k) makes it 46
    assert samplers._geometric(1, Scripted(0, 1 << 61)).tolist() == [46]


@settings(max_examples=50)
@given(st.fractions(min_value=0, max_value=200), st.integers(5, 120))
def test_enclosures_hold_the_exponential_and_are_tight(gamma: Fraction, digits: int) -> None:
    low, high = samplers._exp_enclosure(gamma, digits)
    with localcontext() as context:
        context.prec = digits + 60
        truth = Fraction((-(Decimal(gamma.numerator) / Decimal(gamma.denominator))).exp())
    slack = truth / 10 ** (digits + 40)
    assert low - slack < truth < high + slack
    assert 0 < high - low <= truth * (gamma + 5) / Fraction(10) ** (digits - 2)


@pytest.mark.parametrize("wrong", [0, -1, Fraction(-1, 2)])
def test_noise_without_width_is_refused(wrong: Fraction) -> None:
    rng = SeededRandomness(1, "x")
    for draw in (discrete_laplace, discrete_gaussian):
        with pytest.raises(ValueError, match="positive"):
            draw(wrong, rng)
    for draws in (discrete_laplaces, discrete_gaussians):
        with pytest.raises(ValueError, match="positive"):
            draws(wrong, 3, rng)
    with pytest.raises(ValueError, match="positive"):
        noised_count(10, wrong, rng)
    with pytest.raises(ValueError, match="positive"):
        add_discrete_gaussian(np.zeros(3, dtype=np.uint64), wrong, rng)


def test_noise_that_would_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        discrete_laplaces(samplers.LARGEST_SCALE + 1, 1, SeededRandomness(1, "x"))
    with pytest.raises(ValueError, match="at most"):
        discrete_gaussians(Fraction(samplers.LARGEST_SCALE) ** 2, 1, SeededRandomness(1, "x"))


def test_no_draws_are_no_draws() -> None:
    assert discrete_gaussians(3, 0, SeededRandomness(1, "x")).shape == (0,)
    assert gaussian_float32(0, SeededRandomness(1, "x")).shape == (0,)


def test_a_noised_count_is_at_least_one_and_centred_on_the_truth() -> None:
    rng = SeededRandomness(15, "count")
    assert min(noised_count(0, 5, rng) for _ in range(200)) == 1
    draws = np.array([noised_count(1000, 5, rng) for _ in range(4000)])
    assert laplace_fit(draws - 1000, 5.0) > 1e-3
    assert count_event(5) == LaplaceRelease(0.2)
    assert count_event(Fraction(5, 2)) == LaplaceRelease(0.4)


@pytest.mark.parametrize("dtype", [np.uint64, np.uint32])
def test_noise_in_the_ring_wraps_and_stays_in_place(dtype: type[np.uint64] | type[np.uint32]) -> None:
    bits = np.dtype(dtype).itemsize * 8
    size = (1 << 16) + 5000  # more than one chunk
    words: npt.NDArray[Any] = np.zeros((2, size // 2), dtype=dtype)
    words[0, :] = 2**bits - 1  # -1 in the ring
    add_discrete_gaussian(words, Fraction(3, 2), SeededRandomness(16, "ring"))
    signed = words.view(np.int64 if bits == 64 else np.int32).astype(np.int64)
    signed[0] += 1
    assert gaussian_fit(signed.reshape(-1), 2.25) > 1e-3
    assert signed.min() < -3
    assert signed.max() > 3


def test_noise_wider_than_the_ring_is_its_residue() -> None:
    words, sigma = np.zeros(1000, dtype=np.uint32), 2**40
    add_discrete_gaussian(words, sigma, SeededRandomness(17, "ring"))
    draws = discrete_gaussians(Fraction(sigma) ** 2, 1000, SeededRandomness(17, "ring"))
    assert words.tolist() == [int(draw) % 2**32 for draw in draws]


@pytest.mark.parametrize("words", [np.zeros(4), np.zeros(4, dtype=np.int64), np.zeros(8, dtype=np.uint64)[::2]])
def test_only_ring_words_are_noised(words: npt.NDArray[np.uint64]) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        add_discrete_gaussian(words, 3, SeededRandomness(1, "x"))


@settings(max_examples=50)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.data())
def test_rounding_never_moves_a_vector_farther_than_is_charged(first: list[float], data: st.DataObject) -> None:
    second = [data.draw(st.floats(-100, 100)) for _ in first]
    apart = float(np.linalg.norm(np.subtract(first, second)))
    rounded = float(np.linalg.norm(np.rint(first) - np.rint(second)))
    assert rounded <= rounded_sensitivity(apart, len(first)) * (1 + 1e-12)


def test_gaussian_floats_are_standard_normal_and_independent() -> None:
    values = gaussian_float32(200_001, SeededRandomness(18, "normal"))
    assert values.dtype == np.float32
    assert stats.kstest(values.astype(np.float64), "norm").pvalue > 1e-3
    half = values.size // 2
    for lag in (1, half, (1 << 16) // 2):  # neighbours, and the two halves of a pair of Box and Muller
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 4 / math.sqrt(values.size - lag)
    assert stats.kstest(values.astype(np.float64) * 1.02, "norm").pvalue < 1e-3


def test_extreme_words_give_finite_values() -> None:
    for word in (0, 2**64 - 1):
        assert np.all(np.isfinite(gaussian_float32(2, Scripted(word, word))))
    assert abs(float(gaussian_float32(1, Scripted(0, 0))[0])) < 9.5


def test_noise_is_added_to_gradients_in_place() -> None:
    values = np.full((3, 30_000), 7.0, dtype=np.float32)
    add_gaussian(values, 2.5, SeededRandomness(19, "gradient"))
    assert stats.kstest((values.reshape(-1).astype(np.float64) - 7.0) / 2.5, "norm").pvalue > 1e-3
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="sigma"):
            add_gaussian(values, sigma, SeededRandomness(1, "x"))
    with pytest.raises(ValueError, match="float32"):
        add_gaussian(np.zeros(3), 1.0, SeededRandomness(1, "x"))  # type: ignore[arg-type]  # the point of the test
