"""Who makes an attempt's encryption key, who holds it, and how it reaches them through the coordinator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.ckks.decryptors import DECRYPTIONS
from security.ckks.messages import EncryptionKey, SealedKey
from security.secure_sum import derive
from security.secure_sum.errors import BadShareError, MalformedMessageError, TooFewMembersError, WrongContextError
from security.secure_sum.keys import agree
from security.secure_sum.messages import Signed
from security.secure_sum.spec import Attempt
from security.secure_sum.verify import open_signed, sha256

_NONCE = bytes(12)  # every AEAD key seals one box only


def holders(attempt: Attempt, senders: Iterable[str]) -> tuple[str, ...]:
    """Who holds the attempt's secret key, in order; the first one makes it. `decryptors` says whom of them is asked.

    As few as may be: every holder could read each ciphertext by itself. Two more than the institutions that may drop
    out, so that two are always left, who check each other. In the order of the roster, and from one attempt to the next
    a maker further, so that one who deals no key does not end the round.

    Args:
        attempt: the attempt.
        senders: who sent keys.
    """
    present = [name for name in attempt.roster if name in set(senders)]
    first = (attempt.context.attempt - 1) % len(present)
    return tuple([*present[first:], *present[:first]][: len(attempt.roster) - attempt.threshold + DECRYPTIONS])


def open_offer(attempt: Attempt, signed: Signed | None, keys_digest: bytes, senders: Iterable[str]) -> EncryptionKey:
    """The encryption key in a signed message, if it is this attempt's and by who is to make it.

    Raises:
        TooFewMembersError: there is none: its maker has vanished.
        MalformedMessageError: by another institution, or not sealed to the holders.
        WrongContextError: made for other key messages, or another attempt.
        BadSignatureError, UnknownMemberError: as they say.
    """
    if signed is None:
        raise TooFewMembersError(
            "the attempt has no encryption key: its maker vanished.",
            remedy="The coordinator opens another attempt, in which the next institution of the roster makes it.",
        )
    offer = open_signed(attempt, signed, derive.TAG_ENCRYPTION_KEY, EncryptionKey.decode)
    maker, *others = holders(attempt, senders)
    if offer.sender != maker or [b.receiver for b in offer.boxes] != others:
        raise MalformedMessageError(
            "an encryption key is not by who makes it, or not sealed to its holders.", culprits=(offer.sender,)
        )
    if offer.keys_digest != keys_digest:
        raise WrongContextError("an encryption key was made for other keys than were relayed.", place=offer.sender)
    return offer


def seal(
    attempt: Attempt,
    maker: str,
    keys_digest: bytes,
    pair: tuple[bytes, bytes],
    wrapping: bytes,
    share_key: X25519PrivateKey,
    receivers: Mapping[str, bytes],
) -> EncryptionKey:
    """The message that brings an encryption key to everybody and its secret half to the holders.

    Args:
        attempt: the attempt.
        maker: who made the pair.
        keys_digest: of the relayed key messages.
        pair: public and secret key, as SEAL writes them.
        wrapping: 32 fresh random bytes.
        share_key: the maker's.
        receivers: the other holders, in order, to their public share keys.
    """
    public, secret = pair
    info = _secret_info(attempt, maker, keys_digest, public)
    sealed = AESGCM(derive.derive_key(wrapping, info)).encrypt(_NONCE, secret, info)
    boxes: list[SealedKey] = []
    for receiver, share_public in receivers.items():
        info = _box_info(attempt, maker, receiver, keys_digest, public)
        key = derive.derive_key(agree(share_key, share_public, receiver), info)
        boxes.append(SealedKey(receiver, AESGCM(key).encrypt(_NONCE, wrapping, info)))
    return EncryptionKey(attempt.context, maker, keys_digest, public, sealed, tuple(boxes))


def unseal(
    attempt: Attempt, offer: EncryptionKey, receiver: str, share_key: X25519PrivateKey, maker_share_key: bytes
) -> bytes:
    """The secret key in an offer, for one of its holders.

    Raises:
        BadShareError: it does not open; the maker is named.
    """
    box = next(b.box for b in offer.boxes if b.receiver == receiver)
    info = _box_info(attempt, offer.sender, receiver, offer.keys_digest, offer.public_key)
    key = derive.derive_key(agree(share_key, maker_share_key, offer.sender), info)
    try:
        wrapping = AESGCM(key).decrypt(_NONCE, box, info)
        info = _secret_info(attempt, offer.sender, offer.keys_digest, offer.public_key)
        return AESGCM(derive.derive_key(wrapping, info)).decrypt(_NONCE, offer.sealed_secret, info)
    except InvalidTag:
        raise BadShareError(
            f"the encryption key that {offer.sender!r} sealed does not open.", culprits=(offer.sender,)
        ) from None


def _secret_info(attempt: Attempt, maker: str, keys_digest: bytes, public: bytes) -> bytes:
    return derive.bind("sealed-secret", attempt.context, maker, keys_digest, sha256(public))


def _box_info(attempt: Attempt, maker: str, receiver: str, keys_digest: bytes, public: bytes) -> bytes:
    return derive.bind("sealed-encryption-key", attempt.context, maker, receiver, keys_digest, sha256(public))
