"""Shamir sharing of 128-bit secrets over the prime field of 2^128 + 51.

The library `shamirs` deals the shares: a mistake there would give secrets away. Its coefficients are its own draw from
the operating system; no sum depends on them. Recombination is ours, since every sum needs dozens with the same
x-coordinates and their Lagrange coefficients are computed once: what it gives is always checked against the dealer's
commitment or public key, so a mistake there would open nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import shamirs

SECRET_BYTES: Final = 16
SHARE_BYTES: Final = 17
PRIME: Final = 2**128 + 51
"""The smallest prime above every secret."""


def split(secret: bytes, threshold: int, members: int) -> tuple[bytes, ...]:
    """Shares of `secret` for x = 1 … members; any `threshold` of them give it back, fewer say nothing.

    Args:
        secret: 16 bytes.
        threshold: 2 to members.
        members: number of shares.

    Returns:
        17-byte shares, the one for x = i + 1 at index i.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError("a shared secret has 16 bytes")
    dealt = shamirs.shares(int.from_bytes(secret, "big"), members, modulus=PRIME, threshold=threshold, compact=True)
    return tuple(share.value.to_bytes(SHARE_BYTES, "big") for share in dealt)


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly `threshold` shares, keyed by x. Wrong shares give a wrong secret, not an error."""
    weights = _lagrange_at_zero(tuple(sorted(shares)))
    value = sum(int.from_bytes(shares[x], "big") * weight for x, weight in weights) % PRIME
    return (value % 2**128).to_bytes(SECRET_BYTES, "big")


@lru_cache(maxsize=256)
def _lagrange_at_zero(xs: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """(x, λ_x) with Σ λ_x f(x) = f(0) for every polynomial f of degree below len(xs)."""
    weights: list[tuple[int, int]] = []
    for x in xs:
        numerator, denominator = 1, 1
        for other in xs:
            if other != x:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - x) % PRIME
        weights.append((x, numerator * pow(denominator, -1, PRIME) % PRIME))
    return tuple(weights)
