"""The messages, frozen and validated on construction, to and from the exact bytes that are signed.

A message is made once, signed as bytes, and never serialised again: whoever checks it checks the bytes that came.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from sys import intern
from typing import Final, Literal, TypeVar

from consilium.v1 import secure_sum_pb2 as pb
from google.protobuf.message import DecodeError, Message

from security.secure_sum.errors import MalformedMessageError
from security.secure_sum.shares import SHARE_BYTES
from security.secure_sum.spec import Context
from security.signing import SIGNATURE_BYTES

_KEY_BYTES: Final = 32
_DIGEST_BYTES: Final = 32
_BOX_BYTES: Final = 2 * SHARE_BYTES + 16
MAX_PAYLOAD_BYTES: Final = 4 << 20
"""Larger payloads of the secure sum are refused unparsed."""

T = TypeVar("T")


def require(condition: bool, what: str) -> None:
    """Raises MalformedMessageError unless `condition`."""
    if not condition:
        raise MalformedMessageError(f"malformed message: {what}.")


def require_lengths(expected: int, what: str, *values: bytes) -> None:
    """Raises MalformedMessageError unless every value has `expected` bytes."""
    for value in values:  # twelve thousand of them in the keys of a thousand institutions: the text is made when wrong
        if len(value) != expected:
            require(False, f"{what} must have {expected} bytes")


@dataclass(frozen=True)
class Signed:
    """Payload bytes with their signer's name and signature. Not verified by being here."""

    signer: str
    payload: bytes
    signature: bytes

    def to_proto(self) -> pb.SignedMessage:
        """As it travels."""
        return pb.SignedMessage(signer=self.signer, payload=self.payload, signature=self.signature)

    @staticmethod
    def from_proto(message: pb.SignedMessage, payload: bytes = b"") -> Signed:
        """As it came; only its size is checked. `payload`: what is signed where the message leaves its own out.

        Raises:
            MalformedMessageError: larger than any message of the secure sum.
        """
        require(len(message.payload) <= MAX_PAYLOAD_BYTES, "payload too large")
        require(len(message.signature) <= 80, "signature too large")
        return Signed(message.signer, message.payload or payload, message.signature)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the payload."""
        return hashlib.sha256(self.payload).digest()


@dataclass(frozen=True, slots=True)  # each of a thousand institutions holds every part's key of all the others
class PartKey:
    """Public mask key and self-mask commitment of one sender for one part of one sum (rule 4)."""

    sum: str
    part: str
    public_key: bytes
    seed_commitment: bytes

    def __post_init__(self) -> None:
        if len(self.public_key) != _KEY_BYTES or len(self.seed_commitment) != _DIGEST_BYTES:
            require_lengths(_KEY_BYTES, "a mask key", self.public_key)
            require_lengths(_DIGEST_BYTES, "a commitment", self.seed_commitment)


@dataclass(frozen=True, slots=True)
class KeyMessage:
    """Phase 1: all keys of one sender, in plan order."""

    context: Context
    sender: str
    share_key: bytes
    parts: tuple[PartKey, ...]
    graph_commitment: bytes = b""
    """To the value that is revealed where the mask graph is drawn; empty where it is complete."""

    def __post_init__(self) -> None:
        require_lengths(_KEY_BYTES, "a share key", self.share_key)
        if self.graph_commitment:
            require_lengths(_DIGEST_BYTES, "a commitment", self.graph_commitment)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.KeyMessage(
            context=context_to_proto(self.context),
            sender=self.sender,
            share_key=self.share_key,
            parts=[
                pb.PartKey(sum=k.sum, part=k.part, public_key=k.public_key, seed_commitment=k.seed_commitment)
                for k in self.parts
            ],
            graph_commitment=self.graph_commitment,
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> KeyMessage:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.KeyMessage(), payload)
        # One text for a part's name, not one for each institution that names it.
        parts = tuple(PartKey(intern(k.sum), intern(k.part), k.public_key, k.seed_commitment) for k in m.parts)
        return KeyMessage(context_from_proto(m.context), m.sender, m.share_key, parts, m.graph_commitment)


@dataclass(frozen=True, slots=True)
class SealedShare:
    """One dealer's two shares (seed, mask key) of one part for one shareholder, sealed; and commitments to both."""

    sum: str
    part: str
    box: bytes
    seed_share_commitment: bytes
    key_share_commitment: bytes

    def __post_init__(self) -> None:
        require_lengths(_BOX_BYTES, "a sealed share", self.box)
        require_lengths(_DIGEST_BYTES, "a commitment", self.seed_share_commitment, self.key_share_commitment)


@dataclass(frozen=True, slots=True)
class ShareMessage:
    """Phase 2: from one dealer to one shareholder, every part of the dealer in plan order."""

    context: Context
    sender: str
    receiver: str
    keys_digest: bytes
    shares: tuple[SealedShare, ...]

    def __post_init__(self) -> None:
        require_lengths(_DIGEST_BYTES, "a digest", self.keys_digest)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.ShareMessage(
            context=context_to_proto(self.context),
            sender=self.sender,
            receiver=self.receiver,
            keys_digest=self.keys_digest,
            shares=[
                pb.SealedShare(
                    sum=s.sum,
                    part=s.part,
                    box=s.box,
                    seed_share_commitment=s.seed_share_commitment,
                    key_share_commitment=s.key_share_commitment,
                )
                for s in self.shares
            ],
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> ShareMessage:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.ShareMessage(), payload)
        shares = tuple(
            SealedShare(s.sum, s.part, s.box, s.seed_share_commitment, s.key_share_commitment) for s in m.shares
        )
        return ShareMessage(context_from_proto(m.context), m.sender, m.receiver, m.keys_digest, shares)


