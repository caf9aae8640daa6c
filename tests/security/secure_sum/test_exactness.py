"""The opened sum is the plaintext ring sum of the survivors bit for bit, whoever drops out when, or nothing opens."""

from __future__ import annotations

import tracemalloc
from typing import Final

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from security.secure_sum.errors import MissingSignaturesError, TooFewMembersError
from security.secure_sum.masks import CHUNK_BYTES, Masker, SignedKey, word_type
from security.secure_sum.spec import Attempt, Ring, Sum
from security.secure_sum.upload import UPLOAD_CHUNK_BYTES, ArrayWords
from tests.security.secure_sum.harness import NAMES, World, make_attempt, part, safe_threshold
from tests.security.secure_sum.schedules import predicted, run

RINGS: Final[tuple[Ring, ...]] = (16, 32, 64)
STEPS = ("keys", "shares", "accept", "A/upload", "A/sign", "A/open", "B/upload", "B/sign", "B/open")


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """3 to 9 institutions with any parts, owners, rings, lengths and thresholds that a plan may have."""
    n = draw(st.integers(3, 9))
    names = draw(st.permutations(NAMES))[:n]
    max_colluders = draw(st.integers(0, min(2, n - 2)))
    lowest = safe_threshold(n, max_colluders)
    threshold = draw(st.integers(lowest, max(lowest, n - 1)))
    owners = st.sets(st.sampled_from(names), min_size=1)
    sums = tuple(
        Sum(
            s,
            (
                *(
                    part(
                        f"part/{k}",
                        draw(owners),
                        ring=draw(st.sampled_from(RINGS)),
                        length=draw(st.integers(1, 70)),
                        quantity=f"{s}{k}",
                    )
                    for k in range(draw(st.integers(1, 3)))
                ),
                part("everybody", names, ring=64, length=3),
            ),
        )
        for s in ("A", "B")
    )
    return make_attempt(names, sums=sums, max_colluders=max_colluders, threshold=threshold)


@settings(
    max_examples=60, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate)
)  # shrinking takes minutes
@given(data=st.data())
def test_any_dropouts_at_any_phase_open_the_exact_sum_or_nothing(data: st.DataObject) -> None:
    attempt = data.draw(attempts())
    chance = st.sets(st.tuples(st.sampled_from(list(attempt.roster)), st.sampled_from(STEPS)), max_size=4)
    absent = data.draw(chance)
    world = World(attempt, seed=data.draw(st.integers(0, 2**32)), shuffle=data.draw(st.booleans()))
    outcome = run(world, absent, threads=data.draw(st.sampled_from((1, 2, 3))))
    alive, stopped_at = predicted(world, absent)
    assert outcome.stopped_at == stopped_at, outcome.error
    assert outcome.opened == {s: world.expected(s, who) for s, who in alive.items()}
    if stopped_at.endswith("/sign"):
        assert isinstance(outcome.error, MissingSignaturesError)
    elif stopped_at == "done":
        assert outcome.error is None
    else:
        assert isinstance(outcome.error, TooFewMembersError)


def test_largest_dropout_that_the_threshold_stands_opens_exactly_and_one_more_opens_nothing() -> None:
    attempt = make_attempt(NAMES, max_colluders=2, threshold=6)
    for gone, opens in ((3, True), (4, False)):
        world = World(attempt)
        outcome = run(world, {(n, step) for n in NAMES[:gone] for step in ("A/upload", "A/sign", "A/open")})
        assert outcome.opened.get("A") == (world.expected("A", NAMES[gone:]) if opens else None)
        assert isinstance(outcome.error, MissingSignaturesError) or opens


def test_words_wrap_as_the_ring_does() -> None:
    attempt = make_attempt(sums=[Sum("A", tuple(part(str(ring), NAMES[:6], ring=ring) for ring in RINGS))])
    world = World(attempt).ready()
    for (name, s, p), words in world.values.items():
        world.values[name, s, p] = np.full_like(words, np.iinfo(words.dtype).max)
    opened = world.whole_sum("A")
    for ring in RINGS:
        assert opened[str(ring)] == np.full(5, 2**ring - 6, dtype=word_type(ring)).tobytes()


