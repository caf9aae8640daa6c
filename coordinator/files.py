"""Content and uploads on disk: `federation.vectors.ContentStore` and `Spool` as files.

What counts is always a file under its final name, which carries its content hash: written under another name, flushed
to disk, renamed, the folder flushed. So a process killed at any instant, or a power cut, leaves either the whole
file or none that counts. Folders are 0700, files 0600; file names are made of checked names and digests only.

Partial uploads do not outlive the process: after a restart the upload begins again at byte 0. They would be of
no use, since a coordinator that stops before the survivor list is signed burns the attempt (DESIGN.md, "State and
failure"), and after it every upload is complete. Opening a folder removes what a dead process left half-written;
each file being written is locked, so that one belonging to a living process is never touched.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from coordinator.durable import PART, FileReader, PartFile, make_folder, remove_dead_parts, storage
from federation.content_hash import ContentHash
from federation.vectors import (
    Buffer,
    Receipt,
    StorageError,
    StorageFullError,
    UploadConflictError,
    UploadKey,
    UploadMismatchError,
    as_bytes_view,
    check_digest,
    check_place,
    check_same_length,
    complete_already,
    unknown_content,
    upload_missing,
)
from security.errors import LocalMisuseError

_COMPLETE: Final = re.compile(r"([a-z0-9][a-z0-9_-]{0,62})\.([0-9a-f]{64})")


class FileContentWriter:
    """Content on its way into a `FileContentStore`. For one thread."""

    def __init__(self, folder: Path, lock: threading.Lock) -> None:
        self._folder = folder
        self._lock = lock
        self._hash = ContentHash()
        self._offset = 0
        self._part: PartFile | None = None
        with storage(folder):
            self._part = PartFile(folder, "content")

    def write(self, data: Buffer) -> None:
        """See `federation.vectors.ContentWriter`."""
        view = as_bytes_view(data)
        part = self._open_part()
        with storage(part.path):
            part.write(self._offset, view)
        self._hash.update(view)
        self._offset += view.nbytes

    def commit(self) -> str:
        """See `federation.vectors.ContentWriter`."""
        part = self._open_part()
        digest = self._hash.hexdigest()
        try:
            with storage(part.path):
                part.flush()
                with self._lock:
                    part.publish(self._folder / digest)
                part.settle(self._folder / digest, self._folder)
        except StorageError:
            self.abort()
            raise
        self._part = None
        return digest

    def abort(self) -> None:
        """See `federation.vectors.ContentWriter`."""
        if self._part is not None:
            with storage(self._part.path):
                self._part.remove()
            self._part = None

    def __del__(self) -> None:
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.remove()

    def _open_part(self) -> PartFile:
        if self._part is None:
            raise LocalMisuseError("this writer is used up.", remedy="Ask the store for another writer.")
        return self._part


class FileContentStore:
    """A `federation.vectors.ContentStore` in one folder: one file per content, named by its digest.

    Args:
        folder: made if missing.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        with storage(folder):
            make_folder(folder.absolute())
            remove_dead_parts(folder, f"*{PART}")

    def put(self, data: Buffer) -> str:
        """See `federation.vectors.ContentStore`."""
        writer = self.writer()
        try:
            writer.write(data)
        except StorageError:
            writer.abort()
            raise
        return writer.commit()

    def writer(self) -> FileContentWriter:
        """See `federation.vectors.ContentStore`."""
        return FileContentWriter(self._folder, self._lock)

    def open(self, digest: str) -> FileReader:
        """See `federation.vectors.ContentStore`."""
        path = self._folder / check_digest(digest)
        with storage(path):
            try:
                return FileReader(path)
            except FileNotFoundError:
                raise unknown_content(digest) from None

    def has(self, digest: str) -> bool:
        """See `federation.vectors.ContentStore`."""
        return (self._folder / check_digest(digest)).is_file()

    def size(self, digest: str) -> int:
        """See `federation.vectors.ContentStore`."""
        with self.open(digest) as reader:
            return reader.length

    def collect(self, keep: set[str]) -> int:
        """See `federation.vectors.ContentStore`."""
        with storage(self._folder), self._lock:
            unwanted = [p for p in self._folder.iterdir() if p.suffix != PART and p.name not in keep]
            for path in unwanted:
                path.unlink()
        return len(unwanted)


