"""Random bits addressed by position: the same ones at every reading, so that what is made from them is too."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

_BLOCK: Final = 16
_WORD: Final = 2


class PositionedBits:
    """An AES-256-CTR keystream, read as 16-bit words from any position. Safe in any thread: a reading leaves no state.

    Args:
        key: 32 bytes, uniform and used for nothing else.
    """

    def __init__(self, key: bytes) -> None:
        self._key = AES(key)

    def __repr__(self) -> str:
        return "PositionedBits(key omitted)"

    def words(self, start: int, count: int) -> npt.NDArray[np.uint16]:
        """uint16[count], uniform: words `start` to `start + count` of the stream."""
        block, skipped = divmod(_WORD * start, _BLOCK)
        size = skipped + _WORD * count
        # `update_into` of some releases wants room for one block more than it writes.
        stream = np.empty((size + _BLOCK) // _WORD, np.dtype("<u2"))
        cipher = Cipher(self._key, CTR(block.to_bytes(_BLOCK, "big")))
        cipher.encryptor().update_into(bytes(size), stream.data.cast("B"))
        return stream[skipped // _WORD : size // _WORD]
