"""Which parameters are sent: the same for everybody, another choice in every round, evenly, block by block."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.server_optimisers import ServerOptimiserSettings, apply, initial_value, state_slots
from federation.thinning import BLOCK, RUN, Thinning, apply_to, thinning_key
from institution_node.updates import ArrayUpdate, ThinnedUpdate

sizes = st.one_of(st.integers(1, 200), st.integers(BLOCK - 20, BLOCK + 20), st.integers(2 * BLOCK, 3 * BLOCK))
fractions = st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.01, 0.1, 0.5, 0.999]))

FIRST_CHOICE = [32, 80, 192]


def key(round_: int = 1, component: str = "encoder/mrna") -> bytes:
    return thinning_key(b"r" * 32, round_, component)


def all_positions(thinning: Thinning) -> np.ndarray:
    return np.concatenate([b * BLOCK + thinning.positions(b) for b in range(-(-thinning.size // BLOCK))])


@settings(max_examples=60, deadline=None)
@given(size=sizes, fraction=fractions)
def test_lengths_are_known_before_anything_is_drawn(size: int, fraction: float) -> None:
    thinning = Thinning(size, fraction, key())
    if thinning.whole:
        assert thinning.words == size
        return
    positions = all_positions(thinning)
    assert len(positions) == thinning.words
    assert np.all(np.diff(positions) > 0)
    assert positions[0] >= 0
    assert positions[-1] < -(-size // RUN) * RUN
    assert np.array_equal(positions % RUN, np.tile(np.arange(RUN), len(positions) // RUN)), "whole runs"
    for block in range(size // BLOCK):
        assert thinning.count(block) == thinning.block_words
    assert fraction * size <= thinning.words <= fraction * size + RUN * (2 + size // BLOCK)


def test_the_choice_is_fixed_by_run_round_and_component() -> None:
    chosen = all_positions(Thinning(5000, 0.1, key()))
    assert np.array_equal(chosen, all_positions(Thinning(5000, 0.1, key())))
    others = [key(2), key(component="encoder/image"), thinning_key(b"s" * 32, 1, "encoder/mrna")]
    for other in others:
        assert not np.array_equal(chosen, all_positions(Thinning(5000, 0.1, other)))
    blocks = Thinning(2 * BLOCK, 0.1, key())
    assert not np.array_equal(blocks.positions(0), blocks.positions(1))
    # Made by this code when the choice was fixed: institutions and coordinator of one release must agree for good.
    assert all_positions(Thinning(200, 0.2, key()))[::RUN].tolist() == FIRST_CHOICE


def test_every_parameter_has_the_same_chance() -> None:
    size, rounds, fraction = 1600, 2000, 0.1
    counts = np.zeros(size)
    for round_ in range(1, rounds + 1):
        counts[all_positions(Thinning(size, fraction, key(round_)))] += 1
    expected = rounds * fraction
    assert counts.sum() == rounds * fraction * size
    assert np.max(np.abs(counts - expected)) < 6 * np.sqrt(expected * (1 - fraction))


@settings(max_examples=40, deadline=None)
@given(size=sizes, fraction=fractions, data=st.data())
def test_any_reading_of_a_thinned_update_is_part_of_one_vector(size: int, fraction: float, data: st.DataObject) -> None:
    thinning = Thinning(size, min(fraction, 0.95), key())
    delta = np.random.default_rng(size).normal(size=size).astype(np.float32)
    sent = ThinnedUpdate(ArrayUpdate(delta), thinning)
    whole = np.append(delta, np.zeros(RUN, np.float32))[all_positions(thinning)]
    start = data.draw(st.integers(0, sent.size - 1))
    out = np.empty(data.draw(st.integers(1, sent.size - start)), np.float32)
    sent.read(start, out)
    assert np.array_equal(out, whole[start : start + len(out)])


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam", "fedyogi"])
def test_a_step_moves_what_was_sent_and_nothing_else(kind: str) -> None:
    optimiser = ServerOptimiserSettings(kind=kind, learning_rate=0.5)  # type: ignore[arg-type] # one of the four
    rng = np.random.default_rng(1)
    weights, mean = rng.normal(size=300).astype(np.float32), rng.normal(size=300).astype(np.float32)
    slots = {s: np.full(300, initial_value(optimiser, s), np.float32) for s in state_slots(optimiser.kind)}
    thinning = Thinning(300, 0.3, key())
    positions = thinning.sent(0, 300)
    whole, whole_slots = weights.copy(), {s: v.copy() for s, v in slots.items()}
    apply(optimiser, whole, mean, whole_slots)
    thinned, thinned_slots = weights.copy(), {s: v.copy() for s, v in slots.items()}
    apply_to(optimiser, thinned, mean[positions], thinned_slots, positions)
    left = np.setdiff1d(np.arange(300), positions)
    assert np.array_equal(thinned[positions], whole[positions])
    assert np.array_equal(thinned[left], weights[left])
    for slot in slots:
        assert np.array_equal(thinned_slots[slot][positions], whole_slots[slot][positions])
        assert np.array_equal(thinned_slots[slot][left], slots[slot][left])
