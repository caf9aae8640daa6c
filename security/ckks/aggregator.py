"""The coordinator's side of an attempt with encrypted sums: it relays a key and ciphertexts, and decrypts nothing.

No TenSEAL here: what comes in is checked for who says it, for which list and of what length, and never parsed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from consilium.v1 import secure_sum_pb2 as pb

from security.ckks import decryptors, keys
from security.ckks.messages import Decryption, EncryptionKey
from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
    OutOfPhaseError,
    TooFewMembersError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.journal import JournalledAggregator
from security.secure_sum.messages import Signed, SurvivorList
from security.secure_sum.phases import AggregatorStep
from security.secure_sum.recover import PartOpening
from security.secure_sum.signatures import equivocation
from security.secure_sum.spec import Attempt, Part
from security.secure_sum.verify import open_signed, sha256


def make_aggregator(attempt: Attempt) -> JournalledAggregator:
    """The aggregator that an attempt needs."""
    return (EncryptedAggregator if attempt.encrypted else JournalledAggregator)(attempt)


class EncryptedAggregator(JournalledAggregator):
    """One attempt with encrypted sums at the coordinator; see `Aggregator`."""

    def __init__(self, attempt: Attempt) -> None:
        super().__init__(attempt)
        self._passed: set[tuple[str, str]] = set()  # (sum, holder) that did not answer in time
        self._decrypted: dict[str, dict[str, Decryption]] = {}  # by sum, then holder

    def take_shares(self, sender: str, messages: Iterable[Signed], encryption_key: Signed | None = None) -> None:
        """See `Aggregator`.

        Raises:
            MalformedMessageError: an encryption key by another than who makes it, or none by the maker.
            EquivocationError: another encryption key than before.
        """
        known = self.encryption_key
        if encryption_key is not None:
            if encryption_key.signer != sender:
                raise MalformedMessageError("an encryption key was sent under another's name.", culprits=(sender,))
            if known is None:
                self._after(AggregatorStep.TAKE_SHARES)
                keys.open_offer(self.attempt, encryption_key, self._keys_digest, self.keys)
            elif sender != known.signer:  # the maker's: `open_offer` took no other
                raise MalformedMessageError(
                    f"{sender!r} deals an encryption key that another makes.", culprits=(sender,)
                )
            elif encryption_key.payload != known.payload:
                open_signed(self.attempt, encryption_key, derive.TAG_ENCRYPTION_KEY, EncryptionKey.decode)
                raise equivocation(known, encryption_key)
        elif self.keys and self._holders[0] == sender and known is None:
            raise MalformedMessageError(f"{sender!r} makes the encryption key, and deals none.", culprits=(sender,))
        super().take_shares(sender, messages, encryption_key)
        self.encryption_key = known or encryption_key

    def close_shares(self) -> None:
        """See `Aggregator`.

        Raises:
            TooFewMembersError: who makes the encryption key has vanished; in the next attempt another one makes it.
        """
        self._after(AggregatorStep.CLOSE_SHARES)
        keys.open_offer(self.attempt, self.encryption_key, self._keys_digest, self.keys)
        super().close_shares()

    def _transcript(self, sum_name: str, consumed: bytes) -> bytes:
        assert self.encryption_key is not None
        return super()._transcript(
            sum_name, derive.digest_of("encrypted", (consumed, sha256(self.encryption_key.payload)))
        )

    # -- openings -----------------------------------------------------------------------------------------------

    @property
    def _encrypted(self) -> bool:
        return self.attempt.sum(self.current.name).encrypted

    def asked(self, gone: Set[str] = frozenset()) -> frozenset[str]:
        """See `Aggregator`. Of the holders of the key two, by `decryptors.to_ask`; nobody, where two are not left."""
        if not self._encrypted:
            return super().asked(gone)
        name, answered = self.current.name, self._decrypted.get(self.current.name, {})
        living = [
            h
            for h in self._holders
            if h in answered or (h in self.cohort and h not in gone and (name, h) not in self._passed)
        ]
        return decryptors.to_ask(self.attempt, sha256(self.current.payload), living, answered)

    def pass_on(self, gone: Set[str] = frozenset()) -> bool:
        """See `Aggregator`."""
        if not self._encrypted:
            return super().pass_on(gone)
        if late := self.asked(gone):
            self.pass_over(late)
        return bool(self.asked(gone))

    def pass_over(self, holders: Iterable[str]) -> None:
        """Notes who was asked to decrypt the current sum and did not answer in time.

        Raises:
            OutOfPhaseError: no sum is being decrypted.
            UnknownMemberError: one of them does not hold the key.
        """
        self._after(AggregatorStep.TAKE_OPENING)
        late = sorted(holders)
        if not self._encrypted or not set(late) <= set(self._holders):
            raise UnknownMemberError("somebody is passed over who is not asked to decrypt.")
        self._passed |= {(self.current.name, holder) for holder in late}
        self._note(pb.JournalEntry(passed_over=pb.PassedOver(sum=self.current.name, holders=late)))

    @property
    def passed_over(self) -> Mapping[str, tuple[str, ...]]:
        """See `JournalledAggregator`."""
        return {name: tuple(sorted(h for s, h in self._passed if s == name)) for name in {s for s, _ in self._passed}}

    @property
    def _holders(self) -> tuple[str, ...]:
        return keys.holders(self.attempt, self.keys)

    def shown(self) -> Mapping[str, str]:
        """See `Aggregator`."""
        if not self._encrypted or not self.current.payload:
            return {}
        listed = SurvivorList.decode(self.current.payload)
        return {digest.hex(): name for name, digest in zip(listed.alive, listed.hashes, strict=True)}

    def take_opening(self, signed: Signed, gone: Set[str] = frozenset()) -> None:
        """See `Aggregator`; of an encrypted sum it is a decryption. Two settle it, by `unmask` or by `contradiction`.

        Raises:
            OutOfPhaseError: by a holder that was not asked, or once two have answered: it would decide the sum in the
                place of who is asked.
        """
        if not self._encrypted:
            super().take_opening(signed, gone)
            return
        self._after(AggregatorStep.TAKE_OPENING)
        current, sender = self.current, signed.signer
        known = current.openings.get(sender)
        if known is not None and known.payload == signed.payload:
            return
        message = open_signed(self.attempt, signed, derive.TAG_DECRYPTION, Decryption.decode)
        if sender not in self._holders:
            raise UnknownMemberError(f"{sender!r} does not hold the encryption key.")
        if message.sum != current.name or message.list_digest != sha256(current.payload):
            raise WrongContextError(f"{sender!r} decrypts for another survivor list.", place=sender)
        if known is not None:
            raise equivocation(known, signed)
        late = (current.name, sender) in self._passed and self._answers < decryptors.DECRYPTIONS
        if sender not in self.asked(gone) and not late:
            raise OutOfPhaseError(f"{sender!r} was not asked to decrypt.", remedy="Ask for the next directive.")
        if [(p.part, len(p.words)) for p in message.parts] != [(p.name, p.bytes) for p in self._opened_parts()]:
            raise MalformedMessageError(f"{sender!r} does not decrypt the parts to be opened.", culprits=(sender,))
        self._decrypted.setdefault(current.name, {})[sender] = message
        current.openings[sender] = signed
        left = sorted(gone & set(self._holders))  # whom it depended on that the sender was asked
        self._note(pb.JournalEntry(decryption=pb.TakenDecryption(decryption=signed.to_proto(), left=left)))

    def _opened_parts(self) -> tuple[Part, ...]:
        return self.attempt.opened_parts(self.current.name, self.cohort, self.current.alive)

    @property
    def openable(self) -> bool:
        """See `Aggregator`."""
        if not self._encrypted:
            return super().openable
        return self._answers == decryptors.DECRYPTIONS and self.contradiction is None

    @property
    def contradiction(self) -> decryptors.DecryptionsDifferError | None:
        """See `JournalledAggregator`."""
        return decryptors.contradiction(self._decrypted.get(self.current.name, {}))

    @property
    def _answers(self) -> int:
        return len(self._decrypted.get(self.current.name, {}))

    def unmask(self) -> tuple[PartOpening, ...]:
        """See `Aggregator`: here the sums themselves.

        Raises:
            TooFewMembersError: fewer than two holders have decrypted the fold.
            DecryptionsDifferError: two have, to different words.
        """
        if not self._encrypted:
            return super().unmask()
        self._after(AggregatorStep.TAKE_OPENING)
        if (error := self.contradiction) is not None:
            raise error
        if self._answers < decryptors.DECRYPTIONS:
            raise TooFewMembersError("fewer than two holders of the key have decrypted the fold.", remedy="Wait.")
        decrypted = next(iter(self._decrypted[self.current.name].values()))
        alive = self.current.alive
        return tuple(
            PartOpening(part, tuple(sorted(part.contributors & alive)), (), found.words)
            for part, found in zip(self._opened_parts(), decrypted.parts, strict=True)
        )
