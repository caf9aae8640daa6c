"""What a member holds: the secrets of its attempt, and where it stands in the present sum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.secure_sum.messages import Signed
from security.secure_sum.sealing import HeldShares, PartId, PartSecrets
from security.secure_sum.upload import Upload


@dataclass(repr=False)
class CurrentSum:
    """The sum that is being made."""

    name: str
    transcript: bytes
    upload: Upload | None = None
    signed_payload: bytes | None = None
    signed: Signed | None = None
    opening: Signed | None = None


@dataclass(repr=False)
class Secrets:
    """Everything that is destroyed with the attempt."""

    share_key: X25519PrivateKey
    parts: Mapping[PartId, PartSecrets]
    reveal: bytes
    held: dict[tuple[str, PartId], HeldShares] = field(default_factory=dict)