def test_unmasked_attempts_open_the_same_sum() -> None:
    outcome = run(World(make_attempt(masked=False)), {("south", "A/upload")})
    world = World(make_attempt())
    assert outcome.opened == run(world, {("south", "A/upload")}).opened
    assert outcome.error is None


# -- sizes, chunks, resumption ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> World:
    """Three institutions, parts that are no multiple of any chunk, the first beyond 1 MiB; uploaded, not yet opened."""
    names = NAMES[:3]
    words = UPLOAD_CHUNK_BYTES // 4
    sums = [
        Sum(
            "A",
            (
                part("big", names, length=words + 1237),
                part("odd", names, length=13),
                part("half", names, ring=16, length=words * 2 + 711),
                part("wide", names, ring=64),
            ),
        )
    ]
    world = World(make_attempt(names, sums=sums)).ready()
    world.upload_all("A")
    return world


def test_a_vector_beyond_one_chunk_folds_alike_on_any_number_of_threads(large: World) -> None:
    if large.aggregator.current.signatures == {}:
        large.sign_and_open("A", NAMES[:3], NAMES[:3])
    results = [large.fold("A", threads) for threads in (1, 2, 5)]
    assert results[0] == large.expected("A", NAMES[:3])
    assert results[0] == results[1] == results[2]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_an_upload_resumes_at_any_byte(large: World, data: st.DataObject) -> None:
    whole = large.uploads["A", "north"]
    edges = [0, 1, 15, 16, UPLOAD_CHUNK_BYTES - 1, UPLOAD_CHUNK_BYTES, len(whole) - 41, len(whole) - 1, len(whole)]
    offset = data.draw(st.one_of(st.sampled_from(edges), st.integers(0, len(whole))))
    upload = large.mask("A", "north")
    assert b"".join(upload.chunks(offset)) == whole[offset:]
    assert all(0 < len(chunk) <= UPLOAD_CHUNK_BYTES for chunk in upload.chunks(offset))


def test_one_word_on_the_wire_per_word_summed(large: World) -> None:
    assert len(large.uploads["A", "north"]) == 4 * (1237 + 13) + 2 * 711 + 8 * 5 + 2 * UPLOAD_CHUNK_BYTES
    upload = large.mask("A", "north")
    assert len(upload.header.payload) + len(upload.header.signature) < 512


def test_masking_holds_no_second_copy_of_the_vector() -> None:
    names = NAMES[:3]
    world = World(make_attempt(names, sums=[Sum("A", (part("big", names, length=4 << 20),))])).ready()
    world.enter("A", names)
    upload = world["north"].mask({"big": ArrayWords(world.values["north", "A", "big"])})
    tracemalloc.start()
    for _ in upload.chunks():
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, "16 MiB of words must pass through chunks"


@given(start=st.integers(0, 3 * CHUNK_BYTES // 16), length=st.integers(1, 200), ring=st.sampled_from(RINGS))
@settings(max_examples=30, deadline=None)
def test_masks_are_addressed_by_position(start: int, length: int, ring: Ring) -> None:
    dtype = word_type(ring)
    position = start * 16 // dtype.itemsize
    masker = Masker([SignedKey(1, b"k" * 32), SignedKey(-1, b"l" * 32)])
    whole = np.zeros(position + length, dtype=dtype)
    masker.apply(whole, 0)
    tail = np.zeros(length, dtype=dtype)
    masker.apply(tail, position)
    assert tail.tobytes() == whole[position:].tobytes()


def test_a_position_off_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks"):
        Masker([SignedKey(1, b"k" * 32)]).apply(np.zeros(4, dtype="<u4"), 1)
