"""Files that are whole or not there: the steps on disk that `coordinator/files.py` is made of.

A `PartFile` is written under a name that nobody reads, flushed, and renamed to its final name; a `FileReader` reads
a file that nobody changes any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from federation.vectors import StorageError, StorageFullError, as_bytes_view, check_range

PART: Final = ".part"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def storage(place: Path) -> Iterator[None]:
    """Turns what the disk raises into our own errors."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "it failed"
        if error.errno in _FULL:
            raise StorageFullError(
                f"no space left for {place}: {reason}.", remedy="Free space on that disk; nothing was lost."
            ) from error
        raise StorageError(
            f"cannot use {place}: {reason}.", remedy="Check that the folder exists, is ours and its disk works."
        ) from error


def flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, *, flush: bool = True) -> None:
    """Makes the folder and those above it, each durable in its parent; not yet durable without `flush`."""
    if folder.is_dir():
        return
    make_folder(folder.parent, flush=flush)
    folder.mkdir(mode=0o700, exist_ok=True)
    if flush:
        flush_folder(folder.parent)


def flush_folders(folder: Path, top: Path) -> None:
    """Makes what is in `folder`, and the folder in those above it up to `top`, durable. Folders that nobody changed
    since they were flushed cost nothing."""
    flush_folder(folder)
    while folder != top:
        folder = folder.parent
        flush_folder(folder)


def remove_dead_parts(folder: Path, pattern: str) -> None:
    """Deletes half-written files that no living process holds."""
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            except BlockingIOError:
                pass  # somebody is writing it
            finally:
                os.close(descriptor)


class PartFile:
    """A file that nobody sees until it is published. Not thread-safe."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.path = folder / f"{prefix}.{secrets.token_hex(8)}{PART}"
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def write(self, offset: int, view: memoryview) -> None:
        """All of `view`, or an OSError and a file as long as before."""
        done = 0
        try:
            while done < view.nbytes:
                done += os.pwrite(self._descriptor, view[done:], offset + done)
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise

    def flush(self) -> None:
        """Returns when the bytes are on the disk. Slow: call it outside locks."""
        os.fsync(self._descriptor)

    def publish(self, target: Path) -> None:
        """Gives the flushed file its final name. It counts once `settle` returns."""
        self.path.rename(target)

    def settle(self, target: Path, top: Path) -> None:
        """Makes the name durable, in folders up to `top`. Slow: call it outside locks."""
        try:
            flush_folders(target.parent, top)
        except OSError:
            target.unlink(missing_ok=True)  # what may vanish in a power cut must not count
            raise
        self.close()

    def close(self) -> None:
        """Lets the descriptor go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """Deletes the file, if it is still there."""
        if self._descriptor >= 0:
            self.path.unlink(missing_ok=True)
            self.close()


class FileReader:
    """Reads a file that nobody changes any more, straight into the caller's buffer.

    Holds a descriptor, so the bytes stay readable when the file is deleted meanwhile; closed with `close`, a `with`
    block, or when it is forgotten.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._length = os.fstat(self._descriptor).st_size

    @property
    def length(self) -> int:
        """Bytes."""
        return self._length

    def read_into(self, offset: int, out: memoryview) -> None:
        """See `federation.vectors.VectorReader`."""
        view = as_bytes_view(out)
        check_range(self._length, offset, view.nbytes)
        with storage(self._path):
            done = 0
            while done < view.nbytes:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "the file became shorter")
                done += count

    def view(self) -> memoryview:
        """See `federation.vectors.VectorReader`."""
        with storage(self._path):
            if not self._length:
                return memoryview(b"")
            return memoryview(mmap.mmap(self._descriptor, self._length, mmap.MAP_SHARED, mmap.PROT_READ))

    def close(self) -> None:
        """Lets the descriptor go; reading is over."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
