"""Masks: AES-256-CTR keystreams, addressable by position, added to words in chunks (rule 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from security.secure_sum.spec import Ring

CHUNK_BYTES: Final = 1 << 18
"""What is expanded at once: small enough to stay in a core's cache between keystream, addition and hash."""

_ZEROS: Final = bytes(CHUNK_BYTES)
_AES_BLOCK: Final = 16

Words = npt.NDArray[Any]
"""uint16, uint32 or uint64 words of a ring."""


class SignedKey(NamedTuple):
    """A keystream to add (+1) or to subtract (−1)."""

    sign: Literal[1, -1]
    key: bytes


def word_type(ring: Ring) -> np.dtype[Any]:
    """Little-endian unsigned words of a ring."""
    return np.dtype(f"<u{ring // 8}")


class Masker:
    """Adds a fixed set of keystreams to words, chunk by chunk, through one scratch buffer.

    Args:
        keys: 32-byte AES keys, each used for one vector of one institution only: the counter starts at zero.
    """

    def __init__(self, keys: Sequence[SignedKey]) -> None:
        self._keys = tuple(keys)
        # `update_into` of some releases wants room for one block more than it writes.
        self._scratch = bytearray(CHUNK_BYTES + _AES_BLOCK)

    def __repr__(self) -> str:
        return f"Masker({len(self._keys)} keys omitted)"

    def apply(self, words: Words, position: int) -> None:
        """Adds every keystream to `words` in place, modulo the ring.

        Args:
            words: uint16[n], uint32[n] or uint64[n], any n.
            position: index of words[0] in the whole vector; its byte offset must be a multiple of 16.
        """
        offset = position * words.itemsize
        if offset % _AES_BLOCK:
            raise ValueError("masks are addressed in blocks of 16 bytes")
        ciphers = [(sign, _keystream(key, offset // _AES_BLOCK)) for sign, key in self._keys]
        step = CHUNK_BYTES // words.itemsize
        for start in range(0, len(words), step):
            chunk = words[start : start + step]
            size = chunk.nbytes
            view = memoryview(self._scratch)
            stream = np.frombuffer(self._scratch, dtype=words.dtype, count=len(chunk))
            for sign, cipher in ciphers:
                cipher.update_into(_ZEROS if size == CHUNK_BYTES else _ZEROS[:size], view)
                if sign > 0:
                    np.add(chunk, stream, out=chunk)
                else:
                    np.subtract(chunk, stream, out=chunk)


def _keystream(key: bytes, block: int) -> Any:
    """A CTR encryptor whose first output is block number `block` of the key's stream."""
    return Cipher(AES(key), CTR(block.to_bytes(16, "big"))).encryptor()
