"""How much room a round is said to take."""

from __future__ import annotations

from coordinator.room import room_of
from coordinator.state import RunState
from security.ckks.packing import encrypted
from security.secure_sum.spec import Part, Sum


def test_an_encrypted_sum_takes_the_room_of_its_ciphertexts() -> None:
    three = frozenset({"a", "b", "c"})
    masked = Sum("statistics", (Part("losses/x", 64, 1000, three), Part("losses/y", 64, 10, three)))
    sent = encrypted(masked)
    assert room_of([masked], RunState()) == (3 + 1) * 8 * 1010
    ciphertexts = sum(part.sent_bytes for part in sent.parts)
    assert ciphertexts > 7 * 8 * 1010
    assert room_of([sent], RunState()) == 3 * ciphertexts + 8 * 1010
