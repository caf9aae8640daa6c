"""Derivations that both machines make alike: mask keys, commitments and the infos of sealed shares (rules 4 to 7)."""

from __future__ import annotations

from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from security.secure_sum import derive
from security.secure_sum.errors import MalformedMessageError
from security.secure_sum.messages import KeyMessage, PartKey
from security.secure_sum.spec import Attempt

_FIELD: Final = 2**255 - 19
_LOW_ORDER: Final = frozenset(
    bytes.fromhex(u)
    for u in (
        "00" * 32,  # order 2, on the curve and on its twist
        "01" + "00" * 31,  # order 4 on the curve
        "ec" + "ff" * 30 + "7f",  # −1: order 4 on the twist
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",  # order 8
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",  # order 8
    )
)
"""Every u-coordinate below 2^255 − 19 of a point whose order divides a cofactor, 8 of the curve or 4 of its twist."""


def agree(private: X25519PrivateKey, public: bytes, peer: str) -> bytes:
    """32 bytes of X25519 (RFC 7748).

    Raises:
        MalformedMessageError: the peer's key is of low order, so that the result would be all zero (rule 11).
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MalformedMessageError(f"{peer!r} sent a key of low order.", culprits=(peer,)) from error


def check_public_key(public: bytes, sender: str) -> None:
    """Refuses what would fail only later, at every honest peer: low order, or a second encoding of another's key.

    Raises:
        MalformedMessageError: the key is of low order, or not below 2^255 − 19; its sender is named.
    """
    if int.from_bytes(public, "little") >= _FIELD:
        raise MalformedMessageError(f"{sender!r} sent a key that is not in its one encoding.", culprits=(sender,))
    if public in _LOW_ORDER:
        raise MalformedMessageError(f"{sender!r} sent a key of low order.", culprits=(sender,))


def mask_private_key(attempt: Attempt, sum_name: str, part: str, owner: str, secret: bytes) -> X25519PrivateKey:
    """The mask key of one part of one sum, from the 128-bit secret that is shared."""
    info = derive.bind("mask-private-key", attempt.context, sum_name, part, owner)
    return X25519PrivateKey.from_private_bytes(derive.derive_key(secret, info))


def seed_commitment(attempt: Attempt, sum_name: str, part: str, owner: str, seed: bytes) -> bytes:
    """Commits to the seed of a self-mask; the seed's 128 random bits hide it."""
    return derive.commitment("seed", attempt.context, sum_name, part, owner, seed)


def share_commitment(
    attempt: Attempt,
    kind: Literal["seed", "mask-key"],
    sum_name: str,
    part: str,
    dealer: str,
    shareholder: str,
    share: bytes,
) -> bytes:
    """Commits the dealer to one share, so that a shareholder that opens another one is named without doubt."""
    return derive.commitment(f"{kind}-share", attempt.context, sum_name, part, dealer, shareholder, share)


def seal_info(attempt: Attempt, sender: str, receiver: str, agreed: bytes) -> bytes:
    """Info of the key that seals one dealer's shares for one shareholder (rule 7)."""
    return derive.bind("seal", attempt.context, sender, receiver, agreed)


def share_info(attempt: Attempt, sum_name: str, part: str, sender: str, receiver: str, keys_digest: bytes) -> bytes:
    """Associated data of a sealed share (rule 7)."""
    return derive.bind("sealed-share", attempt.context, sum_name, part, sender, receiver, keys_digest)


def self_mask_key(attempt: Attempt, sum_name: str, part: str, owner: str, seed: bytes, transcript: bytes) -> bytes:
    """AES key of the self-mask of one institution for one part of one sum."""
    return derive.derive_key(seed, derive.bind("self-mask", attempt.context, sum_name, part, owner, transcript))


def pair_mask_key(
    attempt: Attempt,
    sum_name: str,
    part: str,
    owner: str,
    private: X25519PrivateKey,
    peer: str,
    public: bytes,
    transcript: bytes,
) -> bytes:
    """AES key of the mask that `owner` and `peer` share for one part of one sum; the same from either side.

    The transcript is in the info: institutions that were shown different things make masks that do not cancel (rule 6).
    """
    low, high = sorted((owner, peer))
    info = derive.bind("pair-mask", attempt.context, sum_name, part, low, high, transcript)
    return derive.derive_key(agree(private, public, peer), info)


def part_key(message: KeyMessage, sum_name: str, part: str) -> PartKey:
    """The keys that a message announces for one part. The message was checked, so they are there."""
    for key in message.parts:
        if (key.sum, key.part) == (sum_name, part):
            return key
    raise KeyError((sum_name, part))


def pair_sign(owner: str, peer: str) -> Literal[1, -1]:
    """+1 for the one who adds the pair's mask, −1 for the one who subtracts it."""
    return 1 if owner < peer else -1
