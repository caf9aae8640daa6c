"""An encrypted vector on its way: ciphertexts in frames of one size, made once and kept (rule 8)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from security.ckks.cipher import PublicKey
from security.ckks.encoding import FRAME_BYTES, MAX_CIPHERTEXT_BYTES
from security.ckks.packing import Pack
from security.secure_sum.errors import MalformedMessageError
from security.secure_sum.masks import word_type
from security.secure_sum.messages import Signed
from security.secure_sum.upload import UPLOAD_CHUNK_BYTES, WordSource


class EncryptedUpload:
    """The ciphertexts of one institution for one sum, packs in plan order, and the header that announces them.

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


def encrypt_pack(pack: Pack, sources: Mapping[str, WordSource], key: PublicKey) -> bytes:
    """The frames of one pack.

    Args:
        pack: of the sum.
        sources: the encoded vectors, by part.
        key: of the attempt.
    """
    code, frames = pack.code, bytearray()
    waiting = np.empty(0, word_type(code.ring))
    for part in pack.parts:
        for start in range(0, part.length, code.words):
            words = np.empty(min(code.words, part.length - start), waiting.dtype)
            sources[part.name].fill(start, words)
            waiting = np.concatenate([waiting, words])
            if len(waiting) >= code.words:
                frames += _framed(key.encrypt(code.to_slots(waiting[: code.words]), code.scale))
                waiting = waiting[code.words :]
    if len(waiting):
        frames += _framed(key.encrypt(code.to_slots(waiting), code.scale))
    return bytes(frames)


def _framed(ciphertext: bytes) -> bytes:
    if len(ciphertext) > MAX_CIPHERTEXT_BYTES:
        raise RuntimeError("this build of SEAL compresses ciphertexts less than the frames allow")
    return (len(ciphertext).to_bytes(2, "big") + ciphertext).ljust(FRAME_BYTES, b"\0")


def frames(data: memoryview, uploaded: Iterable[Pack]) -> dict[str, memoryview]:
    """The bytes of each pack in an upload, by the pack's name.

    Raises:
        MalformedMessageError: the upload has not the length of these packs.
    """
    sizes = {pack.name: pack.sent_bytes for pack in uploaded}
    if len(data) != sum(sizes.values()):
        raise MalformedMessageError("an encrypted upload has not the plan's length.")
    found: dict[str, memoryview] = {}
    at = 0
    for name, size in sizes.items():
        found[name] = data[at : at + size]
        at += size
    return found


def ciphertexts(framed: memoryview) -> Iterator[bytes]:
    """The ciphertexts in the frames of one pack."""
    for start in range(0, len(framed), FRAME_BYTES):
        size = int.from_bytes(framed[start : start + 2], "big")
        yield bytes(framed[start + 2 : start + 2 + min(size, MAX_CIPHERTEXT_BYTES)])
