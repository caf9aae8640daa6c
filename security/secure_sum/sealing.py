"""Shares on their way from a dealer to its shareholders: split, sealed to each, committed to (rules 5 and 7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.secure_sum import derive, shares
from security.secure_sum.errors import BadShareError, MalformedMessageError
from security.secure_sum.graph import Graph
from security.secure_sum.keys import agree, seal_info, share_commitment, share_info
from security.secure_sum.messages import KeyMessage, SealedShare, ShareMessage
from security.secure_sum.spec import Attempt

PartId = tuple[str, str]
"""(sum, part)."""


def _nonce(place: int) -> bytes:
    """Of the box at this place: a key seals one dealer's boxes for one shareholder, once, in plan order."""
    return place.to_bytes(12, "big")


@dataclass(frozen=True, repr=False)
class PartSecrets:
    """What one part of one sum hangs on: never used for another (rule 4)."""

    seed: bytes
    mask_secret: bytes
    mask_key: X25519PrivateKey


@dataclass(frozen=True, repr=False)
class HeldShares:
    """One shareholder's shares of one part's seed and mask key."""

    seed: bytes
    mask_key: bytes


def deal_shares(
    attempt: Attempt,
    dealer: str,
    share_key: X25519PrivateKey,
    parts: Mapping[PartId, PartSecrets],
    keys: Mapping[str, KeyMessage],
    graph: Graph,
    agreed: bytes,
) -> tuple[list[ShareMessage], dict[tuple[str, PartId], HeldShares]]:
    """Splits every secret among the dealer's shareholders.

    Args:
        attempt: the attempt.
        dealer: whose secrets they are.
        share_key: its key for sealing.
        parts: its secrets.
        keys: everybody's key messages, those of the shareholders checked.
        graph: says who the shareholders are.
        agreed: digest of what the graph follows from; bound into every box.

    Returns:
        A message to each shareholder but the dealer; and what the dealer holds of its own secrets, where it is its own
        shareholder.
    """
    n, t = graph.shares, attempt.share_threshold
    split = {part: (shares.split(s.seed, t, n), shares.split(s.mask_secret, t, n)) for part, s in parts.items()}
    messages: list[ShareMessage] = []
    held: dict[tuple[str, PartId], HeldShares] = {}
    for receiver, x in graph.shareholders(dealer).items():
        at = x - 1
        if receiver == dealer:
            held = {(dealer, part): HeldShares(seeds[at], secrets[at]) for part, (seeds, secrets) in split.items()}
            continue
        shared = agree(share_key, keys[receiver].share_key, receiver)
        seal = AESGCM(derive.derive_key(shared, seal_info(attempt, dealer, receiver, agreed)))
        sealed: list[SealedShare] = []
        for place, ((sum_name, part), (seeds, secrets)) in enumerate(split.items()):
            info = share_info(attempt, sum_name, part, dealer, receiver, agreed)
            box = seal.encrypt(_nonce(place), seeds[at] + secrets[at], info)
            sealed.append(
                SealedShare(
                    sum_name,
                    part,
                    box,
                    share_commitment(attempt, "seed", sum_name, part, dealer, receiver, seeds[at]),
                    share_commitment(attempt, "mask-key", sum_name, part, dealer, receiver, secrets[at]),
                )
            )
        messages.append(ShareMessage(attempt.context, dealer, receiver, agreed, tuple(sealed)))
    return messages, held


def open_boxes(
    attempt: Attempt, receiver: str, share_key: X25519PrivateKey, dealer_key: bytes, message: ShareMessage
) -> dict[tuple[str, PartId], HeldShares]:
    """The shares that one dealer sealed to `receiver`.

    Raises:
        MalformedMessageError: not the dealer's parts in plan order, or a key of low order.
        BadShareError: a box does not open, or holds what was not committed to.
    """
    dealer = message.sender
    expected = [(s, p.name) for s, p in attempt.keyed_parts(dealer)] if attempt.masked else []
    if [(s.sum, s.part) for s in message.shares] != expected:
        raise MalformedMessageError(f"{dealer!r} did not deal its parts in plan order.", culprits=(dealer,))
    shared = agree(share_key, dealer_key, dealer)
    seal = AESGCM(derive.derive_key(shared, seal_info(attempt, dealer, receiver, message.keys_digest)))
    held: dict[tuple[str, PartId], HeldShares] = {}
    for place, s in enumerate(message.shares):
        info = share_info(attempt, s.sum, s.part, dealer, receiver, message.keys_digest)
        try:
            opened = seal.decrypt(_nonce(place), s.box, info)
        except InvalidTag:
            raise BadShareError(f"a share of {dealer!r} does not open.", culprits=(dealer,)) from None
        seed, mask_key = opened[: shares.SHARE_BYTES], opened[shares.SHARE_BYTES :]
        commitments = (
            share_commitment(attempt, "seed", s.sum, s.part, dealer, receiver, seed),
            share_commitment(attempt, "mask-key", s.sum, s.part, dealer, receiver, mask_key),
        )
        if commitments != (s.seed_share_commitment, s.key_share_commitment):
            raise BadShareError(f"a share of {dealer!r} is not what it committed to.", culprits=(dealer,))
        held[dealer, (s.sum, s.part)] = HeldShares(seed, mask_key)
    return held
