"""Words of a ring in the slots of a ciphertext: exact for any number of members, and damage is seen."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.ckks.encoding import FRAME_BYTES, NOISE, SLOTS, DamagedCiphertextError, SlotCode
from security.ckks.packing import encrypted
from security.errors import ConfigurationError
from security.secure_sum.masks import word_type
from security.secure_sum.spec import Part, Ring, Sum

RINGS: tuple[Ring, ...] = (16, 32, 64)


def words_of(ring: Ring, length: int, seed: int) -> npt.NDArray[np.generic]:
    return np.frombuffer(np.random.default_rng(seed).bytes(length * ring // 8), word_type(ring)).copy()


@settings(max_examples=60, deadline=None)
@given(ring=st.sampled_from(RINGS), members=st.integers(1, 300), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_sums_under_the_worst_noise_that_is_tolerated_come_back_bit_for_bit(
    ring: Ring, members: int, share: float, seed: int
) -> None:
    code = SlotCode.of(ring, members)
    rng = np.random.default_rng(seed)
    summed, length = 1 + int(share * (members - 1)), int(rng.integers(1, code.words + 1))
    vectors = [words_of(ring, length, seed + k) for k in range(summed)]
    vectors[0][:] = 0 if seed % 2 else 2**ring - 1  # both ends of the range
    noise = rng.uniform(-0.374, 0.374, SLOTS)
    slots = np.sum([code.to_slots(v) for v in vectors], axis=0) + noise
    expected = np.sum(vectors, axis=0, dtype=word_type(ring))
    assert code.from_slots(slots, length, summed).tobytes() == expected.tobytes()


@given(ring=st.sampled_from(RINGS), members=st.integers(1, 2000))
def test_no_sum_can_leave_the_modulus_and_noise_stays_far_below_a_unit(ring: Ring, members: int) -> None:
    code = SlotCode.of(ring, members)
    assert members * 2 ** (code.bits - 1) * code.scale <= 2**52
    assert 12 * NOISE * math.sqrt(members) <= 0.375 * code.scale
    assert code.digits * code.bits >= ring
    assert code.words * code.digits <= SLOTS


def test_up_to_16_members_a_32_bit_word_takes_one_slot_and_a_64_bit_word_two() -> None:
    assert [SlotCode.of(32, n).digits for n in (3, 9, 16, 17)] == [1, 1, 1, 2]
    assert [SlotCode.of(64, n).digits for n in (3, 9, 16, 17)] == [2, 2, 2, 3]


DAMAGE = {
    "a half": lambda s: s + np.where(np.arange(SLOTS) == 7, 0.4, 0.0),
    "padding that is not zero": lambda s: s + np.where(np.arange(SLOTS) == SLOTS - 1, 3.0, 0.0),
    "a digit above what so many can add up to": lambda s: s + np.where(np.arange(SLOTS) == 0, 2.0**34, 0.0),
    "a digit below": lambda s: s - np.where(np.arange(SLOTS) == 0, 2.0**33, 0.0),
    "not a number": lambda s: np.where(np.arange(SLOTS) == 3, np.nan, s),
    "another key": lambda s: np.random.default_rng(1).uniform(-(2.0**36), 2.0**36, SLOTS),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_no_honest_fold_gives_is_refused(damage: object) -> None:
    code = SlotCode.of(32, 3)
    slots = 3 * code.to_slots(np.arange(50, dtype=np.uint32))
    assert code.from_slots(slots, 50, 3).tolist() == [3 * k for k in range(50)]
    with pytest.raises(DamagedCiphertextError, match="whole numbers"):
        code.from_slots(damage(slots), 50, 3)  # type: ignore[operator]


def test_what_travels_follows_from_the_plan() -> None:
    nine = frozenset(f"i{k}" for k in range(9))
    which = encrypted(Sum("A", (Part("small", 32, 1, nine), Part("large", 64, 1025, nine))))
    assert [p.sent_bytes for p in which.parts] == [FRAME_BYTES, 2 * FRAME_BYTES]
    assert [p.bytes for p in which.parts] == [4, 8 * 1025]
    assert which.encrypted


def test_a_sum_is_encrypted_whole_or_not_at_all() -> None:
    nine = frozenset(f"i{k}" for k in range(9))
    (one,) = encrypted(Sum("A", (Part("small", 32, 1, nine),))).parts
    with pytest.raises(ConfigurationError, match="in part"):
        Sum("A", (one, Part("large", 64, 1025, nine)))
