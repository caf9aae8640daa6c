"""Where long vectors rest: what a content store and an upload spool promise, wherever they keep their bytes.

`federation/in_memory.py` keeps them in memory for `studies/` and tests, `coordinator/files.py` on disk.
Everything is bytes here; the secure sum knows the words in them. Both kinds may be called from many threads.

The spool carries rule 8 of DESIGN.md, "Secure sum": one upload per (run, round, attempt, sum, institution), and
it counts when it is complete, never in part.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

from federation.content_hash import ContentHash
from federation.names import check_name
from security.errors import ConsiliumError, LocalMisuseError, ProtocolError

Buffer = bytes | bytearray | memoryview

COMMITS_AT_ONCE: Final = 16
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_RUN: Final = re.compile(r"[0-9a-f]{2,128}")
_SUM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class UploadOffsetError(ProtocolError):
    """A chunk does not begin where the upload stands; nothing was written. Go on from `expected` (bytes)."""

    code = "upload-offset"

    def __init__(self, expected: int, offset: int) -> None:
        super().__init__(
            f"the chunk begins at byte {offset}, the upload stands at byte {expected}.",
            remedy=f"Send the same vector again from byte {expected}.",
        )
        self.expected = expected


class UploadLengthError(ProtocolError):
    """A chunk runs past the length that the upload's header declared; nothing was written."""

    code = "upload-length"


class UploadMismatchError(ProtocolError):
    """The received bytes are not the ones that the trailer describes. The upload was discarded."""

    code = "upload-mismatch"


class UploadConflictError(ProtocolError):
    """A second upload for one key: another length, another hash, or more bytes after completion."""

    code = "upload-conflict"


class UploadMissingError(ProtocolError):
    """The key has no upload to go on with: it was never begun, was discarded, or is incomplete."""

    code = "upload-missing"


class UnknownContentError(ProtocolError):
    """No content of this digest is stored, or the text is no digest."""

    code = "unknown-content"


class StorageError(ConsiliumError):
    """The place where bytes rest failed. Nothing was committed."""

    code = "storage"


class StorageFullError(StorageError):
    """No space left where bytes rest. Nothing was committed; the same step can be tried again."""

    code = "storage-full"


def check_digest(digest: str) -> str:
    """Returns `digest` if it is 64 lower-case hex digits.

    Raises:
        UnknownContentError: it is not, so nothing can be stored under it.
    """
    if not _DIGEST.fullmatch(digest):
        raise UnknownContentError(
            "that is no content digest.", remedy="Use the BLAKE3 of the content as 64 lower-case hex digits."
        )
    return digest


def unknown_content(digest: str) -> UnknownContentError:
    """The error for a well-formed digest that is not stored."""
    return UnknownContentError(
        f"no content {digest} is stored here.", remedy="Ask for a digest that this run has published."
    )


@dataclass(frozen=True, order=True)
class UploadKey:
    """Names one upload. Every part is safe in a file name.

    Attributes:
        run: digest of the plan, lower-case hex.
        round: 0 to 2^32 − 1.
        attempt: 0 to 2^32 − 1.
        sum: name of the sum, `A` or `B` among them.
        institution: name in the roster.

    Raises:
        ProtocolError: a part is not of that form.
        ConfigurationError: the institution's name is not legal.
    """

    run: str
    round: int
    attempt: int
    sum: str
    institution: str

    def __post_init__(self) -> None:
        check_place(self.run, self.round, self.attempt, self.sum)
        check_name(self.institution, "institution")


def check_place(run: str, round_number: int, attempt: int = 0, sum_name: str = "A") -> None:
    """Checks what names a sum of a run, before it becomes part of a file name.

    Raises:
        ProtocolError: not hex, out of 0 to 2^32 − 1, or not a legal sum name.
    """
    numbers = (round_number, attempt)
    if not _RUN.fullmatch(run) or not _SUM.fullmatch(sum_name) or not all(0 <= n < 1 << 32 for n in numbers):
        raise ProtocolError(
            "an upload's run, round, attempt or sum is malformed.",
            remedy="Name the run by its plan's digest in hex, count rounds from 0, name sums as the plan.",
        )


