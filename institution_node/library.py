"""Content by digest, for the work of a round: what is small is fetched over the link once, not at every repeated
directive; what is large passes through and is not kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from typing import Final

from institution_node.link import LARGEST_CONTENT, CoordinatorLink, wrong_length

CAPACITY_BYTES: Final = 8 << 20
"""Of what is kept by default: schema and statistics. An opened model is applied as it comes in and not asked for again;
kept, those of the rounds before would take as much room as there is (seen in the soak)."""


class LinkLibrary:
    """The run's content at the coordinator: a `Library` of the round's work.

    Args:
        link: where content comes from; it checks the digests.
        run: digest of the plan, 32 bytes.
        capacity: bytes kept at most; the content that was used longest ago goes first. Larger content is not kept.
    """

    def __init__(self, link: CoordinatorLink, run: bytes, capacity: int = CAPACITY_BYTES) -> None:
        self._link, self._run, self._capacity = link, run, capacity
        self._kept: OrderedDict[str, bytearray] = OrderedDict()
        self._size = 0

    def fetch(self, digest: str, at_most: int = LARGEST_CONTENT) -> bytearray:
        """Content by its digest (64 hex digits). The buffer is shared with later callers: do not change it.

        Raises:
            ContentMismatchError: what came is something else, or has more than `at_most` bytes.
            LinkError: it could not be fetched.
        """
        content = self._kept.get(digest)
        if content is not None:
            self._kept.move_to_end(digest)
            return content
        content = self._link.download(self._run, digest, at_most)
        if len(content) <= self._capacity:
            self._kept[digest] = content
            self._size += len(content)
            while self._size > self._capacity:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest)
        return content

    def peek(self, digest: str, length: int, offset: int) -> bytes:
        """The rest from `offset` on, of content of `length` bytes. NOT checked, where it is large: only for what is
        streamed as a whole later.

        Raises:
            RoundError: it has another length.
            LinkError: it could not be fetched.
        """
        if length <= self._capacity:
            return bytes(memoryview(self._whole(digest, length))[offset:])
        return b"".join(self._link.pieces(self._run, digest, length, offset))

    def pieces(self, digest: str, length: int) -> Generator[memoryview]:
        """Content of `length` bytes in order, a piece at a time. Large content is not held.

        Raises:
            RoundError: it has another length.
            ContentMismatchError: at the end: what came is something else, and must not be used.
            LinkError: it could not be fetched.
        """
        if length <= self._capacity:
            yield memoryview(self._whole(digest, length)).toreadonly()
        else:
            yield from self._link.pieces(self._run, digest, length)

    def _whole(self, digest: str, length: int) -> bytearray:
        content = self.fetch(digest, self._capacity)
        if len(content) != length:
            raise wrong_length(length, len(content))
        return content
