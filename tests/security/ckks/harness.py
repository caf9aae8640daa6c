"""`World` of the secure sum's tests with encrypted sums: the same phases; two holders of the key are asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from security.ckks.aggregator import EncryptedAggregator, make_aggregator
from security.ckks.keys import holders
from security.ckks.member import EncryptingMember, make_member
from security.ckks.messages import DecryptedPart, Decryption, content_hash
from security.ckks.packing import encrypted
from security.privacy.randomness import SeededRandomness
from security.secure_sum import derive
from security.secure_sum.masks import word_type
from security.secure_sum.messages import Signed
from security.secure_sum.spec import Attempt, Sum
from security.secure_sum.verify import sha256
from tests.security.secure_sum.harness import NAMES, World, identity, make_attempt, part

FIVE = NAMES[:5]


def encrypted_attempt(
    names: Sequence[str] = NAMES[:5], *, masked_too: bool = False, sums: Sequence[Sum] = (), **changes: Any
) -> Attempt:
    """An attempt whose sums are encrypted: A and B by default; with `masked_too` only B is, and A is masked."""
    a = Sum("A", (part("encoder/mrna", names),))
    b = Sum("B", (part("loss/mrna", names, ring=64, length=3), part("loss/image", names[:4], length=2)))
    chosen = tuple(sums) or ((a if masked_too else encrypted(a)), encrypted(b))
    return make_attempt(names, sums=chosen, **changes)


@dataclass
class EncryptedWorld(World):
    """One attempt with encrypted sums; see `World`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.machine = self.aggregator = make_aggregator(self.attempt)
        self.fetched: list[tuple[str, str]] = []
        numbers = np.random.default_rng(self.seed)
        for name in self.attempt.roster:
            at = self.attempt.context
            source = SeededRandomness(self.seed, f"{name}/{at.attempt}/{at.round}")
            self.members[name] = make_member(self.attempt, name, identity(name), source)
            for s in self.attempt.sums:
                for p in s.parts:
                    values = np.frombuffer(numbers.bytes(p.bytes), word_type(p.ring)).copy()
                    if name in p.contributors:
                        self.values[name, s.name, p.name] = values

    @property
    def holders(self) -> tuple[str, ...]:
        """Who holds the attempt's key, in order."""
        return holders(self.attempt, self.aggregator.keys)

    def member(self, name: str) -> EncryptingMember:
        """A member, as what it is."""
        found = self[name]
        assert isinstance(found, EncryptingMember)
        return found

    def deal(self, relayed: Sequence[Signed], names: Iterable[str] | None = None) -> None:
        """See `World`."""
        for name in self.deliveries(self.aggregator.keys if names is None else names):
            self.aggregator.take_shares(name, self[name].deal(relayed).values(), self[name].encryption_key)
        self.aggregator.close_shares()

    def accept(self, names: Iterable[str] | None = None) -> None:
        """See `World`."""
        for name in self.deliveries(self.aggregator.cohort if names is None else names):
            self.take(name)

    def take(self, name: str, encryption_key: Signed | None = None) -> None:
        """One institution takes its shares and an encryption key: the attempt's, unless the coordinator lies."""
        key = self.aggregator.encryption_key if encryption_key is None else encryption_key
        self[name].accept(sorted(self.aggregator.cohort), list(self.aggregator.shares_for(name)), key)

    def fetch(self, name: str) -> Any:
        """What one institution downloads with."""
        by_hash = {content_hash(data).hex(): data for data in self.uploads.values()}

        def fetched(digest: str, at_most: int) -> bytes:
            assert len(by_hash[digest]) == at_most
            self.fetched.append((name, digest))
            return by_hash[digest]

        return fetched

    def sign_and_open(self, sum_name: str, signers: Iterable[str], openers: Iterable[str]) -> None:
        """See `World`: whoever is asked opens, if it is among `openers`; if not, the next is asked."""
        if not self.attempt.sum(sum_name).encrypted:
            super().sign_and_open(sum_name, signers, openers)
            return
        for name in self.deliveries(signers):
            self.aggregator.take_signature(self[name].sign(self.aggregator.current.payload))
        self.aggregator.decide()
        there = frozenset(openers)
        while not self.aggregator.openable and (asked := self.aggregator.asked()):
            for name in self.deliveries(asked & there):
                self.open(sum_name, name)
            if not asked & there:
                self.aggregator.pass_on()

    def open(self, sum_name: str, name: str) -> Signed:
        """One institution opens, and the aggregator takes it."""
        opening = self.decryption(name)
        self.openings.setdefault(sum_name, []).append(opening)
        self.aggregator.take_opening(opening)
        return opening

    def decide(self, sum_name: str = "A") -> EncryptedWorld:
        """Everybody signs the list that is shown; holders may be asked to decrypt."""
        for name in self.aggregator.cohort:
            self.aggregator.take_signature(self[name].sign(self.lists[sum_name]))
        self.aggregator.decide()
        return self

    def decryption(self, name: str) -> Signed:
        """What one institution opens, or decrypts, to."""
        return self[name].open(list(self.aggregator.current.signatures.values()), self.fetch(name))

    def lie(self, name: str) -> Signed:
        """A decryption of sum A to zeros, in a holder's own hand."""
        machine = self.aggregator
        zeros = tuple(DecryptedPart(p.name, bytes(p.bytes)) for p in machine.current.parts)
        said = Decryption(self.attempt.context, "A", name, sha256(machine.current.payload), zeros)
        return signed(name, derive.TAG_DECRYPTION, said.encode())

    def transcript(self, sum_name: str, consumed: bytes | None = None) -> bytes:
        """See `World`."""
        assert isinstance(self.aggregator, EncryptedAggregator)
        return self.aggregator._transcript(sum_name, sum_name.encode() if consumed is None else consumed)


def signed(name: str, tag: str, payload: bytes) -> Signed:
    """A payload in the envelope of an institution."""
    return Signed(name, payload, identity(name).sign(tag, payload))


def dealt(**changes: Any) -> EncryptedWorld:
    """Everybody has dealt, of five institutions and threshold 4; nobody has accepted."""
    world = EncryptedWorld(encrypted_attempt(threshold=4, **changes))
    world.deal(world.send_keys())
    return world


def uploaded(**changes: Any) -> EncryptedWorld:
    """Sum A is uploaded by everybody, and its list is shown."""
    world = dealt(**changes)
    world.accept()
    world.upload_all("A")
    return world