class _Upload:
    """One upload that is open in this process."""

    def __init__(self, folder: Path, institution: str, length: int) -> None:
        self.receipt = Receipt(length)
        self.part = PartFile(folder, institution)
        self.lock = threading.Lock()  # taken before the spool's lock, never after it


class FileSpool:
    """A `federation.vectors.Spool` in one folder: run / round / attempt / sum / `institution.digest`.

    Uploads of different keys proceed side by side: writing, hashing and flushing hold the lock of one upload only.

    Args:
        folder: made if missing.

    Raises:
        StorageError: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._uploads: dict[UploadKey, _Upload] = {}
        with storage(folder):
            make_folder(folder.absolute())
            remove_dead_parts(folder, f"*/*/*/*/*{PART}")

    def check_room(self, needed: int) -> None:
        """See `federation.vectors.Spool`."""
        with storage(self._folder):
            free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise StorageFullError(
                f"a round takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free.",
                remedy="Free space on the coordinator's disk: the round begins by itself then, nothing was lost.",
                place=str(self._folder),
            )

    def begin(self, key: UploadKey, length: int) -> int:
        """See `federation.vectors.Spool`."""
        with self._lock, storage(self._folder):
            path = self._complete_path(key)
            if path is not None:
                size = path.stat().st_size
                check_same_length(size, length)
                return size
            upload = self._uploads.get(key)
            if upload is not None:
                return upload.receipt.check_begin(length)
            folder = self._sum_folder(key)
            make_folder(folder, flush=False)
            self._uploads[key] = _Upload(folder, key.institution, length)
            return 0

    def offset(self, key: UploadKey) -> int:
        """See `federation.vectors.Spool`."""
        with self._lock, storage(self._folder):
            upload = self._uploads.get(key)
            if upload is not None:
                return upload.receipt.offset
            path = self._complete_path(key)
            return path.stat().st_size if path is not None else 0

    def append(self, key: UploadKey, offset: int, data: Buffer) -> None:
        """See `federation.vectors.Spool`."""
        view = as_bytes_view(data)
        with self._open_upload(key) as upload:
            upload.receipt.check_append(offset, view.nbytes)
            with storage(upload.part.path):
                upload.part.write(offset, view)
            upload.receipt.advance(view)

    def complete(self, key: UploadKey, digest: str, length: int) -> None:
        """See `federation.vectors.Spool`."""
        if self._stands(key, digest, length):
            return
        try:
            with self._open_upload(key) as upload:
                self._finish(key, upload, digest, length)
        except UploadConflictError:
            # Completed by another thread meanwhile: the same trailer twice is no conflict.
            if not self._stands(key, digest, length):
                raise

    def is_complete(self, key: UploadKey) -> bool:
        """See `federation.vectors.Spool`."""
        with storage(self._folder):
            return self._complete_path(key) is not None

    def open(self, key: UploadKey) -> FileReader:
        """See `federation.vectors.Spool`."""
        with self._lock, storage(self._folder):
            path = self._complete_path(key)
            if path is None:
                raise upload_missing()
            return FileReader(path)

    def discard(self, key: UploadKey) -> None:
        """See `federation.vectors.Spool`."""
        with self._lock, storage(self._folder):
            upload = self._uploads.pop(key, None)
            path = self._complete_path(key)
            if path is not None:
                path.unlink()
        self._remove(upload)

    def discard_round(self, run: str, round_number: int, except_attempt: int | None = None) -> None:
        """See `federation.vectors.Spool`."""
        check_place(run, round_number)
        folder = self._folder / run / str(round_number)
        with self._lock, storage(folder):
            keys = [k for k in self._uploads if (k.run, k.round) == (run, round_number)]
            gone = [self._uploads.pop(k) for k in keys if k.attempt != except_attempt]
            for attempt in list(folder.iterdir()) if folder.is_dir() else ():
                if attempt.name != str(except_attempt):
                    shutil.rmtree(attempt)
            with contextlib.suppress(OSError):
                folder.rmdir()  # only where nothing is left in it
        for upload in gone:
            self._remove(upload)

    def completed(self, run: str, round_number: int, attempt: int, sum_name: str) -> tuple[str, ...]:
        """See `federation.vectors.Spool`."""
        check_place(run, round_number, attempt, sum_name)
        folder = self._folder / run / str(round_number) / str(attempt) / sum_name
        with storage(folder):
            return tuple(sorted(match[1] for match, _ in self._complete_files(folder)))

    def _finish(self, key: UploadKey, upload: _Upload, digest: str, length: int) -> None:
        try:
            digest = upload.receipt.check_complete(digest, length)
            with storage(upload.part.path):
                upload.part.flush()
                with self._lock:
                    if self._uploads.get(key) is not upload:
                        raise upload_missing()  # discarded while it was flushed
                    target = self._sum_folder(key) / f"{key.institution}.{digest}"
                    upload.part.publish(target)
                try:
                    upload.part.settle(target, self._folder)
                finally:
                    with self._lock:
                        # Only now it counts: until here the same trailer, sent again, waits for this upload's lock.
                        if self._uploads.pop(key, None) is not upload:
                            raise upload_missing()  # discarded while its name was flushed
        except (UploadMismatchError, StorageError):
            # After a failed flush the kernel may have dropped the bytes and call the next flush a success.
            self._forget(key, upload)
            raise

    def _stands(self, key: UploadKey, digest: str, length: int) -> bool:
        """Whether this very upload is complete; raises UploadConflictError if another one is."""
        with self._lock, storage(self._folder):
            path = self._complete_path(key)
            if path is None or key in self._uploads:
                return False
            if path.suffix != f".{digest}":
                raise complete_already()
            check_same_length(path.stat().st_size, length)
            return True

    def _sum_folder(self, key: UploadKey) -> Path:
        return self._folder / key.run / str(key.round) / str(key.attempt) / key.sum

    def _complete_files(self, folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
        with contextlib.suppress(FileNotFoundError):
            for path in folder.iterdir():
                if match := _COMPLETE.fullmatch(path.name):
                    yield match, path

    def _complete_path(self, key: UploadKey) -> Path | None:
        files = self._complete_files(self._sum_folder(key))
        return next((path for match, path in files if match[1] == key.institution), None)

    @contextlib.contextmanager
    def _open_upload(self, key: UploadKey) -> Iterator[_Upload]:
        """The upload with its own lock held, so that nobody discards it under the caller's hands."""
        with self._lock:
            upload = self._uploads.get(key)
            if upload is None:
                raise complete_already() if self._complete_path(key) is not None else upload_missing()
        with upload.lock:
            with self._lock:
                if self._uploads.get(key) is not upload:
                    done = self._complete_path(key) is not None
                    raise complete_already() if done else upload_missing()
            yield upload

    def _forget(self, key: UploadKey, upload: _Upload) -> None:
        """Drops an upload whose lock the caller holds."""
        with self._lock:
            if self._uploads.get(key) is upload:
                del self._uploads[key]
        with storage(upload.part.path):
            upload.part.remove()

    def _remove(self, upload: _Upload | None) -> None:
        """Deletes what a discarded upload has written, once whoever is writing has let go."""
        if upload is not None:
            with upload.lock, storage(upload.part.path):
                upload.part.remove()
