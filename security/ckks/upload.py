"""An encrypted vector on its way: ciphertexts in frames of one size, made once and kept (rule 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from security.ckks.cipher import PublicKey
from security.ckks.encoding import FRAME_BYTES, MAX_CIPHERTEXT_BYTES, SlotCode
from security.secure_sum.errors import MalformedMessageError
from security.secure_sum.masks import word_type
from security.secure_sum.messages import Signed
from security.secure_sum.spec import Part
from security.secure_sum.upload import UPLOAD_CHUNK_BYTES, WordSource


class EncryptedUpload:
    """The ciphertexts of one institution for one sum, parts in plan order, and the header that announces them.

    Attributes:
        header: signed, with the hash of all bytes.
        length: bytes in all.
    """

    def __init__(self, header: Signed, data: bytes) -> None:
        self.header = header
        self.length = len(data)
        self._data = data

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """The bytes from `offset` on, in chunks of at most 1 MiB. Every call gives the same bytes."""
        for start in range(offset, self.length, UPLOAD_CHUNK_BYTES):
            yield self._data[start : start + UPLOAD_CHUNK_BYTES]


def encrypt_part(part: Part, source: WordSource, key: PublicKey) -> bytes:
    """The frames of one part."""
    code = SlotCode.for_part(part)
    frames = bytearray()
    for start in range(0, part.length, code.words):
        words = np.empty(min(code.words, part.length - start), word_type(part.ring))
        source.fill(start, words)
        frames += _framed(key.encrypt(code.to_slots(words), code.scale))
    return bytes(frames)


def _framed(ciphertext: bytes) -> bytes:
    if len(ciphertext) > MAX_CIPHERTEXT_BYTES:
        raise RuntimeError("this build of SEAL compresses ciphertexts less than the frames allow")
    return (len(ciphertext).to_bytes(2, "big") + ciphertext).ljust(FRAME_BYTES, b"\0")


def frames(data: memoryview, parts: Sequence[Part]) -> dict[str, memoryview]:
    """The bytes of each part in an upload.

    Raises:
        MalformedMessageError: the upload has not the length of these parts.
    """
    if len(data) != sum(p.ciphertext_bytes for p in parts):
        raise MalformedMessageError("an encrypted upload has not the plan's length.")
    found: dict[str, memoryview] = {}
    at = 0
    for part in parts:
        found[part.name] = data[at : at + part.ciphertext_bytes]
        at += part.ciphertext_bytes
    return found


def ciphertexts(framed: memoryview) -> Iterator[bytes]:
    """The ciphertexts in the frames of one part."""
    for start in range(0, len(framed), FRAME_BYTES):
        size = int.from_bytes(framed[start : start + 2], "big")
        yield bytes(framed[start + 2 : start + 2 + min(size, MAX_CIPHERTEXT_BYTES)])
