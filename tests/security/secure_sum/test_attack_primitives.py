"""Rule 11: keys of low order, changed boxes and shares that were never committed to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
)
from security.secure_sum.keys import agree
from security.secure_sum.messages import (
    ShareMessage,
)
from tests.security.secure_sum.harness import World, make_attempt
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    keys_of,
    signed,
    with_keys,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")

LOW_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    (2**255 - 20).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


class TestRule11Primitives:
    @pytest.mark.parametrize("key", LOW_ORDER)
    @pytest.mark.parametrize("which", ["share", "mask"])
    def test_low_order_keys_are_refused_where_they_arrive(self, key: bytes, which: str) -> None:
        world = World(make_attempt(SIX))
        message = world[COLLUDER].make_keys()
        first, *rest = keys_of(message).parts
        changes = {"share_key": key} if which == "share" else {"parts": (replace(first, public_key=key), *rest)}
        bad = with_keys(message, **changes)
        error = refuses(MalformedMessageError, world.aggregator.take_keys, bad)
        assert error.culprits == (COLLUDER,)
        relayed = [*(world[n].make_keys() for n in HONEST), bad]
        error = refuses(MalformedMessageError, world.meets("north"), relayed)
        assert error.culprits == (COLLUDER,)

    def test_a_second_encoding_of_another_s_key_is_refused(self) -> None:
        world = World(make_attempt(SIX))
        victim = keys_of(world["south"].make_keys()).share_key
        copied = with_keys(world[COLLUDER].make_keys(), share_key=victim[:31] + bytes([victim[31] | 0x80]))
        refuses(MalformedMessageError, world.aggregator.take_keys, copied)

    def test_a_zero_agreement_is_never_used(self) -> None:
        for key in LOW_ORDER:
            with pytest.raises(MalformedMessageError) as caught:
                agree(X25519PrivateKey.generate(), key, COLLUDER)
            assert caught.value.culprits == (COLLUDER,)

    def test_a_box_that_was_changed_on_the_way_does_not_open(self) -> None:
        """The dealer signs what the coordinator asks; still only the box that was sealed for this pair opens."""
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        world.deal(relayed)
        true = ShareMessage.decode(world.aggregator.shares[COLLUDER]["north"].payload)
        first = true.shares[0]
        flipped = replace(first, box=bytes([first.box[0] ^ 1]) + first.box[1:])
        crossed = replace(first, box=true.shares[1].box)
        for box in (flipped, crossed):
            lie = signed(COLLUDER, derive.TAG_SHARES, replace(true, shares=(box, *true.shares[1:])).encode())
            twin = World(world.attempt, seed=0)
            twin_relayed = twin.send_keys()
            twin.dealt("north", twin_relayed)
            rest = [s for s in world.aggregator.shares_for("north") if s.signer != COLLUDER]
            twin["north"].accept(SIX, [*rest, lie])
            assert [e.culprits for e in twin["north"].complaints] == [(COLLUDER,)]

    def test_a_share_that_is_not_what_was_committed_is_complained_about(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        world.deal(relayed)
        true = ShareMessage.decode(world.aggregator.shares[COLLUDER]["north"].payload)
        first, *rest_of_it = true.shares
        lies = (replace(first, seed_share_commitment=bytes(32)), replace(first, key_share_commitment=bytes(32)))
        for wrong in lies:
            twin = World(world.attempt, seed=0)
            twin.dealt("north", twin.send_keys())
            lie = signed(COLLUDER, derive.TAG_SHARES, replace(true, shares=(wrong, *rest_of_it)).encode())
            rest = [s for s in world.aggregator.shares_for("north") if s.signer != COLLUDER]
            twin["north"].accept(SIX, [*rest, lie])
            assert [e.culprits for e in twin["north"].complaints] == [(COLLUDER,)]

    def test_key_messages_for_other_parts_than_the_plan_s_are_refused(self) -> None:
        world = World(make_attempt(SIX))
        message = world[COLLUDER].make_keys()
        parts = keys_of(message).parts
        for wrong in (parts[:1], parts[::-1], (*parts, replace(parts[0], part="more")), ()):
            bad = with_keys(message, parts=wrong)
            error = refuses(MalformedMessageError, world.aggregator.take_keys, bad)
            assert error.culprits == (COLLUDER,)
