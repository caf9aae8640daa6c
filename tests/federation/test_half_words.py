"""Words of 16 bits: exact sums, no wrap at the worst, rounding without bias, and weights that keep their 31 bits."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from federation import fixed_point as fp
from federation import half_words
from federation.encoding_checks import RingOverflowError
from security.errors import ConfigurationError

EVERY = np.arange(2**16, dtype=np.uint16)
finite32 = st.floats(allow_nan=False, allow_infinity=False, width=32)
encodings = st.builds(
    fp.ModelEncoding,
    clip=st.floats(1e-6, 1e6),
    headroom=st.floats(1e-3, 1e3),
    contributors=st.integers(1, half_words.MOST_CONTRIBUTORS),
    bits=st.just(16),
)


def encode(delta: np.ndarray, alpha: float, encoding: fp.ModelEncoding, random: np.ndarray) -> np.ndarray:
    """The words of one update."""
    out = np.empty(delta.size, np.uint16)
    fp.encode_update(delta, alpha, encoding, out, random)
    return out


@given(v=st.integers(-(2**31) + 2**16, 2**31 - 2**16))
@settings(max_examples=50, deadline=None)
def test_rounding_is_exactly_unbiased(v: int) -> None:
    out = np.empty(2**16, np.uint16)
    half_words.narrow(np.full(2**16, v, np.int32), EVERY, out)
    signed = out.view(np.int16).astype(np.int64)
    assert int(signed.sum()) == v, "the mean over every draw is v / 2^16"
    assert set(signed.tolist()) <= {math.floor(Fraction(v, 2**16)), math.ceil(Fraction(v, 2**16))}


@settings(deadline=None)
@given(encodings, st.data(), st.floats(0, 1))
def test_encoding_equals_the_naive_one(encoding: fp.ModelEncoding, data: st.DataObject, part: float) -> None:
    delta = data.draw(hnp.arrays(np.float32, st.integers(0, 40), elements=finite32))
    random = data.draw(hnp.arrays(np.uint16, delta.size))
    alpha = part * encoding.headroom
    factor = alpha * encoding.scale * 2**16
    clipped = [min(max(float(x), -encoding.clip), encoding.clip) for x in delta]
    expected = [(round(x * factor) + int(r)) // 2**16 % 2**16 for x, r in zip(clipped, random, strict=True)]
    assert encode(delta, alpha, encoding, random).tolist() == expected


@pytest.mark.parametrize("size", [0, 1, fp.BLOCK - 1, fp.BLOCK, fp.BLOCK + 1, 2 * fp.BLOCK + 3])
def test_blocks_change_nothing(size: int) -> None:
    rng = np.random.default_rng(size)
    delta, random = rng.normal(0, 0.5, size).astype(np.float32), rng.integers(0, 2**16, size, np.uint16)
    encoding = fp.ModelEncoding(clip=1.0, headroom=1.0, contributors=9, bits=16)
    fine = np.rint(np.clip(delta.astype(np.float64), -1, 1) * (0.3 * encoding.scale * 2**16)).astype(np.int64)
    out = np.empty(size, np.uint16)
    assert fp.encode_update(delta, 0.3, encoding, out, random) == np.count_nonzero(np.abs(delta) > 1)
    assert np.array_equal(out, ((fine + random) // 2**16 % 2**16).astype(np.uint16))
    decoded = fp.decode_sum(out, encoding)
    assert np.allclose(decoded, np.clip(delta, -1, 1) * 0.3, rtol=0, atol=1 / encoding.scale)


@given(encodings, st.integers(1, 6), st.integers(0, 2**32), st.sampled_from(["noise", "up", "down"]))
@settings(max_examples=80, deadline=None)
def test_every_set_of_survivors_sums_as_integers_do(
    encoding: fp.ModelEncoding, institutions: int, seed: int, extreme: str
) -> None:
    """Also where every value is at the clip, every weight the largest and every rounding away from zero."""
    institutions = min(institutions, encoding.contributors)
    rng = np.random.default_rng(seed)
    parts = rng.random(institutions) + 1e-9
    alphas = [float(p) for p in parts / parts.sum() * encoding.headroom * (1 - 1e-12)]
    rows, exact = [], []
    for alpha in alphas:
        delta = rng.normal(0, encoding.clip, 7).astype(np.float32)
        random = rng.integers(0, 2**16, 7, np.uint16)
        if extreme != "noise":
            delta = np.full(7, np.inf, np.float32) if extreme == "up" else np.full(7, -np.inf, np.float32)
            delta = np.nan_to_num(delta)
            random = np.full(7, 2**16 - 1 if extreme == "up" else 0, np.uint16)
        rows.append(encode(delta, alpha, encoding, random))
        exact.append([Fraction(min(max(float(x), -encoding.clip), encoding.clip)) * Fraction(alpha) for x in delta])
    for size in range(1, institutions + 1):
        for alive in combinations(range(institutions), size):
            total = np.zeros(7, np.uint16)
            for k in alive:
                total += rows[k]
            signed = total.view(np.int16).tolist()
            assert signed == [sum(int(rows[k].view(np.int16)[j]) for k in alive) for j in range(7)], "it wrapped"
            for j, word in enumerate(signed):
                true = sum(exact[k][j] for k in alive) * Fraction(encoding.scale)
                assert abs(word - true) <= len(alive), "one word of rounding for each"


def test_the_largest_sum_just_fits() -> None:
    """Σα = 1 over 4096 institutions at the clip, every rounding up: the ring's largest number is not passed."""
    n = half_words.MOST_CONTRIBUTORS
    encoding = fp.ModelEncoding(clip=0.5, headroom=1.0, contributors=n, bits=16)
    fp.prove_no_wrap(encoding, 1.0)
    for sign, r in ((1, 2**16 - 1), (-1, 0)):
        words = encode(np.array([sign * 7.0], np.float32), 1 / n, encoding, np.array([r], np.uint16))
        total = int(words.view(np.int16)[0]) * n
        assert 2**15 - 2 * n < sign * total <= 2**15 - 1
    for largest in (1.001, 2.0, math.inf, math.nan):
        with pytest.raises(RingOverflowError):
            fp.prove_no_wrap(encoding, largest)
    with pytest.raises(RingOverflowError, match=r"2\^15 − 1 = 32767"):
        fp.prove_no_wrap(encoding, 1.5)


