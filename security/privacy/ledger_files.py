"""What the privacy ledger asks of a file system: one writer, whole writes, and errors that a person can
read."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from security.errors import ConsiliumError


class LedgerLockedError(ConsiliumError):
    """Another process, or another part of this one, has the ledger open."""

    code = "privacy-ledger-locked"


class LedgerWriteError(ConsiliumError):
    """The ledger could not be read or written. Whether the charge is in it shows when it is opened again."""

    code = "privacy-ledger-write"


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turns an error of the operating system into `LedgerWriteError`."""
    try:
        yield
    except OSError as error:
        raise LedgerWriteError(
            f"the privacy ledger cannot be read or written: {error.strerror}.",
            remedy="Check that the folder exists, has room and belongs to the node's user; then start again.",
            place=str(path),
        ) from error


def lock(path: Path) -> int:
    """Takes the lock file; whoever closes the descriptor gives it back, as does the end of the process.

    Raises:
        LedgerLockedError: somebody else has it.
    """
    # flock, not fcntl's record locks: those let one process open the ledger twice and vanish with any
    # descriptor. On a file of its own, since the others are replaced.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise LedgerLockedError(
            "the privacy ledger is open elsewhere.",
            remedy="Is another node running on this state folder? Stop one of them.",
            place=str(path),
        ) from error
    return descriptor


def read(path: Path) -> bytes:
    """The whole file."""
    with disk(path), open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return file.read()


def write_all(descriptor: int, data: bytes) -> None:
    """Writes every byte, however few the system takes at a time."""
    while data:
        data = data[os.write(descriptor, data) :]


def replace(path: Path, data: bytes) -> None:
    """Makes or replaces a file as one step: after a crash it is the old one or the new one, whole."""
    fresh = Path(f"{path}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(fresh, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
