"""What the coordinator checks of encrypted sums: a courtesy, but for what nobody else can see."""

from __future__ import annotations

from dataclasses import replace

from security.ckks.cipher import make_key
from security.ckks.messages import DecryptedPart, Decryption, EncryptionKey
from security.secure_sum import derive
from security.secure_sum.errors import (
    EquivocationError,
    MalformedMessageError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.messages import Signed
from security.secure_sum.verify import sha256
from security.signing import BadSignatureError
from tests.security.ckks.harness import FIVE, EncryptedWorld, dealt, encrypted_attempt, signed, uploaded
from tests.security.secure_sum.harness import World, context, make_attempt
from tests.security.secure_sum.refusals import refuses


class TestCoordinator:
    def test_an_encryption_key_is_taken_from_its_maker_only_and_once(self) -> None:
        world = EncryptedWorld(encrypted_attempt(threshold=4))
        relayed = world.send_keys()
        made = {name: list(world[name].deal(relayed).values()) for name in FIVE}
        key = world["north"].encryption_key
        assert key is not None
        refuses(MalformedMessageError, world.aggregator.take_shares, "north", made["north"], None)
        refuses(MalformedMessageError, world.aggregator.take_shares, "south", made["south"], key)
        offer = EncryptionKey.decode(key.payload)
        foreign = signed("south", derive.TAG_ENCRYPTION_KEY, replace(offer, sender="south").encode())
        refuses(MalformedMessageError, world.aggregator.take_shares, "south", made["south"], foreign)
        world.aggregator.take_shares("north", made["north"], key)
        world.aggregator.take_shares("north", made["north"], key)
        second = signed("north", derive.TAG_ENCRYPTION_KEY, replace(offer, public_key=make_key()[0]).encode())
        refuses(EquivocationError, world.aggregator.take_shares, "north", made["north"], second)
        junk = Signed("south", b"junk", bytes(64))
        for late in (foreign, junk):  # the maker's is there now, and another's is no more welcome than before
            refuses(MalformedMessageError, world.aggregator.take_shares, "south", made["south"], late)
        assert "south" not in world.aggregator.shares

    def test_what_is_repeated_with_other_junk_does_not_grow_the_journal(self) -> None:
        world = dealt()
        machine, size = world.machine, len(world.machine.journal())
        key = machine.encryption_key
        assert key is not None
        for k in range(3):
            again = [replace(each, signature=bytes([k]) * 64) for each in machine.shares["north"].values()]
            machine.take_shares("north", again, replace(key, signature=bytes([k]) * 64))
            shares = list(machine.shares["south"].values())
            refuses(MalformedMessageError, machine.take_shares, "south", shares, Signed("south", bytes([k]), bytes(64)))
            machine.take_shares("south", [replace(each, signature=bytes([k]) * 64) for each in shares])
        assert len(machine.journal()) == size

    def test_a_key_that_no_sum_needs_is_refused(self) -> None:
        key = dealt().aggregator.encryption_key
        world = World(make_attempt())
        relayed = world.send_keys()
        shares = list(world["north"].deal(relayed).values())
        refuses(MalformedMessageError, world.aggregator.take_shares, "north", shares, key)

    def test_only_a_holder_s_decryption_of_this_list_and_these_parts_counts(self) -> None:
        world = uploaded().decide()
        (part,) = world.attempt.sum("A").parts
        digest = sha256(world.lists["A"])
        good = Decryption(world.attempt.context, "A", "north", digest, (DecryptedPart(part.name, bytes(part.bytes)),))
        for lie, kind in (
            (replace(good, sender="west"), UnknownMemberError),
            (replace(good, list_digest=bytes(32)), WrongContextError),
            (replace(good, sum="B"), WrongContextError),
            (replace(good, context=context(round_=7)), WrongContextError),
            (replace(good, parts=()), MalformedMessageError),
            (replace(good, parts=(DecryptedPart(part.name, b"short"),)), MalformedMessageError),
            (replace(good, parts=(DecryptedPart("other", bytes(part.bytes)),)), MalformedMessageError),
        ):
            forged = signed(lie.sender, derive.TAG_DECRYPTION, lie.encode())
            assert "north" in world.aggregator.asked()
            refuses(kind, world.aggregator.take_opening, forged)
        unsigned = Signed("north", good.encode(), bytes(64))
        refuses(BadSignatureError, world.aggregator.take_opening, unsigned)
