"""Content store and upload spool in memory: for `studies/`, the in-memory transport and tests.

The same promises as `coordinator/files.py`, but for durability; `federation/vectors.py` says them.
"""

from __future__ import annotations

import threading

from federation.content_hash import content_digest
from federation.vectors import (
    Buffer,
    Receipt,
    UploadKey,
    UploadMismatchError,
    as_bytes_view,
    check_digest,
    check_place,
    check_range,
    check_same_length,
    complete_already,
    unknown_content,
    upload_missing,
)
from security.errors import LocalMisuseError


class MemoryReader:
    """Reads a buffer that nobody changes any more."""

    def __init__(self, data: Buffer) -> None:
        self._data = as_bytes_view(data)

    @property
    def length(self) -> int:
        """Bytes."""
        return self._data.nbytes

    def read_into(self, offset: int, out: memoryview) -> None:
        """See `federation.vectors.VectorReader`."""
        check_range(self.length, offset, out.nbytes)
        if out.nbytes:
            as_bytes_view(out)[:] = self._data[offset : offset + out.nbytes]

    def view(self) -> memoryview:
        """See `federation.vectors.VectorReader`."""
        return self._data.toreadonly()


class MemoryContentWriter:
    """Gathers content for a `MemoryContentStore`."""

    def __init__(self, store: MemoryContentStore) -> None:
        self._store = store
        self._data: bytearray | None = bytearray()

    def write(self, data: Buffer) -> None:
        """See `federation.vectors.ContentWriter`."""
        self._open_data().extend(as_bytes_view(data))

    def commit(self) -> str:
        """See `federation.vectors.ContentWriter`."""
        data, self._data = self._open_data(), None
        return self._store._add(data)

    def abort(self) -> None:
        """See `federation.vectors.ContentWriter`."""
        self._data = None

    def _open_data(self) -> bytearray:
        if self._data is None:
            raise LocalMisuseError("this writer is used up.", remedy="Ask the store for another writer.")
        return self._data


class MemoryContentStore:
    """A `federation.vectors.ContentStore` in a dictionary."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: dict[str, bytes | bytearray] = {}

    def put(self, data: Buffer) -> str:
        """See `federation.vectors.ContentStore`."""
        return self._add(bytes(as_bytes_view(data)))

    def writer(self) -> MemoryContentWriter:
        """See `federation.vectors.ContentStore`."""
        return MemoryContentWriter(self)

    def open(self, digest: str) -> MemoryReader:
        """See `federation.vectors.ContentStore`."""
        return MemoryReader(self._get(digest))

    def has(self, digest: str) -> bool:
        """See `federation.vectors.ContentStore`."""
        with self._lock:
            return digest in self._contents

    def size(self, digest: str) -> int:
        """See `federation.vectors.ContentStore`."""
        return len(self._get(digest))

    def collect(self, keep: set[str]) -> int:
        """See `federation.vectors.ContentStore`."""
        with self._lock:
            unwanted = self._contents.keys() - keep
            for digest in unwanted:
                del self._contents[digest]
        return len(unwanted)

    def _add(self, data: bytes | bytearray) -> str:
        digest = content_digest(data)
        with self._lock:
            self._contents.setdefault(digest, data)
        return digest

    def _get(self, digest: str) -> bytes | bytearray:
        with self._lock:
            data = self._contents.get(check_digest(digest))
        if data is None:
            raise unknown_content(digest)
        return data


class _Upload:
    def __init__(self, length: int) -> None:
        self.receipt = Receipt(length)
        self.data = bytearray(length)
        self.digest: str | None = None  # set when the upload counts


class MemorySpool:
    """A `federation.vectors.Spool` in a dictionary. One lock: nothing here waits for a disk."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uploads: dict[UploadKey, _Upload] = {}

    def check_room(self, needed: int) -> None:
        """See `federation.vectors.Spool`: memory is not asked."""

    def begin(self, key: UploadKey, length: int) -> int:
        """See `federation.vectors.Spool`."""
        with self._lock:
            upload = self._uploads.get(key)
            if upload is not None:
                return upload.receipt.check_begin(length)
            self._uploads[key] = _Upload(length)
            return 0

    def offset(self, key: UploadKey) -> int:
        """See `federation.vectors.Spool`."""
        with self._lock:
            upload = self._uploads.get(key)
            return upload.receipt.offset if upload is not None else 0

    def append(self, key: UploadKey, offset: int, data: Buffer) -> None:
        """See `federation.vectors.Spool`."""
        view = as_bytes_view(data)
        with self._lock:
            upload = self._get(key)
            if upload.digest is not None:
                raise complete_already()
            upload.receipt.check_append(offset, view.nbytes)
            memoryview(upload.data)[offset : offset + view.nbytes] = view
            upload.receipt.advance(view)

    def complete(self, key: UploadKey, digest: str, length: int) -> None:
        """See `federation.vectors.Spool`."""
        with self._lock:
            upload = self._get(key)
            if upload.digest is not None:
                if upload.digest != digest:
                    raise complete_already()
                check_same_length(upload.receipt.length, length)
                return
            try:
                upload.digest = upload.receipt.check_complete(digest, length)
            except UploadMismatchError:
                del self._uploads[key]
                raise

    def is_complete(self, key: UploadKey) -> bool:
        """See `federation.vectors.Spool`."""
        with self._lock:
            upload = self._uploads.get(key)
            return upload is not None and upload.digest is not None

    def open(self, key: UploadKey) -> MemoryReader:
        """See `federation.vectors.Spool`."""
        with self._lock:
            upload = self._get(key)
            if upload.digest is None:
                raise upload_missing()
            return MemoryReader(upload.data)

    def discard(self, key: UploadKey) -> None:
        """See `federation.vectors.Spool`."""
        with self._lock:
            self._uploads.pop(key, None)

    def discard_round(self, run: str, round_number: int, except_attempt: int | None = None) -> None:
        """See `federation.vectors.Spool`."""
        check_place(run, round_number)
        with self._lock:
            for key in list(self._uploads):
                if (key.run, key.round) == (run, round_number) and key.attempt != except_attempt:
                    del self._uploads[key]

    def completed(self, run: str, round_number: int, attempt: int, sum_name: str) -> tuple[str, ...]:
        """See `federation.vectors.Spool`."""
        check_place(run, round_number, attempt, sum_name)
        place = (run, round_number, attempt, sum_name)
        with self._lock:
            return tuple(
                sorted(
                    key.institution
                    for key, upload in self._uploads.items()
                    if upload.digest is not None and (key.run, key.round, key.attempt, key.sum) == place
                )
            )

    def _get(self, key: UploadKey) -> _Upload:
        upload = self._uploads.get(key)
        if upload is None:
            raise upload_missing()
        return upload