@dataclass(frozen=True)
class UploadHeader:
    """Opens an upload of `length` bytes (rule 8); where they are ciphertexts, it names their hash."""

    context: Context
    sum: str
    sender: str
    transcript: bytes
    length: int
    content_hash: bytes = b""

    def __post_init__(self) -> None:
        require_lengths(_DIGEST_BYTES, "a transcript", self.transcript)
        require(len(self.content_hash) in (0, _DIGEST_BYTES), "a hash must have 32 bytes")

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.UploadHeader(
            context=context_to_proto(self.context),
            sum=self.sum,
            sender=self.sender,
            transcript=self.transcript,
            length=self.length,
            content_hash=self.content_hash,
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> UploadHeader:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.UploadHeader(), payload)
        return UploadHeader(context_from_proto(m.context), m.sum, m.sender, m.transcript, m.length, m.content_hash)


@dataclass(frozen=True)
class SurvivorList:
    """Phase 4: the partition of the cohort that `threshold` shareholders must sign identically (rule 5).

    Attributes:
        uploads: of each of `alive`, in that order, its signature under its upload's header: it masked for this very
            transcript. Without it, whoever was shown another cohort could be listed as alive, and its masks taken off.
        hashes: encrypted sums only: of each of `alive`, in that order, BLAKE3 of its upload. So the list says exactly
            which ciphertexts may be folded.
    """

    context: Context
    sum: str
    transcript: bytes
    alive: tuple[str, ...]
    gone: tuple[str, ...]
    uploads: tuple[bytes, ...]
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        require_lengths(_DIGEST_BYTES, "a transcript", self.transcript)
        require_lengths(SIGNATURE_BYTES, "an upload's signature", *self.uploads)
        require(len(self.uploads) == len(self.alive), "each of the living has one upload")
        require_lengths(_DIGEST_BYTES, "a hash", *self.hashes)
        require(len(self.hashes) in (0, len(self.alive)), "each of the living has one hash")

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.SurvivorList(
            context=context_to_proto(self.context),
            sum=self.sum,
            transcript=self.transcript,
            alive=self.alive,
            gone=self.gone,
            uploads=self.uploads,
            hashes=self.hashes,
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> SurvivorList:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.SurvivorList(), payload)
        names, proofs = (tuple(m.alive), tuple(m.gone)), (tuple(m.uploads), tuple(m.hashes))
        return SurvivorList(context_from_proto(m.context), m.sum, m.transcript, *names, *proofs)


ShareKind = Literal["seed", "mask-key"]


@dataclass(frozen=True)
class OpenedShare:
    """A shareholder's share of one victim's seed or mask key of one part: never both (rule 5)."""

    victim: str
    part: str
    kind: ShareKind
    share: bytes

    def __post_init__(self) -> None:
        require_lengths(SHARE_BYTES, "a share", self.share)


@dataclass(frozen=True)
class Opening:
    """Phase 5: what one shareholder opens for one signed list."""

    context: Context
    sum: str
    sender: str
    list_digest: bytes
    shares: tuple[OpenedShare, ...]

    def __post_init__(self) -> None:
        require_lengths(_DIGEST_BYTES, "a digest", self.list_digest)

    def encode(self) -> bytes:
        """The payload to sign."""
        return pb.Opening(
            context=context_to_proto(self.context),
            sum=self.sum,
            sender=self.sender,
            list_digest=self.list_digest,
            shares=[
                pb.OpenedShare(victim=s.victim, part=s.part, kind=_KIND_TO_PROTO[s.kind], share=s.share)
                for s in self.shares
            ],
        ).SerializeToString(deterministic=True)

    @staticmethod
    def decode(payload: bytes) -> Opening:
        """Parses a payload.

        Raises:
            MalformedMessageError: it does not parse, or a field cannot be.
        """
        m = parse(pb.Opening(), payload)
        shares: list[OpenedShare] = []
        for s in m.shares:
            kind = _KIND_FROM_PROTO.get(s.kind)
            if kind is None:
                raise MalformedMessageError("malformed message: a share is of a seed or of a mask key.")
            shares.append(OpenedShare(s.victim, s.part, kind, s.share))
        return Opening(context_from_proto(m.context), m.sum, m.sender, m.list_digest, tuple(shares))


_KIND_TO_PROTO: Final[dict[ShareKind, pb.ShareKind.ValueType]] = {
    "seed": pb.SHARE_KIND_SEED,
    "mask-key": pb.SHARE_KIND_MASK_KEY,
}
_KIND_FROM_PROTO: Final[dict[pb.ShareKind.ValueType, ShareKind]] = {value: key for key, value in _KIND_TO_PROTO.items()}

_Proto = TypeVar("_Proto", bound=Message)


def parse(message: _Proto, payload: bytes) -> _Proto:
    """Fills an empty message.

    Raises:
        MalformedMessageError: the bytes are none.
    """
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise MalformedMessageError(f"a {type(message).__name__} does not parse.") from error
    return message


def context_to_proto(context: Context) -> pb.SumContext:
    """As it travels."""
    return pb.SumContext(
        federation=context.federation,
        run=context.run,
        round=context.round,
        attempt=context.attempt,
        opening=context.opening,
    )


def context_from_proto(m: pb.SumContext) -> Context:
    """As it came.

    Raises:
        MalformedMessageError: a field cannot be.
    """
    require_lengths(_DIGEST_BYTES, "a run or opening", m.run, m.opening)
    require(m.attempt >= 1, "attempts count from 1")
    return _context(m.federation, m.run, m.round, m.attempt, m.opening)


@lru_cache(maxsize=64)  # all messages of an attempt have the same one
def _context(federation: str, run: bytes, round_: int, attempt: int, opening: bytes) -> Context:
    return Context(federation, run, round_, attempt, opening)
