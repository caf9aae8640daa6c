"""A lying coordinator, and institutions that cheat, against encrypted sums. Nothing opens that should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.ckks import keys
from security.ckks.cipher import PublicKey, SecretKey, make_key
from security.ckks.encoding import FRAME_BYTES, DamagedCiphertextError, SlotCode
from security.ckks.member import NotAHolderError
from security.ckks.messages import Decryption, EncryptionKey, content_hash
from security.ckks.packing import Pack
from security.ckks.upload import EncryptedUpload, ciphertexts, encrypt_pack
from security.secure_sum import derive
from security.secure_sum.errors import (
    BadShareError,
    BelowFloorError,
    ContradictoryListError,
    MalformedMessageError,
    MissingSignaturesError,
    OutOfPhaseError,
    TamperedKeysError,
    TooFewMembersError,
    TranscriptError,
    UnprovenUploadError,
    WrongContextError,
)
from security.secure_sum.keys import agree
from security.secure_sum.messages import Signed, SurvivorList, UploadHeader
from security.secure_sum.upload import ArrayWords
from security.secure_sum.verify import sha256
from security.signing import BadSignatureError
from tests.security.ckks.forged import minus, zero_ciphertext
from tests.security.ckks.harness import FIVE, EncryptedWorld, dealt, encrypted_attempt, signed, uploaded
from tests.security.secure_sum.harness import context, identity
from tests.security.secure_sum.refusals import refuses


def wrapping_key(world: EncryptedWorld, holder: str) -> bytes:
    """The key of the sealed secret, as one holder finds it in its box."""
    offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
    member, made_for = world.member(holder), (offer.keys_digest, offer.public_key)
    assert member._secrets is not None
    shared = agree(member._secrets.share_key, member._keys[offer.sender].share_key, offer.sender)
    info = keys._box_info(world.attempt, offer.sender, holder, *made_for)
    (box,) = (b.box for b in offer.boxes if b.receiver == holder)
    wrapping = AESGCM(derive.derive_key(shared, info)).decrypt(bytes(12), box, info)
    info = keys._secret_info(world.attempt, offer.sender, *made_for)
    secret = AESGCM(derive.derive_key(wrapping, info)).decrypt(bytes(12), offer.sealed_secret, info)
    assert secret == world.member(offer.sender)._made
    return wrapping


def framed(ciphertext: bytes) -> bytes:
    """An upload of one ciphertext."""
    return (len(ciphertext).to_bytes(2, "big") + ciphertext).ljust(FRAME_BYTES, b"\0")


def cheat(world: EncryptedWorld, name: str, data: bytes, sum_name: str = "A") -> None:
    """A dishonest member uploads any bytes, properly announced; everybody else uploads; the list is signed."""
    world.enter(sum_name, FIVE)
    for each in FIVE:
        if each != name:
            world.upload(sum_name, each)
    header = UploadHeader(
        world.attempt.context,
        sum_name,
        name,
        world.transcript(sum_name),
        len(data),
        content_hash(data),
    )
    world.mask(sum_name, name)
    current = world[name]._current
    assert current is not None
    current.upload = EncryptedUpload(signed(name, derive.TAG_UPLOAD, header.encode()), data)
    world.aggregator.take_header(current.upload.header)
    world.uploads[sum_name, name] = data
    world.aggregator.complete_upload(name)
    world.lists[sum_name] = world.aggregator.close_uploads()
    for each in FIVE:
        world.aggregator.take_signature(world[each].sign(world.lists[sum_name]))
    world.aggregator.decide()


class TestKeys:
    def test_a_public_key_swapped_by_the_coordinator_is_refused_by_everybody(self) -> None:
        world = dealt()
        offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
        public, _ = make_key()
        swapped = replace(offer, public_key=public).encode()
        own = replace(offer, public_key=public, sender="south", boxes=()).encode()  # a colluder's own
        for signer, payload in (("south", swapped), ("north", swapped), ("south", own)):
            forged = Signed(signer, payload, identity("south").sign(derive.TAG_ENCRYPTION_KEY, payload))
            for name in FIVE:
                with pytest.raises((BadSignatureError, MalformedMessageError)):
                    world.take(name, forged)

    def test_the_maker_notices_another_key_of_its_own_hand(self) -> None:
        world = dealt()
        other = EncryptedWorld(encrypted_attempt(threshold=4))
        other.deal(other.send_keys())
        refuses(
            TamperedKeysError,
            world["north"].accept,
            sorted(FIVE),
            list(world.aggregator.shares_for("north")),
            other.aggregator.encryption_key,
        )

    def test_a_maker_that_shows_two_keys_makes_two_transcripts_and_nobody_signs(self) -> None:
        world = dealt()
        double = EncryptedWorld(encrypted_attempt(threshold=4))
        double.deal(double.send_keys())
        second = double.aggregator.encryption_key  # the same seeds, so that all but the key pair is the same
        assert second is not None
        world.take("south", second)
        for name in FIVE:
            if name != "south":
                world.take(name)
        world.enter("A", FIVE)
        refuses(TranscriptError, world.aggregator.take_header, world.mask("A", "south").header)
        for name in FIVE:
            if name != "south":
                world.upload("A", name)
        listed = world.aggregator.close_uploads()
        refuses(TranscriptError, world["south"].sign, listed)

    def test_a_secret_key_that_does_not_fit_the_public_one_names_its_maker(self) -> None:
        world = dealt()
        offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
        secrets, member = world.member("north")._secrets, world.member("north")
        assert secrets is not None
        receivers = {name: member._keys[name].share_key for name in world.holders[1:]}
        pair = (offer.public_key, make_key()[1])
        lie = keys.seal(world.attempt, "north", offer.keys_digest, pair, b"w" * 32, secrets.share_key, receivers)
        with pytest.raises(BadShareError) as refused:
            world.take("south", signed("north", derive.TAG_ENCRYPTION_KEY, lie.encode()))
        assert refused.value.culprits == ("north",)

    def test_a_box_for_another_holder_or_another_key_does_not_open(self) -> None:
        world = dealt()
        offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
        for lie in (
            replace(offer, sealed_secret=offer.sealed_secret[:-1] + b"\0"),
            replace(offer, boxes=(replace(offer.boxes[0], box=bytes(48)), *offer.boxes[1:])),
            replace(offer, public_key=make_key()[0]),
        ):
            with pytest.raises(BadShareError) as refused:
                world.take("south", signed("north", derive.TAG_ENCRYPTION_KEY, lie.encode()))
            assert refused.value.culprits == ("north",)

    def test_a_key_of_another_attempt_or_for_other_keys_or_holders_is_refused(self) -> None:
        world = dealt()
        offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
        for lie, kind in (
            (replace(offer, context=context(attempt=2)), WrongContextError),
            (replace(offer, keys_digest=bytes(32)), WrongContextError),
            (replace(offer, boxes=()), MalformedMessageError),
            (
                replace(offer, boxes=(*offer.boxes[:-1], replace(offer.boxes[0], receiver="upper"))),
                MalformedMessageError,
            ),
            (replace(offer, public_key=b"\x5e\xa1\x10 no key"), MalformedMessageError),
        ):
            forged = signed("north", derive.TAG_ENCRYPTION_KEY, lie.encode())
            relayed = list(world.aggregator.shares_for("south"))
            refuses(kind, world["south"].accept, sorted(FIVE), relayed, forged)
        refuses(TooFewMembersError, world["south"].accept, sorted(FIVE), relayed, None)

    def test_only_the_holders_boxes_open_and_the_coordinator_sees_no_secret(self) -> None:
        world = uploaded()
        secret = world.member("north")._made
        assert len(secret) > 60_000
        wrapping = wrapping_key(world, "south")
        everything = [s.payload for s in world.aggregator.keys.values()]
        everything += [s.payload for by in world.aggregator.shares.values() for s in by.values()]
        everything += [world.aggregator.encryption_key.payload, *world.uploads.values()]  # type: ignore[union-attr]
        assert not any(secret[k : k + 32] in data for data in everything for k in range(16, len(secret) - 32, 997))
        assert not any(wrapping in data for data in everything)
        offer = EncryptionKey.decode(world.aggregator.encryption_key.payload)  # type: ignore[union-attr]
        assert [b.receiver for b in offer.boxes] == ["south", "east"]

    def test_keys_are_forgotten_with_the_attempt(self) -> None:
        world = uploaded()
        member = world.member("north")
        member.withdraw()
        assert (member._made, member._secret, member._public, member.encryption_key) == (b"", None, None, None)
        assert "omitted" in repr(member)


class TestLists:
    def test_a_list_below_the_floor_is_not_signed_and_so_not_decrypted(self) -> None:
        world = uploaded()
        listed = SurvivorList.decode(world.lists["A"])
        for alive in (listed.alive[:2], listed.alive[:1]):
            few = replace(
                listed,
                alive=alive,
                gone=tuple(n for n in listed.alive if n not in alive),
                uploads=listed.uploads[: len(alive)],
                hashes=listed.hashes[: len(alive)],
            ).encode()
            for name in FIVE:
                refuses(BelowFloorError, world[name].sign, few)

    def test_one_institution_s_ciphertext_in_the_place_of_all_is_not_decrypted(self) -> None:
        world = uploaded()
        world.sign_and_open("A", FIVE, ())
        victim = world.uploads["A", "east"]
        signatures = list(world.aggregator.current.signatures.values())
        refuses(ContradictoryListError, world["north"].open, signatures, lambda digest, at_most: victim)

    def test_one_upload_listed_for_several_institutions_is_not_signed(self) -> None:
        world = uploaded()
        listed = SurvivorList.decode(world.lists["A"])
        east = listed.alive.index("east")
        doubled = replace(listed, hashes=(listed.hashes[east],) * 5).encode()
        for name in FIVE:
            with pytest.raises((UnprovenUploadError, ContradictoryListError)):
                world[name].sign(doubled)

    def test_a_replayed_ciphertext_of_another_round_is_not_signed_for(self) -> None:
        old = uploaded(at=context(round_=1))
        new = uploaded(at=context(round_=2))
        replayed, listed = SurvivorList.decode(old.lists["A"]), SurvivorList.decode(new.lists["A"])
        east = listed.alive.index("east")

        def with_east(field: tuple[bytes, ...], other: tuple[bytes, ...]) -> tuple[bytes, ...]:
            return (*field[:east], other[east], *field[east + 1 :])

        lie = replace(
            listed,
            uploads=with_east(listed.uploads, replayed.uploads),
            hashes=with_east(listed.hashes, replayed.hashes),
        ).encode()
        for name in ("north", "south"):
            refuses(UnprovenUploadError, new[name].sign, lie)
        refuses(ContradictoryListError, new["east"].sign, lie)

    def test_another_upload_under_a_listed_hash_is_not_parsed(self) -> None:
        world = uploaded()
        world.sign_and_open("A", FIVE, ())
        signatures = list(world.aggregator.current.signatures.values())
        refuses(ContradictoryListError, world["north"].open, signatures, lambda digest, at_most: b"garbage")

    def test_asked_twice_with_another_list_it_decrypts_only_the_signed_one(self) -> None:
        world = uploaded()
        world.sign_and_open("A", FIVE, FIVE)
        opening = next(o for o in world.openings["A"] if o.signer == "north")
        listed = SurvivorList.decode(world.lists["A"])
        other = replace(
            listed, alive=listed.alive[:4], gone=listed.alive[4:], uploads=listed.uploads[:4], hashes=listed.hashes[:4]
        )
        refuses(ContradictoryListError, world["north"].sign, other.encode())
        assert world["north"].open([], world.fetch("north")) == opening
        assert Decryption.decode(opening.payload).list_digest == sha256(world.lists["A"])

    def test_without_enough_signatures_nothing_is_fetched_or_decrypted(self) -> None:
        world = uploaded()
        for name in FIVE:
            world[name].sign(world.lists["A"])
        few = [world[name].sign(world.lists["A"]) for name in FIVE[:3]]
        refuses(MissingSignaturesError, world["north"].open, few, world.fetch("north"))
        assert world.fetched == []

    def test_hashes_are_listed_for_encrypted_sums_and_for_no_others(self) -> None:
        world = uploaded()
        bare = replace(SurvivorList.decode(world.lists["A"]), hashes=()).encode()
        refuses(ContradictoryListError, world["north"].sign, bare)
        mixed = EncryptedWorld(encrypted_attempt(masked_too=True, threshold=4)).ready()
        mixed.upload_all("A")
        listed = SurvivorList.decode(mixed.lists["A"])
        refuses(ContradictoryListError, mixed["north"].sign, replace(listed, hashes=(bytes(32),) * 5).encode())

    def test_who_holds_no_key_is_not_made_to_decrypt(self) -> None:
        world = uploaded()
        world.sign_and_open("A", FIVE, ())
        signatures = list(world.aggregator.current.signatures.values())
        refuses(NotAHolderError, world["west"].open, signatures, world.fetch("west"))


class TestCiphertexts:
    def test_a_ciphertext_of_another_key_opens_nothing(self) -> None:
        world = dealt()
        world.accept()
        other = PublicKey(make_key()[0])
        (part,) = world.attempt.sum("A").parts
        cheat(
            world, "east", encrypt_pack(Pack((part,)), {part.name: ArrayWords(np.zeros(part.length, np.uint32))}, other)
        )
        signatures = list(world.aggregator.current.signatures.values())
        refuses(DamagedCiphertextError, world["north"].open, signatures, world.fetch("north"))

    def test_truncated_and_garbage_ciphertexts_name_who_signed_them(self) -> None:
        good = uploaded().uploads["A", "north"]
        for data in (
            bytes(FRAME_BYTES),
            good[:30_000].ljust(FRAME_BYTES, b"\0"),
            b"\xff" * FRAME_BYTES,
            good[:40] + bytes(100) + good[140:],
        ):
            world = dealt()
            world.accept()
            cheat(world, "east", data)
            signatures = list(world.aggregator.current.signatures.values())
            error = refuses(MalformedMessageError, world["north"].open, signatures, world.fetch("north"))
            assert getattr(error, "culprits", ()) == ("east",)

    def test_nobody_is_named_for_what_another_one_uploaded(self) -> None:
        """East comes first in the fold and North after it; East alone may be named."""
        world = dealt()
        world.accept()
        (part,) = world.attempt.sum("A").parts
        cheat(world, "east", framed(zero_ciphertext(SlotCode.for_part(part).scale, ntt_form=False)))
        signatures = list(world.aggregator.current.signatures.values())
        error = refuses(MalformedMessageError, world["north"].open, signatures, world.fetch("north"))
        assert getattr(error, "culprits", ()) == ("east",)

    def test_minus_another_s_ciphertext_names_nobody(self) -> None:
        world = dealt()
        world.accept()
        (part,) = world.attempt.sum("A").parts
        world.enter("A", FIVE)
        (victim,) = ciphertexts(memoryview(b"".join(world.mask("A", "north").chunks())))
        cheat(world, "east", framed(minus(victim, SecretKey(make_key()[1]), SlotCode.for_part(part).scale)))
        assert SurvivorList.decode(world.lists["A"]).alive[:2] == ("east", "north")
        signatures = list(world.aggregator.current.signatures.values())
        error = refuses(DamagedCiphertextError, world["north"].open, signatures, world.fetch("north"))
        assert getattr(error, "culprits", ()) == ()

    def test_an_upload_of_another_size_or_without_its_hash_is_not_admitted(self) -> None:
        world = dealt()
        world.accept()
        world.enter("A", FIVE)
        own = UploadHeader.decode(world.mask("A", "east").header.payload)
        for lie in (replace(own, length=own.length - 1), replace(own, content_hash=b""), replace(own, sum="B")):
            forged = signed("east", derive.TAG_UPLOAD, lie.encode())
            refuses(OutOfPhaseError if lie.sum == "B" else MalformedMessageError, world.aggregator.take_header, forged)

    def test_under_another_key_the_transcript_is_another_one(self) -> None:
        first, second = uploaded(), uploaded()  # the same seeds: all but the key pair is the same
        assert first.aggregator._keys_digest == second.aggregator._keys_digest
        assert first.aggregator.current.transcript != second.aggregator.current.transcript