class VectorReader(Protocol):
    """Reads a vector that is at rest. Stays valid when the vector is discarded meanwhile."""

    @property
    def length(self) -> int:
        """Bytes."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fills `out` with the bytes from `offset` on, without a second copy.

        Raises:
            LocalMisuseError: the range is not inside the vector.
            StorageError: the bytes could not be read.
        """

    def view(self) -> memoryview:
        """All bytes, read-only; a file's are mapped, not in this process's own memory.

        Raises:
            StorageError: they cannot be mapped.
        """


class ContentWriter(Protocol):
    """Content on its way into a store; invisible until `commit`."""

    def write(self, data: Buffer) -> None:
        """Appends; raises StorageFullError where no space is left."""

    def commit(self) -> str:
        """Makes the content durable and visible; returns its digest, hex. The writer is used up."""

    def abort(self) -> None:
        """Forgets everything written. Does nothing after `commit` or a second time."""


def commit_all(writers: Sequence[ContentWriter]) -> list[str]:
    """Commits several contents side by side, since a disk flushes many in the time of one; their digests, in order.

    Raises:
        StorageError: one of them was not committed; others may have been, and are nobody's until they are named.
    """
    with ThreadPoolExecutor(max(1, min(len(writers), COMMITS_AT_ONCE))) as pool:
        return list(pool.map(lambda writer: writer.commit(), writers))


class ContentStore(Protocol):
    """Bytes by the content hash of what they are (`federation.content_hash`)."""

    def put(self, data: Buffer) -> str:
        """Stores `data`, durable on return; returns its digest. The same content twice is stored once."""

    def writer(self) -> ContentWriter:
        """Begins content that is too long to hold at once."""

    def open(self, digest: str) -> VectorReader:
        """Raises UnknownContentError where there is none."""

    def has(self, digest: str) -> bool:
        """Whether the content is committed."""

    def size(self, digest: str) -> int:
        """Bytes; raises UnknownContentError where there is none."""

    def collect(self, keep: set[str]) -> int:
        """Deletes committed content that is not in `keep`, never what is being written; returns how many.

        What is committed between the making of `keep` and this call counts as not kept: who commits (the run)
        must also be who collects.
        """


class Spool(Protocol):
    """Uploads of masked vectors: resumable in part, counted whole."""

    def check_room(self, needed: int) -> None:
        """Whether `needed` bytes more would rest here now; raises StorageFullError where they would not."""

    def begin(self, key: UploadKey, length: int) -> int:
        """Opens an upload of exactly `length` bytes, or takes an open one up; returns where to go on.

        Raises:
            UploadConflictError: the key has an upload of another length.
            StorageFullError: no space.
        """

    def offset(self, key: UploadKey) -> int:
        """Bytes received: 0 where nothing was begun, the whole length where it is complete."""

    def append(self, key: UploadKey, offset: int, data: Buffer) -> None:
        """Adds the next bytes.

        Raises:
            UploadOffsetError: `offset` is not where the upload stands.
            UploadLengthError: more bytes than were declared.
            UploadMissingError: not begun, or discarded.
            UploadConflictError: already complete.
            StorageFullError: no space; the offset has not moved.
        """

    def complete(self, key: UploadKey, digest: str, length: int) -> None:
        """Makes the upload count, durably. Again with the same hash and length: nothing happens.

        Raises:
            UploadMismatchError: hash or length differ from what was received; the upload is discarded.
            UploadConflictError: complete already, with another hash or length; the first one stands.
            UploadMissingError: not begun, or discarded.
        """

    def is_complete(self, key: UploadKey) -> bool:
        """Whether the upload counts."""

    def open(self, key: UploadKey) -> VectorReader:
        """Reads a complete upload; raises UploadMissingError for any other."""

    def discard(self, key: UploadKey) -> None:
        """Forgets the upload, complete or not, if there is one."""

    def discard_round(self, run: str, round_number: int, except_attempt: int | None = None) -> None:
        """Forgets every upload of the round, but for those of one attempt if it is named."""

    def completed(self, run: str, round_number: int, attempt: int, sum_name: str) -> tuple[str, ...]:
        """Institutions whose upload counts, sorted."""


