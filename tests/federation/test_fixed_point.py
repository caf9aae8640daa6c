"""Fixed point: sums decode to what was summed, never wrap, and refuse what cannot be masked."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation import fixed_point as fp
from federation.encoding_checks import RingOverflowError
from security.errors import ConfigurationError

SIZES_AROUND_BLOCKS = [0, 1, fp.BLOCK - 1, fp.BLOCK, fp.BLOCK + 1, 2 * fp.BLOCK + 3]
finite32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
encodings = st.builds(
    fp.ModelEncoding,
    clip=st.floats(1e-6, 1e6),
    headroom=st.floats(1e-3, 1e3),
    contributors=st.integers(1, 300),
)


def naive_words(delta: np.ndarray, alpha: float, encoding: fp.ModelEncoding) -> list[int]:
    """One element at a time, with Python's float64 and its half-to-even round."""
    factor = alpha * encoding.scale
    clipped = [min(max(float(x), -encoding.clip), encoding.clip) for x in delta]
    return [round(x * factor) % 2**32 for x in clipped]


@given(encodings, hnp.arrays(np.float32, st.integers(0, 40), elements=finite32), st.floats(0, 1))
def test_encoding_equals_the_naive_one(encoding: fp.ModelEncoding, delta: np.ndarray, part: float) -> None:
    alpha = part * encoding.headroom
    out = np.empty(delta.size, np.uint32)
    clipped = fp.encode_update(delta, alpha, encoding, out)
    assert out.tolist() == naive_words(delta, alpha, encoding)
    assert clipped == sum(abs(float(x)) > encoding.clip for x in delta)


@pytest.mark.parametrize("size", SIZES_AROUND_BLOCKS)
def test_blocks_change_nothing_and_the_update_may_be_replaced_in_place(size: int) -> None:
    rng = np.random.default_rng(size)
    delta = rng.normal(0, 0.5, size).astype(np.float32)
    encoding = fp.ModelEncoding(clip=1.0, headroom=1.0, contributors=9)
    expected = np.rint(np.clip(delta.astype(np.float64), -1, 1) * (0.3 * encoding.scale)).astype(np.int64)
    out = np.empty(size, np.uint32)
    clipped = fp.encode_update(delta, 0.3, encoding, out)
    assert np.array_equal(out, (expected % 2**32).astype(np.uint32))
    assert clipped == np.count_nonzero(np.abs(delta) > 1)
    inplace = delta.copy()
    fp.encode_update(inplace, 0.3, encoding, inplace.view(np.uint32))
    assert np.array_equal(inplace.view(np.uint32), out)
    decoded = fp.decode_sum(out, encoding)
    assert decoded.dtype == np.float64
    assert np.array_equal(decoded, expected * (1.0 / encoding.scale))
    narrow = fp.decode_sum(out, encoding, out.view(np.float32))
    assert np.array_equal(narrow, decoded.astype(np.float32))


@given(encodings, st.integers(1, 6), st.integers(1, 20), st.randoms(use_true_random=False), st.booleans())
def test_sums_never_wrap_and_decode_within_half_a_word_each(
    encoding: fp.ModelEncoding, institutions: int, size: int, random: object, extreme: bool
) -> None:
    assume(institutions <= encoding.contributors)
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined] # Hypothesis' Random
    shares = rng.random(institutions) + 1e-9
    alphas = [float(s) for s in shares / shares.sum() * encoding.headroom * (1 - 1e-12)]
    fp.prove_no_wrap(encoding, math.fsum(alphas))
    total = np.zeros(size, np.uint32)
    exact = [Fraction(0)] * size
    signs = rng.choice([-1.0, 1.0], size)
    for alpha in alphas:
        values = signs * encoding.clip * 2 if extreme else rng.normal(0, encoding.clip, size)
        delta = values.astype(np.float32)
        words = np.empty(size, np.uint32)
        fp.encode_update(delta, alpha, encoding, words)
        total += words
        for k in range(size):
            x = min(max(float(delta[k]), -encoding.clip), encoding.clip)
            exact[k] += Fraction(x) * Fraction(alpha) * Fraction(encoding.scale)
    for word, wanted in zip(total.view(np.int32).tolist(), exact, strict=True):
        assert abs(word - wanted) <= Fraction(institutions, 2) + Fraction(1, 10**4)
    decoded = fp.decode_sum(total, encoding)
    quantum = 1 / encoding.scale
    for value, wanted in zip(decoded.tolist(), exact, strict=True):
        assert abs(value - float(wanted) * quantum) <= (institutions / 2 + 1e-3) * quantum


def test_the_largest_legal_sum_fits_and_one_more_headroom_does_not() -> None:
    encoding = fp.ModelEncoding(clip=0.5, headroom=1.0, contributors=9)
    words = np.empty(1, np.uint32)
    total = np.zeros(1, np.uint32)
    for _ in range(9):
        fp.encode_update(np.array([7.0], np.float32), 1 / 9, encoding, words)
        total += words
    assert 2**31 - 1 - 9 - 5 <= int(total.view(np.int32)[0]) <= 2**31 - 1
    fp.prove_no_wrap(encoding, 1.0)
    fp.prove_no_wrap(encoding, sum([1 / 9] * 9))
    for largest in (1.00000001, 2.0, math.inf, math.nan, -1.0):
        with pytest.raises(RingOverflowError):
            fp.prove_no_wrap(encoding, largest)
    with pytest.raises(RingOverflowError, match=r"2\^31 − 1 = 2147483647"):
        fp.prove_no_wrap(encoding, 1.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, fp.BLOCK - 1, fp.BLOCK, fp.BLOCK + 5])