def test_rounding_up_and_down_cancel_over_many_draws() -> None:
    """A value of a seventh of a word, summed 400 times: the mean comes back, and plain rounding would give zero."""
    encoding = fp.ModelEncoding(clip=1.0, headroom=1.0, contributors=9, bits=16)
    rng = np.random.default_rng(1)
    delta = np.full(1000, 1 / encoding.scale / 7, np.float32)
    mean = np.zeros(1000)
    for _ in range(400):
        mean += encode(delta, 1.0, encoding, rng.integers(0, 2**16, 1000, np.uint16)).view(np.int16)
    mean /= 400
    deviation = math.sqrt(1 / 7 * 6 / 7 / 400)
    assert abs(mean.mean() - 1 / 7) < 8 * deviation / math.sqrt(1000)
    assert np.max(np.abs(mean - 1 / 7)) < 8 * deviation


# -- weights ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, half_words.MOST_CONTRIBUTORS), st.integers(0, 2**32), st.booleans())
@settings(max_examples=60, deadline=None)
def test_limbs_of_weights_sum_without_carry(contributors: int, seed: int, largest: bool) -> None:
    words = [2**31 - 1] * contributors if largest else np.random.default_rng(seed).integers(0, 2**31, contributors)
    total = np.zeros(half_words.limbs(contributors), np.uint16)
    for word in words:
        total += half_words.split_weight(int(word), contributors)
    assert half_words.join_weight(total, contributors) == sum(map(int, words))


