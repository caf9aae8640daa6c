"""Statistics in fixed point: sums decode to what was summed, never wrap, and refuse what is out of range."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from federation import statistic_words as sw
from federation.encoding_checks import RingOverflowError
from security.errors import ConfigurationError


@given(
    st.integers(0, 40),
    st.lists(st.lists(st.floats(-1000, 1000), min_size=3, max_size=3), min_size=1, max_size=9),
)
def test_statistics_sum_within_half_a_word_each(bits: int, rows: list[list[float]]) -> None:
    encoding = sw.StatisticsEncoding(bound=1000.0, contributors=9, resolution_bits=bits)
    total = np.zeros(3, np.uint64)
    for row in rows:
        total += sw.encode_statistics(np.array(row), encoding)
    for word, column in zip(total.view(np.int64).tolist(), zip(*rows, strict=True), strict=True):
        assert abs(word - sum(map(Fraction, column)) * 2**bits) <= Fraction(len(rows), 2)
    assert np.allclose(sw.decode_statistics(total, encoding), np.sum(rows, axis=0), atol=5 / 2**bits, rtol=1e-12)


@given(st.integers(0, 20), st.lists(st.integers(-(2**33), 2**33), min_size=1, max_size=9))
def test_counts_are_exact(bits: int, counts: list[int]) -> None:
    encoding = sw.StatisticsEncoding(bound=2.0**33, contributors=9, resolution_bits=bits)
    total = np.zeros(1, np.uint64)
    for index, count in enumerate(counts):
        row = np.array([count], np.int64)
        total += sw.encode_statistics(row if index % 2 else row.astype(np.float64), encoding)
    assert sw.decode_statistics(total, encoding).tolist() == [sum(counts)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 10.5, -10.5])
def test_a_statistic_beyond_its_bound_is_refused_without_its_value(value: float) -> None:
    encoding = sw.StatisticsEncoding(bound=10.0, contributors=2, resolution_bits=3)
    with pytest.raises(sw.StatisticRangeError) as caught:
        sw.encode_statistics(np.array([1.0, value]), encoding)
    assert caught.value.place == "statistic 1"
    assert "10.5" not in str(caught.value)


def test_each_statistic_has_its_own_bound() -> None:
    encoding = sw.StatisticsEncoding(bound=10.0, contributors=2, resolution_bits=3)
    bounds = np.array([1.0, 10.0])
    assert sw.decode_statistics(sw.encode_statistics(np.array([1.0, -10.0]), encoding, bounds), encoding).tolist() == [
        1.0,
        -10.0,
    ]
    with pytest.raises(sw.StatisticRangeError):
        sw.encode_statistics(np.array([1.5, 2.0]), encoding, bounds)
    with pytest.raises(sw.StatisticRangeError):
        sw.encode_statistics(np.array([-(2**63), 0]), encoding, bounds)
    for wrong in (np.array([1.0, 11.0]), np.array([1.0, math.nan]), np.array([1.0, -1.0]), np.array([1.0])):
        with pytest.raises(ConfigurationError):
            sw.encode_statistics(np.array([0.5, 0.5]), encoding, wrong)


def test_an_encoding_of_statistics_that_could_wrap_cannot_be_made() -> None:
    sw.StatisticsEncoding(bound=2.0**61, contributors=3, resolution_bits=0)
    with pytest.raises(RingOverflowError, match=r"2\^63 − 1"):
        sw.StatisticsEncoding(bound=2.0**61, contributors=4, resolution_bits=0)
    with pytest.raises(RingOverflowError):
        sw.StatisticsEncoding(bound=2.0**62, contributors=1, resolution_bits=1)
    for bound, contributors, bits in ((0.0, 1, 1), (math.nan, 1, 1), (1.0, 0, 1), (1.0, 1, -1), (1.0, 1, 63)):
        with pytest.raises(ConfigurationError):
            sw.StatisticsEncoding(bound, contributors, bits)


@settings(max_examples=30)
@given(st.integers(1, 2**20), st.integers(0, 62))
def test_the_largest_legal_statistics_do_not_wrap(contributors: int, bits: int) -> None:
    bound = float(2**63 // contributors // 2**bits // 2)
    assume(bound > 0)
    encoding = sw.StatisticsEncoding(bound, contributors, bits)
    word = int(sw.encode_statistics(np.array([bound]), encoding).view(np.int64)[0])
    assert word == int(bound) * 2**bits
    assert contributors * word < 2**63
