"""How much room a round is said to take."""

from __future__ import annotations

from coordinator.room import room_of
from coordinator.state import RunState
from federation.rounds import ComponentDigests
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


def test_the_next_model_takes_the_room_of_the_uploads_and_more_only_where_it_is_larger() -> None:
    two = frozenset({"a", "b"})
    updates = Sum("updates", (Part("encoder/x", 32, 1000, two),))
    for slots, vectors in (((), 2), (("momentum",), 2), (("m", "v"), 3)):
        state = RunState(components={"encoder/x": ComponentDigests("w", dict.fromkeys(slots, "s"))})
        assert room_of([updates], state) == (1 + vectors) * 4 * 1000
