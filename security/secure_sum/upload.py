"""A masked vector on its way: bytes made on demand, by position, from words that do not change (rules 3 and 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from security.secure_sum.errors import MemberMisuseError
from security.secure_sum.masks import Masker, Words, word_type
from security.secure_sum.messages import Signed
from security.secure_sum.spec import Part

UPLOAD_CHUNK_BYTES: Final = 1 << 20


class WordSource(Protocol):
    """The encoded vector of one part. The same words at every call: a second vector under one mask reveals both."""

    def fill(self, start: int, out: Words) -> None:
        """Writes words `start` to `start + len(out)` of the vector into `out`."""
        ...


class ArrayWords:
    """Words that are already there. They are made read-only."""

    def __init__(self, words: Words) -> None:
        self._words = words
        words.setflags(write=False)

    def __len__(self) -> int:
        return len(self._words)

    def fill(self, start: int, out: Words) -> None:
        """Copies the words.

        Raises:
            MemberMisuseError: the vector is too short or of another type; numpy would repeat or round instead.
        """
        words = self._words[start : start + len(out)]
        if words.shape != out.shape or words.dtype != out.dtype:
            raise MemberMisuseError("the encoded vector has not the part's length and ring.")
        out[:] = words


@dataclass(frozen=True)
class Segment:
    """One part of an upload with its source and its masks."""

    part: Part
    source: WordSource
    masker: Masker


class Upload(Protocol):
    """The bytes of one institution for one sum, whatever keeps them shut, and the header that announces them."""

    @property
    def header(self) -> Signed:
        """Signed; travels before the bytes."""
        ...

    @property
    def length(self) -> int:
        """Bytes in all."""
        ...

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """The bytes from `offset` on, in chunks of at most 1 MiB. Every call gives the same bytes."""
        ...


class MaskedUpload:
    """The masked bytes of one institution for one sum, parts in plan order, and the header that announces them.

    Attributes:
        header: signed; travels before the bytes.
        length: bytes in all.
    """

    def __init__(self, header: Signed, segments: Sequence[Segment]) -> None:
        self.header = header
        self.length = sum(s.part.bytes for s in segments)
        self._segments = tuple(segments)

    def __repr__(self) -> str:
        return f"MaskedUpload({self.length} bytes, masks omitted)"

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """The masked bytes from `offset` on, in chunks of at most 1 MiB. Every call gives the same bytes."""
        base = 0
        buffer = np.empty(UPLOAD_CHUNK_BYTES, dtype=np.uint8)
        for segment in self._segments:
            size = segment.part.bytes
            if offset < base + size:
                # The grid of chunks is fixed, so that a resumed upload addresses the keystream at whole blocks.
                first = max(0, offset - base) // UPLOAD_CHUNK_BYTES * UPLOAD_CHUNK_BYTES
                for start in range(first, size, UPLOAD_CHUNK_BYTES):
                    yield self._chunk(segment, start, min(UPLOAD_CHUNK_BYTES, size - start), buffer, offset - base)
            base += size

    @staticmethod
    def _chunk(segment: Segment, start: int, size: int, buffer: Words, offset: int) -> bytes:
        dtype = word_type(segment.part.ring)
        words = buffer[:size].view(dtype)
        position = start // dtype.itemsize
        segment.source.fill(position, words)
        segment.masker.apply(words, position)
        return buffer[max(0, offset - start) : size].tobytes()
