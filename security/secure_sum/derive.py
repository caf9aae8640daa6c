"""The one place that makes domain-separation tags, HKDF infos, commitments and digests of the secure sum.

Every byte string is a sequence of length-prefixed fields that begins with its tag, so that no two purposes, and no two
sequences of fields, ever give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from security.secure_sum.spec import Context

_PREFIX: Final = "consilium/v1/secure-sum/"

TAG_KEYS: Final = _PREFIX + "keys"
TAG_SHARES: Final = _PREFIX + "shares"
TAG_COMPLAINT: Final = _PREFIX + "complaint"
TAG_UPLOAD: Final = _PREFIX + "upload"
TAG_LIST: Final = _PREFIX + "survivor-list"
TAG_OPENING: Final = _PREFIX + "opening"
TAG_ENCRYPTION_KEY: Final = _PREFIX + "encryption-key"
TAG_DECRYPTION: Final = _PREFIX + "decryption"


def encode(*fields: bytes | str | int) -> bytes:
    """Length-prefixed, injective encoding of a sequence of fields."""
    out: list[bytes] = []
    for field in fields:
        if isinstance(field, str):
            data = field.encode()
        else:
            data = field.to_bytes(8, "big") if isinstance(field, int) else field
        out.append(len(data).to_bytes(8, "big"))
        out.append(data)
    return b"".join(out)


@lru_cache(maxsize=256)  # thousands of keys and commitments of an attempt begin alike
def _within(kind: str, context: Context) -> bytes:
    c = context
    return encode(_PREFIX + kind, c.federation, c.run, c.round, c.attempt, c.opening)


def bind(kind: str, context: Context, *fields: bytes | str | int) -> bytes:
    """`kind` within `context`, then `fields`: the info of a key derivation or the associated data of a seal."""
    return _within(kind, context) + encode(*fields)


def derive_key(secret: bytes, info: bytes, *, salt: bytes | None = None) -> bytes:
    """32 bytes of HKDF-SHA256 (RFC 5869)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(secret)


def commitment(kind: str, context: Context, *fields: bytes | str | int) -> bytes:
    """SHA-256 commitment to a secret of at least 128 random bits, the last of `fields`."""
    return hashlib.sha256(bind(kind, context, *fields)).digest()


def digest_of(kind: str, items: Iterable[bytes]) -> bytes:
    """SHA-256 over length-prefixed items."""
    return hashlib.sha256(encode(_PREFIX + kind, *items)).digest()


def transcript(context: Context, keys_digest: bytes, cohort: Iterable[str], sum_name: str, consumed: bytes) -> bytes:
    """What everybody who masks for a sum must have seen alike (rule 6).

    Args:
        context: names the run and, by `opening`, the plan, schema, w(t) and DGB figures.
        keys_digest: of the key messages that were relayed.
        cohort: who dealt shares.
        sum_name: the sum.
        consumed: digest of whatever else this sum's values were computed from: for sum B, w(t+1) and the opened sum A.
    """
    return hashlib.sha256(bind("transcript", context, keys_digest, *sorted(cohort), sum_name, consumed)).digest()
