"""Shamir sharing of 128-bit secrets, by PyCryptodome (GF(2^128), the `ssss` scheme).

The polynomial's coefficients are the library's own draw from the operating system: no sum depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from Crypto.Protocol.SecretSharing import Shamir

SECRET_BYTES: Final = 16


def split(secret: bytes, threshold: int, members: int) -> tuple[bytes, ...]:
    """Shares of `secret` for x = 1 … members; any `threshold` of them give it back, fewer say nothing.

    Args:
        secret: 16 bytes.
        threshold: 2 to members.
        members: number of shares.

    Returns:
        16-byte shares, the one for x = i + 1 at index i.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError("a shared secret has 16 bytes")
    return tuple(share for _, share in Shamir.split(threshold, members, secret))


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly `threshold` shares, keyed by x. Wrong shares give a wrong secret, not an error."""
    return bytes(Shamir.combine(list(shares.items())))