def test_a_weight_takes_few_words() -> None:
    sizes = {n: fp.ModelEncoding(1.0, 1.0, n, 16).weight_words for n in (1, 2, 9, 100, 300, 1000)}
    assert sizes == {1: 2, 2: 3, 9: 3, 100: 4, 300: 5, 1000: 6}
    assert fp.ModelEncoding(1.0, 1.0, 9).weight_words == 1


@settings(deadline=None)
@given(encodings, st.lists(st.floats(1e-4, 1), min_size=1, max_size=9))
def test_weights_keep_the_precision_of_31_bits(encoding: fp.ModelEncoding, parts: list[float]) -> None:
    parts = parts[: encoding.contributors]
    alphas = [p / len(parts) * encoding.headroom for p in parts]
    total = np.zeros(encoding.weight_words, np.uint16)
    for alpha in alphas:
        total += fp.weight_vector(alpha, encoding)
    read = fp.read_weight(total, encoding)
    assert read == sum(fp.encode_weight(alpha, encoding) for alpha in alphas)
    assert fp.decode_weight_sum(read, encoding) == pytest.approx(
        math.fsum(alphas), rel=1e-9, abs=len(alphas) / encoding.weight_scale
    )
    assert encoding.weight_scale * encoding.headroom > 0.85 * 2**31


@pytest.mark.parametrize("bits", [16, 32])
def test_the_mean_is_the_same_in_both_rings_but_for_rounding(bits: Literal[16, 32]) -> None:
    rng = np.random.default_rng(bits)
    encoding = fp.ModelEncoding(clip=0.25, headroom=1.0, contributors=3, bits=bits)
    deltas = [rng.uniform(-0.25, 0.25, 50).astype(np.float32) for _ in range(3)]
    alphas = [0.1, 0.25, 0.4]
    total = np.zeros(50 + encoding.weight_words, encoding.word_type)
    for delta, alpha in zip(deltas, alphas, strict=True):
        words = np.empty(50, encoding.word_type)
        random = rng.integers(0, 2**16, 50, np.uint16) if bits == 16 else None
        fp.encode_update(delta, alpha, encoding, words, random)
        total[:50] += words
        total[50:] += fp.weight_vector(alpha, encoding)
    mean = fp.mean_trajectory(total[:50], fp.read_weight(total[50:], encoding), encoding, np.empty(50, np.float32))
    true = sum(a * d.astype(np.float64) for a, d in zip(alphas, deltas, strict=True)) / sum(alphas)
    assert np.allclose(mean, true, rtol=1e-6, atol=3 / encoding.scale / sum(alphas))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_mistakes_are_refused() -> None:
    encoding = fp.ModelEncoding(1.0, 1.0, 3, 16)
    delta, out = np.zeros(2, np.float32), np.empty(2, np.uint16)
    for random in (None, np.zeros(3, np.uint16), np.zeros(2, np.uint32)):
        with pytest.raises(ConfigurationError):
            fp.encode_update(delta, 0.5, encoding, out, random)  # type: ignore[arg-type] # that is the point
    with pytest.raises(ConfigurationError):
        fp.encode_update(delta, 0.5, encoding, np.empty(2, np.uint32), np.zeros(2, np.uint16))
    with pytest.raises(ConfigurationError):
        fp.encode_update(delta, 0.5, fp.ModelEncoding(1.0, 1.0, 3), np.empty(2, np.uint32), np.zeros(2, np.uint16))
    with pytest.raises(ConfigurationError):
        fp.read_weight(np.zeros(1, np.uint16), encoding)
    for contributors, bits in ((3, 8), (3, 64), (half_words.MOST_CONTRIBUTORS + 1, 16)):
        with pytest.raises(ConfigurationError):
            fp.ModelEncoding(1.0, 1.0, contributors, bits)  # type: ignore[arg-type] # that is the point
