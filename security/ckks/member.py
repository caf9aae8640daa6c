"""The institution's side of an attempt in which sums are encrypted. What is masked beside them goes as always.

What the secure sum's rules ask before a list is signed stands unchanged in `Member`: one list per sum, its transcript,
floors, no differencing. Here is what differs: one key for all, ciphertexts for masks, a decryption for shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from security.ckks import keys
from security.ckks.messages import DecryptedPart, Decryption, content_hash
from security.ckks.packing import Pack, packs
from security.errors import ProtocolError
from security.privacy.randomness import Randomness
from security.secure_sum import derive
from security.secure_sum.errors import (
    BadShareError,
    ContradictoryListError,
    MalformedMessageError,
    TamperedKeysError,
)
from security.secure_sum.member import Fetch, Member
from security.secure_sum.member_state import CurrentSum
from security.secure_sum.messages import Signed, SurvivorList, UploadHeader
from security.secure_sum.phases import MemberPhase, MemberStep
from security.secure_sum.spec import Attempt, Part
from security.secure_sum.upload import Upload, WordSource
from security.secure_sum.verify import check_uploads, sha256, upload_lengths
from security.signing import IdentityKey

if TYPE_CHECKING:
    from security.ckks.cipher import PublicKey, SecretKey


class NotAHolderError(ProtocolError):
    """An institution is asked to decrypt, and holds no secret key of the attempt."""

    code = "not-a-holder"


def make_member(attempt: Attempt, name: str, identity: IdentityKey, randomness: Randomness) -> Member:
    """The member that an attempt needs; the arguments are `Member`'s."""
    return (EncryptingMember if attempt.encrypted else Member)(attempt, name, identity, randomness)


