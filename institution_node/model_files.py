"""Where an institution's copies of global components rest: small ones in memory, large ones in files.

Large vectors are read and written block by block, so that they are never in this process's own memory. What a file
holds counts for nothing by itself: it is whatever was written last, a crash in the middle included. Whoever opens one
holds its digest against the round's opening before it is used.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from federation.content_hash import ContentHash
from federation.proximity import BLOCK
from federation.vectors import StorageError, StorageFullError

Float32 = npt.NDArray[np.float32]

MEMORY_BYTES: Final = 64 << 20
"""Of a run's vectors that stay in memory: a model of 10 million parameters does not touch the disk."""
WEIGHTS: Final = "weights"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ModelVector(Protocol):
    """float32[size] at rest. For one thread."""

    @property
    def size(self) -> int:
        """Elements."""

    @property
    def found(self) -> bool:
        """Whether it holds what an earlier process left."""

    def block(self, start: int, size: int) -> Float32:
        """Elements `start` to `start + size`, size at most `BLOCK`; the array is good until the next call."""

    def put(self, start: int, block: Float32) -> None:
        """Keeps a block of `block` that was changed in place, or any other array in its place."""

    def fill(self, value: float) -> None:
        """Makes every element `value`."""

    def array(self) -> Float32:
        """float32[size], read-only, as it is now and will be: in a file's case mapped, not in this process's memory."""


class MemoryVector:
    """A `ModelVector` in memory."""

    def __init__(self, size: int) -> None:
        self._values = np.zeros(size, np.float32)
        self.found = False

    @property
    def size(self) -> int:
        """See ModelVector."""
        return len(self._values)

    def block(self, start: int, size: int) -> Float32:
        """See ModelVector: a view, so that nothing is copied."""
        return self._values[start : start + size]

    def put(self, start: int, block: Float32) -> None:
        """See ModelVector."""
        if block.base is not self._values:
            self._values[start : start + len(block)] = block

    def fill(self, value: float) -> None:
        """See ModelVector."""
        self._values[:] = value

    def array(self) -> Float32:
        """See ModelVector."""
        view = self._values.view()
        view.setflags(write=False)
        return view


