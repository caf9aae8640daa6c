"""Adds spooled uploads and takes masks off, chunk by chunk, on every core; constant memory (rule 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np

from security.secure_sum.masks import Masker, word_type
from security.secure_sum.recover import PartOpening

FOLD_CHUNK_BYTES: Final = 1 << 20


class UploadReader(Protocol):
    """Random access to one spooled upload."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` with the bytes from `offset` on."""
        ...


def fold(
    opening: PartOpening,
    uploads: Mapping[str, tuple[UploadReader, int]],
    write: Callable[[memoryview], None],
    threads: int = 2,
) -> None:
    """Writes the opened sum of one part, in order.

    Args:
        opening: from `Aggregator.unmask`.
        uploads: each survivor's upload and the byte offset at which this part begins in it.
        write: takes the sum's bytes, little-endian words, chunk after chunk; must be done with a chunk when it returns.
        threads: chunks in work at a time; memory is `threads` × 3 MiB.
    """
    if opening.words is not None:
        write(memoryview(opening.words))
        return
    dtype = word_type(opening.part.ring)
    size = opening.part.bytes

    def one(start: int) -> bytearray:
        length = min(FOLD_CHUNK_BYTES, size - start)
        total, term = bytearray(length), bytearray(length)
        words, added = np.frombuffer(total, dtype=dtype), np.frombuffer(term, dtype=dtype)
        for name in opening.alive:
            reader, offset = uploads[name]
            reader.read_into(offset + start, memoryview(term))
            np.add(words, added, out=words)
        Masker(opening.keystreams).apply(words, start // dtype.itemsize)
        return total

    with ThreadPoolExecutor(threads) as pool:
        starts = iter(range(0, size, FOLD_CHUNK_BYTES))
        window = [pool.submit(one, start) for _, start in zip(range(threads), starts, strict=False)]
        while window:
            chunk = window.pop(0).result()
            following = next(starts, None)
            if following is not None:
                window.append(pool.submit(one, following))
            write(memoryview(chunk))
