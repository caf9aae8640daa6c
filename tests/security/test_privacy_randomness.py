"""The sources of randomness and what is drawn from them."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from security.privacy.randomness import (
    Randomness,
    SeededRandomness,
    SystemRandomness,
    integers_below,
    numpy_generator,
    permutation,
    poisson_sample,
    randint_below,
    uniform64,
)


def test_a_node_can_tell_the_two_sources_apart() -> None:
    sources: list[Randomness] = [SystemRandomness(), SeededRandomness(1, "a")]
    assert [source.seeded for source in sources] == [False, True]
    assert [source.child("x").seeded for source in sources] == [False, True]


def test_the_seeded_stream_is_fixed_for_good() -> None:
    # Computed once with `SeededRandomness(7, "noise").bytes(16).hex()`: a change would change every study.
    assert SeededRandomness(7, "noise").bytes(16).hex() == "79e0c4289227671bfa64b2755486cb32"
    assert SeededRandomness(7, "noise").child("a").bytes(16).hex() == "dbe3bc9c361e70dd31cc6986d1a5ffc6"


@given(st.lists(st.integers(0, 50), max_size=8), st.binary(max_size=40))
def test_reading_in_pieces_gives_the_same_stream(sizes: list[int], seed: bytes) -> None:
    pieces, whole = SeededRandomness(seed, "x"), SeededRandomness(seed, "x")
    assert b"".join(pieces.bytes(size) for size in sizes) == whole.bytes(sum(sizes))


def test_seeds_labels_and_children_have_streams_of_their_own() -> None:
    root = SeededRandomness(1, "a")
    sources = [
        root,
        SeededRandomness(2, "a"),
        SeededRandomness(1, "b"),
        SeededRandomness(b"1", "a"),
        SeededRandomness(1, "a/x"),
        root.child("x"),
        root.child("y"),
        root.child("x").child("x"),
    ]
    assert len({source.bytes(32) for source in sources}) == len(sources)
    assert root.child("x").bytes(8) == SeededRandomness(1, "a").child("x").bytes(8)  # whatever root has read


def test_a_seeded_source_does_not_print_its_seed() -> None:
    assert "4711" not in repr(SeededRandomness(4711, "x"))


def test_the_system_source_never_repeats_itself() -> None:
    source = SystemRandomness()
    assert len({source.bytes(16), source.bytes(16), source.child("x").bytes(16), source.child("x").bytes(16)}) == 4


@given(st.integers(1, 2**80), st.integers(0, 1000))
def test_integers_stay_below_their_bound(n: int, seed: int) -> None:
    rng = SeededRandomness(seed, "x")
    assert 0 <= randint_below(rng, n) < n
    if n <= 2**62:
        many = integers_below(rng, n, 20)
        assert many.shape == (20,)
        assert np.all((many >= 0) & (many < n))


@pytest.mark.parametrize("n", [3, 5, 6, 100])
def test_integers_are_uniform(n: int) -> None:
    rng = SeededRandomness(n, "uniform")
    one = [randint_below(rng, n) for _ in range(20_000)]
    for draws in (np.array(one), integers_below(rng, n, 20_000)):
        assert stats.chisquare(np.bincount(draws, minlength=n)).pvalue > 1e-3


def test_there_is_no_integer_below_one() -> None:
    for n in (0, -3):
        with pytest.raises(ValueError, match="integer"):
            randint_below(SeededRandomness(1, "x"), n)
        with pytest.raises(ValueError, match="n must"):
            integers_below(SeededRandomness(1, "x"), n, 1)


def test_permutations_are_uniform() -> None:
    rng = SeededRandomness(3, "permutation")
    seen = Counter(tuple(permutation(rng, 4).tolist()) for _ in range(12_000))
    assert set(seen) == set(permutations(range(4)))
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


class TiedKeys:
    """A source whose first 24 bytes give three equal keys, and the rest 2, 0, 1."""

    seeded = True

    def __init__(self) -> None:
        self._words = [5, 5, 5, 2, 0, 1]

    def bytes(self, n: int) -> bytes:
        return b"".join(self._words.pop(0).to_bytes(8, "little") for _ in range(n // 8))

    def child(self, label: str) -> TiedKeys:
        return self


def test_a_permutation_with_tied_keys_is_drawn_again() -> None:
    assert permutation(TiedKeys(), 3).tolist() == [1, 2, 0]


def test_a_poisson_batch_takes_each_patient_with_the_rate_that_is_charged() -> None:
    rng = SeededRandomness(5, "batches")
    rate, patients, rounds = 0.3, 40, 4000
    batches = [poisson_sample(rng, patients, rate) for _ in range(rounds)]
    times = np.bincount(np.concatenate(batches), minlength=patients)
    assert stats.binomtest(int(times.sum()), patients * rounds, rate).pvalue > 1e-3
    assert stats.chisquare(times).pvalue > 1e-3
    sizes = np.array([batch.size for batch in batches])  # a batch of fixed size would be another mechanism
    assert np.var(sizes) == pytest.approx(patients * rate * (1 - rate), rel=0.1)
    assert poisson_sample(rng, 7, 1.0).tolist() == list(range(7))
    assert poisson_sample(rng, 1000, 1e-300).size == 0
    with pytest.raises(ValueError, match="sampling rate"):
        poisson_sample(rng, 3, 0.0)


def test_generators_for_bulk_draws_are_fresh_each_time_and_repeatable_from_a_seed() -> None:
    rng = SeededRandomness(9, "bulk")
    first, second = numpy_generator(rng).random(4), numpy_generator(rng).random(4)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, numpy_generator(SeededRandomness(9, "bulk")).random(4))


def test_words_use_all_64_bits() -> None:
    words = uniform64(SeededRandomness(2, "words"), 2000)
    ones = [(words >> np.uint64(bit) & np.uint64(1)).sum() for bit in range(64)]
    assert all(850 < one < 1150 for one in ones)