class FileVector:
    """A `ModelVector` in a file, whose room is taken when it is made.

    Args:
        path: the file; made, mode 0600, if it is not there or has another size.
        size: elements.

    Raises:
        StorageFullError: the disk has no room for it.
        StorageError: the file cannot be used.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.size, self._path = size, path
        self._scratch = np.empty(min(BLOCK, size), np.float32)
        self._mapped: Float32 | None = None
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self.found = os.fstat(self._descriptor).st_size == 4 * size
            if not self.found:
                self._make_room()
        except OSError as error:
            self.close()  # open, it would hold the room of what is deleted
            with suppress(OSError):
                path.unlink()
            raise self._failed(error) from error

    def block(self, start: int, size: int) -> Float32:
        """See ModelVector."""
        block = self._scratch[:size]
        view, done = block.data.cast("B"), 0
        try:
            while done < view.nbytes:
                count = os.preadv(self._descriptor, [view[done:]], 4 * start + done)
                if count == 0:
                    raise OSError(errno.EIO, "the file became shorter")
                done += count
        except OSError as error:
            raise self._failed(error) from error
        return block

    def put(self, start: int, block: Float32) -> None:
        """See ModelVector."""
        view, done = block.data.cast("B"), 0
        try:
            while done < view.nbytes:
                done += os.pwrite(self._descriptor, view[done:], 4 * start + done)
        except OSError as error:
            raise self._failed(error) from error

    def fill(self, value: float) -> None:
        """See ModelVector. Zeros are not written: new room reads as zeros."""
        try:
            self._make_room()
        except OSError as error:
            raise self._failed(error) from error
        if value != 0:
            self._scratch[:] = value
            for start in range(0, self.size, BLOCK):
                self.put(start, self._scratch[: self.size - start])

    def array(self) -> Float32:
        """See ModelVector. Shared pages of the file: a private mapping would be this process's own memory."""
        if self._mapped is None:
            whole = mmap.mmap(self._descriptor, 4 * self.size, mmap.MAP_SHARED, mmap.PROT_READ)
            self._mapped = np.frombuffer(whole, np.float32)
        return self._mapped

    def close(self) -> None:
        """Lets the descriptor go; arrays that were handed out stay readable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _make_room(self) -> None:
        os.ftruncate(self._descriptor, 0)
        # Now: a sparse file would find the disk full in the middle of a round.
        os.posix_fallocate(self._descriptor, 0, 4 * self.size)

    def _failed(self, error: OSError) -> StorageError:
        if error.errno in _FULL:
            return StorageFullError(
                f"no room for {4 * self.size / 1e9:.1f} GB of the model.",
                remedy="Free space on the disk of the node's state folder, or keep fewer optimiser_slots there "
                "([disk] in node.toml); the node joins the next attempt.",
                place=str(self._path),
            )
        return StorageError(
            f"the model's file cannot be used: {os.strerror(error.errno) if error.errno else 'it failed'}.",
            remedy="Check that the node's state folder exists, is ours and its disk works.",
            place=str(self._path),
        )


class ModelShelf:
    """The vectors of one run.

    Args:
        folder: for the large ones, made when the first of them is. Its siblings are of runs that are over, and go now.
            None: everything stays in memory.
        memory_bytes: what may stay in memory; the vectors that are asked for first do.
        slots: how many vectors of the server optimiser's state may rest in files, of each component; None: all.
    """

    def __init__(self, folder: Path | None = None, memory_bytes: int = MEMORY_BYTES, slots: int | None = None) -> None:
        self._folder, self._left, self._slots = folder, memory_bytes, slots
        self._vectors: dict[str, ModelVector] = {}
        if folder is not None:
            with suppress(OSError):  # there is none yet
                for other in folder.parent.iterdir():
                    if other != folder:
                        shutil.rmtree(other, ignore_errors=True)

    def vector(self, name: str, size: int) -> ModelVector:
        """A new vector, the open one of this name, or the one that an earlier process left.

        Raises:
            StorageFullError: the disk has no room for it.
            StorageError: the disk refuses.
        """
        found = self._vectors.get(name)
        if found is None or found.size != size:
            found = self._vectors[name] = self._new(name, size)
        return found

    def slot(self, component: str, slot: str, position: int, size: int) -> ModelVector | None:
        """As `vector`, for the one at `position` of a component's state vectors; None: it is to rest in no file."""
        name, files = f"{component}.{slot}", self._folder is not None and 4 * size > self._left
        if self._slots is None or position < self._slots or not files or name in self._vectors:
            return self.vector(name, size)
        with suppress(OSError):  # of an earlier process, which kept more
            self._path(name).unlink()
        return None

    def close(self) -> None:
        """Lets the files go; they stay for the next process."""
        for vector in self._vectors.values():
            if isinstance(vector, FileVector):
                vector.close()
        self._vectors.clear()

    def remove(self) -> None:
        """Deletes the files: the run is over."""
        self.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _new(self, name: str, size: int) -> ModelVector:
        if self._folder is None or 4 * size <= self._left:
            self._left -= 4 * size
            return MemoryVector(size)
        self._make_folder(self._folder)
        return FileVector(self._path(name), size)

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name.replace('/', '.')}.f32"

    @staticmethod
    def _make_folder(folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                "the folder for large components cannot be made.",
                remedy="Give the node's user the right to write into its state folder.",
                place=str(folder),
            ) from error


def weights_folder(state: Path, run: bytes) -> Path:
    """Where a run's large components rest while it goes on.

    Args:
        state: the node's state folder.
        run: digest of the plan.
    """
    return state / WEIGHTS / run.hex()


def digest_of(vector: ModelVector) -> str:
    """Content digest of its bytes, hex."""
    hashed = ContentHash()
    for start in range(0, vector.size, BLOCK):
        hashed.update(vector.block(start, min(BLOCK, vector.size - start)).data)
    return hashed.hexdigest()