class Receipt:
    """What was received of one upload: offset, declared length, running hash. Pure; not thread-safe.

    Args:
        length: declared bytes, at least 0.

    Raises:
        UploadLengthError: `length` is negative.
    """

    def __init__(self, length: int) -> None:
        if length < 0:
            raise UploadLengthError("an upload has no negative length.", remedy="Declare the vector's bytes.")
        self.length = length
        self.offset = 0
        self._hash = ContentHash()

    def check_begin(self, length: int) -> int:
        """Where to go on, for a header that declares `length`; see `check_same_length`."""
        check_same_length(self.length, length)
        return self.offset

    def check_append(self, offset: int, size: int) -> None:
        """Whether `size` bytes may follow at `offset`; see `Spool.append`."""
        if offset != self.offset:
            raise UploadOffsetError(self.offset, offset)
        if size > self.length - self.offset:
            raise UploadLengthError(
                f"the chunk ends {offset + size - self.length} bytes past the declared {self.length}.",
                remedy="Send exactly the bytes that the upload's header declared.",
            )

    def advance(self, data: memoryview) -> None:
        """Takes bytes in, once they rest. The hash releases the GIL."""
        self._hash.update(data)
        self.offset += data.nbytes

    def check_complete(self, digest: str, length: int) -> str:
        """The digest, if the trailer and the header describe what was received; else UploadMismatchError."""
        found = self._hash.hexdigest()
        if length != self.offset or self.offset != self.length or digest != found:
            what = "hash" if length == self.offset == self.length else "length"
            raise UploadMismatchError(
                f"the upload's {what} is not the one its trailer declares; the upload was discarded.",
                remedy="Send the same encoded vector again from byte 0; if it repeats, the link is bad.",
            )
        return found


def check_same_length(first: int, second: int) -> None:
    """Raises UploadConflictError unless both headers of one key declare the same length."""
    if first != second:
        raise UploadConflictError(
            f"this upload was begun with {first} bytes, now {second} are declared.",
            remedy="One upload per institution and sum: resume it with the same bytes.",
        )


def complete_already() -> UploadConflictError:
    """The error for bytes, or another hash, after completion."""
    return UploadConflictError(
        "this upload is complete; another one for the same sum is refused.",
        remedy="Nothing to do: the first upload stands. A restarted node waits for the next attempt.",
    )


def upload_missing() -> UploadMissingError:
    """The error for a key without an upload to go on with."""
    return UploadMissingError(
        "there is no such upload to go on with.", remedy="Begin with the signed header, from byte 0."
    )


def as_bytes_view(data: Buffer) -> memoryview:
    """A flat view of the bytes, without a copy.

    Raises:
        LocalMisuseError: the buffer is not contiguous.
    """
    view = memoryview(data)
    if not view.c_contiguous:
        raise LocalMisuseError("only contiguous buffers can be stored.", remedy="Copy to C order first.")
    return view.cast("B") if view.nbytes else memoryview(b"")


def check_range(length: int, offset: int, size: int) -> None:
    """Raises LocalMisuseError unless bytes `offset` to `offset + size` are inside `length` bytes."""
    if offset < 0 or offset + size > length:
        raise LocalMisuseError(
            f"bytes {offset} to {offset + size} are outside a vector of {length} bytes.",
            remedy="Read inside the vector's length.",
        )