class EncryptingMember(Member):
    """One institution in one attempt with encrypted sums; see `Member`."""

    def __init__(self, attempt: Attempt, name: str, identity: IdentityKey, randomness: Randomness) -> None:
        super().__init__(attempt, name, identity, randomness)
        self._made = b""
        self._offer_digest = b""
        self._public: PublicKey | None = None
        self._secret: SecretKey | None = None

    # -- the key ------------------------------------------------------------------------------------------------

    def deal(self, relayed: Sequence[Signed]) -> Mapping[str, Signed]:
        """See `Member`. Whoever makes the attempt's encryption key has it in `encryption_key` afterwards."""
        dealt = super().deal(relayed)
        holders = keys.holders(self.attempt, self._keys)
        if holders[0] == self.name and self.encryption_key is None:
            from security.ckks.cipher import make_key  # loads for a tenth of a second, and only where it is needed

            assert self._secrets is not None
            pair, wrapping = make_key(), self._randomness.bytes(32)
            receivers = {name: self._keys[name].share_key for name in holders[1:]}
            offer = keys.seal(
                self.attempt, self.name, self._keys_digest, pair, wrapping, self._secrets.share_key, receivers
            )
            self.encryption_key, self._made = self._sign(derive.TAG_ENCRYPTION_KEY, offer.encode()), pair[1]
        return dealt

    def accept(self, cohort: Sequence[str], relayed: Sequence[Signed], encryption_key: Signed | None = None) -> None:
        """See `Member`. A holder takes the secret key, and tries whether it belongs to the public one.

        Raises:
            TamperedKeysError: the encryption key is not the one that this institution made.
            BadShareError: the secret key does not open, or does not fit; its maker is named.
            TooFewMembersError, MalformedMessageError, WrongContextError, BadSignatureError: see `keys.open_offer`.
        """
        if self.phase is MemberPhase.ACCEPTED and frozenset(cohort) == self._cohort:
            return
        self._after(MemberStep.ACCEPT)
        public, secret, digest = self._take_key(encryption_key)
        super().accept(cohort, relayed)
        self._public, self._secret, self._offer_digest = public, secret, digest

    def _take_key(self, signed: Signed | None) -> tuple[PublicKey, SecretKey | None, bytes]:
        from security.ckks.cipher import PublicKey, SecretKey, matches

        offer = keys.open_offer(self.attempt, signed, self._keys_digest, self._keys)
        assert signed is not None
        if offer.sender == self.name and (self.encryption_key is None or signed.payload != self.encryption_key.payload):
            raise TamperedKeysError(
                "the relayed encryption key is not the one that this institution made.",
                remedy="The coordinator swapped the key; do not go on with it.",
            )
        public = PublicKey(offer.public_key)
        if self.name not in keys.holders(self.attempt, self._keys):
            return public, None, sha256(signed.payload)
        assert self._secrets is not None
        blob = self._made or keys.unseal(
            self.attempt, offer, self.name, self._secrets.share_key, self._keys[offer.sender].share_key
        )
        secret = SecretKey(blob)
        if not matches(public, secret):
            raise BadShareError(
                f"the two halves of the encryption key of {offer.sender!r} do not fit.", culprits=(offer.sender,)
            )
        return public, secret, sha256(signed.payload)

    def withdraw(self) -> None:
        """See `Member`; the encryption key is forgotten as well."""
        super().withdraw()
        self.encryption_key, self._made, self._public, self._secret = None, b"", None, None

    def _transcript(self, sum_name: str, consumed: bytes) -> bytes:
        # Whoever was shown another key has another transcript: it uploads, signs and opens nothing with us (rule 6).
        return super()._transcript(sum_name, derive.digest_of("encrypted", (consumed, self._offer_digest)))

    # -- encrypted sums -----------------------------------------------------------------------------------------

    def _make_upload(self, current: CurrentSum, parts: Sequence[Part], sources: Mapping[str, WordSource]) -> Upload:
        if not self.attempt.sum(current.name).encrypted:
            return super()._make_upload(current, parts, sources)
        from security.ckks.upload import EncryptedUpload, encrypt_pack

        assert self._public is not None
        data = b"".join(encrypt_pack(pack, sources, self._public) for pack in packs(parts))
        return EncryptedUpload(self._announce(current, len(data), content_hash(data)), data)

    def _check_list(self, payload: bytes, current: CurrentSum) -> SurvivorList:
        listed = super()._check_list(payload, current)
        own = current.upload
        for name, digest in zip(listed.alive, listed.hashes, strict=False):
            if name == self.name and (own is None or UploadHeader.decode(own.header.payload).content_hash != digest):
                raise ContradictoryListError("the list names another upload than this institution's own.")
        return listed

    def _make_opening(self, listed: SurvivorList, list_digest: bytes, fetch: Fetch) -> Signed:
        if not self.attempt.sum(listed.sum).encrypted:
            return super()._make_opening(listed, list_digest, fetch)
        if self._secret is None:
            raise NotAHolderError(
                "this institution is asked to decrypt, and is not one that holds the key.",
                remedy="The coordinator asks out of turn; nothing was opened.",
            )
        alive = frozenset(listed.alive)
        check_uploads(self.attempt, listed, self._cohort, alive)  # whoever is folded signed the hash of its ciphertexts
        parts = self.attempt.opened_parts(listed.sum, self._cohort, alive)
        opening = [pack for pack in packs(self.attempt.sum(listed.sum).parts) if any(p in parts for p in pack.parts)]
        folds, words = self._fold(self._secret, listed, opening, fetch), dict[str, bytes]()
        for pack in opening:
            summed = len(pack.parts[0].contributors & alive)
            words |= pack.cut(self._decrypt(self._secret, pack, folds[pack.name], summed))
        opened = tuple(DecryptedPart(part.name, words[part.name]) for part in parts)
        message = Decryption(self.attempt.context, listed.sum, self.name, list_digest, opened)
        return self._sign(derive.TAG_DECRYPTION, message.encode())

    def _fold(
        self, secret: SecretKey, listed: SurvivorList, opening: Sequence[Pack], fetch: Fetch
    ) -> dict[str, list[Any]]:
        """Adds the listed uploads, one after the other. Nothing of one upload is parsed before its hash is checked."""
        folds: dict[str, list[Any]] = {pack.name: [None] * pack.ciphertexts for pack in opening}
        lengths = upload_lengths(self.attempt, listed.sum, self._cohort)
        for name, digest in zip(listed.alive, listed.hashes, strict=True):
            data = fetch(digest.hex(), lengths.get(name, 0))
            if content_hash(data) != digest:
                raise ContradictoryListError(
                    "the coordinator shows another upload than the signed list names.",
                    remedy="Nothing was decrypted.",
                )
            uploaded = packs(self.attempt.uploaded_parts(listed.sum, self._cohort, name))
            for fold, k, ciphertext in self._parsed(secret, name, data, uploaded, opening):
                folds[fold][k] = secret.add(folds[fold][k], ciphertext)
        return folds

    @staticmethod
    def _parsed(
        secret: SecretKey, name: str, data: bytes | bytearray, uploaded: Sequence[Pack], opening: Sequence[Pack]
    ) -> Iterator[tuple[str, int, Any]]:
        """Pack, position and ciphertext of all of one upload that is folded. What is wrong with it is its sender's."""
        from security.ckks.upload import ciphertexts, frames

        try:
            found = frames(memoryview(data), uploaded)
            for pack in opening:
                scale = pack.code.scale
                for k, blob in enumerate(ciphertexts(found.get(pack.name, memoryview(b"")))):
                    yield pack.name, k, secret.parse(blob, scale)
        except MalformedMessageError as error:
            error.culprits = (name,)  # it signed the hash of these bytes
            raise

    @staticmethod
    def _decrypt(secret: SecretKey, pack: Pack, fold: Sequence[Any], summed: int) -> bytes:
        code, words = pack.code, bytearray()
        for k, total in enumerate(fold):
            length = min(code.words, pack.length - k * code.words)
            words += code.from_slots(secret.decrypt(total), length, summed).tobytes()
        return bytes(words)
