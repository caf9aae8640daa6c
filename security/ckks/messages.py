"""The two messages that encrypted sums have beside those of the secure sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blake3 import blake3
from consilium.v1 import secure_sum_pb2 as pb

from security.secure_sum.messages import context_from_proto, context_to_proto, parse, require, require_lengths
from security.secure_sum.spec import Context

MAX_KEY_BYTES: Final = 140_000
"""A public key has 123,474 bytes or so, a secret key half as many."""
BOX_BYTES: Final = 32 + 16


def content_hash(data: bytes | bytearray) -> bytes:
    """BLAKE3, 32 bytes: how content is named where it travels (`federation.content_hash`)."""
    return blake3(data).digest()


@dataclass(frozen=True)
class SealedKey:
    """The key of the sealed secret, for one holder."""

    receiver: str
    box: bytes

    def __post_init__(self) -> None:
        require_lengths(BOX_BYTES, "a sealed key", self.box)


@dataclass(frozen=True)
class EncryptionKey:
    """An attempt's encryption key, by its maker: the public one for all, the secret one for the holders."""

    context: Context
    sender: str
    keys_digest: bytes
    public_key: bytes
    sealed_secret: bytes
    boxes: tuple[SealedKey, ...]

    def __post_init__(self) -> None:
        require_lengths(32, "a digest", self.keys_digest)
        require(0 < len(self.public_key) <= MAX_KEY_BYTES, "an encryption key of impossible size")
        require(0 < len(self.sealed_secret) <= MAX_KEY_BYTES, "a sealed key of impossible size")

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.EncryptionKey(
            context=context_to_proto(self.context),
            sender=self.sender,
            keys_digest=self.keys_digest,
            public_key=self.public_key,
            sealed_secret=self.sealed_secret,
            boxes=[pb.SealedKey(receiver=b.receiver, box=b.box) for b in self.boxes],
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> EncryptionKey:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.EncryptionKey(), payload)
        boxes = tuple(SealedKey(b.receiver, b.box) for b in m.boxes)
        context = context_from_proto(m.context)
        return EncryptionKey(context, m.sender, m.keys_digest, m.public_key, m.sealed_secret, boxes)


@dataclass(frozen=True)
class DecryptedPart:
    """The opened words of one part, little-endian."""

    part: str
    words: bytes


@dataclass(frozen=True)
class Decryption:
    """What one holder of the key decrypted for one signed list."""

    context: Context
    sum: str
    sender: str
    list_digest: bytes
    parts: tuple[DecryptedPart, ...]

    def __post_init__(self) -> None:
        require_lengths(32, "a digest", self.list_digest)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.Decryption(
            context=context_to_proto(self.context),
            sum=self.sum,
            sender=self.sender,
            list_digest=self.list_digest,
            parts=[pb.DecryptedPart(part=p.part, words=p.words) for p in self.parts],
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> Decryption:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.Decryption(), payload)
        parts = tuple(DecryptedPart(p.part, p.words) for p in m.parts)
        return Decryption(context_from_proto(m.context), m.sum, m.sender, m.list_digest, parts)