def test_a_non_finite_update_is_refused_wherever_it_hides(bad: float, position: int) -> None:
    delta = np.zeros(fp.BLOCK + 6, np.float32)
    delta[position] = bad
    with pytest.raises(fp.NonFiniteUpdateError) as caught:
        fp.encode_update(delta, 0.5, fp.ModelEncoding(1.0, 1.0, 3), np.empty(delta.size, np.uint32))
    assert caught.value.code == "non-finite-update"
    assert "nan" not in str(caught.value).replace("NaN", "")


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, math.inf])
def test_a_weight_out_of_range_is_refused(alpha: float) -> None:
    encoding = fp.ModelEncoding(1.0, 1.0, 3)
    with pytest.raises(fp.WeightError):
        fp.encode_update(np.zeros(2, np.float32), alpha, encoding, np.empty(2, np.uint32))
    with pytest.raises(fp.WeightError):
        fp.encode_weight(alpha, encoding)


@pytest.mark.parametrize(
    ("clip", "headroom", "contributors"),
    [
        (0, 1, 3),
        (-1, 1, 3),
        (math.nan, 1, 3),
        (math.inf, 1, 3),
        (1, 0, 3),
        (1, math.nan, 3),
        (1, 1, 0),
        (1, 1, 2**31),
        (1e-300, 1e-300, 3),
        (1e300, 1e300, 3),
    ],
)
def test_bad_encodings_cannot_be_made(clip: float, headroom: float, contributors: int) -> None:
    with pytest.raises(ConfigurationError):
        fp.ModelEncoding(clip, headroom, contributors)


def test_arrays_of_the_wrong_kind_are_refused() -> None:
    encoding = fp.ModelEncoding(1.0, 1.0, 3)
    out = np.empty(2, np.uint32)
    for delta, target in (
        (np.zeros(2, np.float64), out),
        (np.zeros((2, 1), np.float32), out),
        (np.zeros(3, np.float32), out),
        (np.zeros(2, np.float32), np.empty(2, np.int32)),
    ):
        with pytest.raises(ConfigurationError):
            fp.encode_update(delta, 0.5, encoding, target)  # type: ignore[arg-type] # that is the point
    with pytest.raises(ConfigurationError):
        fp.decode_sum(out, encoding, np.empty(3, np.float64))
    with pytest.raises(ConfigurationError):
        fp.mean_trajectory(out, 5, encoding, np.empty(2, np.float64))


@given(encodings, st.lists(st.floats(1e-3, 1), min_size=1, max_size=8))
def test_weights_sum_and_decode(encoding: fp.ModelEncoding, parts: list[float]) -> None:
    assume(len(parts) <= encoding.contributors)
    alphas = [p / len(parts) * encoding.headroom for p in parts]
    word = sum(fp.encode_weight(a, encoding) for a in alphas) % 2**32
    assert fp.decode_weight_sum(word, encoding) == pytest.approx(
        math.fsum(alphas), abs=(len(parts) / 2 + 1e-3) / encoding.weight_scale
    )


@pytest.mark.parametrize("word", [0, 2**31, 2**32 - 1])
def test_a_sum_of_weights_that_is_not_positive_is_refused(word: int) -> None:
    encoding = fp.ModelEncoding(1.0, 1.0, 3)
    with pytest.raises(fp.WeightError):
        fp.decode_weight_sum(word, encoding)
    with pytest.raises(fp.WeightError):
        fp.mean_trajectory(np.zeros(1, np.uint32), word, encoding, np.empty(1, np.float32))


@pytest.mark.parametrize("size", [1, fp.BLOCK + 1])
def test_the_mean_trajectory_is_the_weighted_mean(size: int) -> None:
    rng = np.random.default_rng(3)
    encoding = fp.ModelEncoding(clip=0.25, headroom=1.0, contributors=3)
    alphas = [0.2, 0.5, 0.1]  # one owner dropped out: the weights do not sum to 1
    deltas = [rng.normal(0, 0.01, size).astype(np.float32) for _ in alphas]
    total, words, weight = np.zeros(size, np.uint32), np.empty(size, np.uint32), 0
    for alpha, delta in zip(alphas, deltas, strict=True):
        fp.encode_update(delta, alpha, encoding, words)
        total += words
        weight += fp.encode_weight(alpha, encoding)
    expected = sum(a * d.astype(np.float64) for a, d in zip(alphas, deltas, strict=True)) / 0.8
    result = fp.mean_trajectory(total, weight, encoding, np.empty(size, np.float32))
    assert np.allclose(result, expected, rtol=1e-6, atol=3 / encoding.scale / 0.8)
    by_hand = (total.view(np.int32).astype(np.float64) * (0.25 / weight)).astype(np.float32)
    assert np.array_equal(result, by_hand)
    assert np.array_equal(fp.mean_trajectory(total, weight, encoding, total.view(np.float32)), by_hand)
