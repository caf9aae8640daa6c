"""How this process keeps memory that it has freed: chunks of uploads come and go by the thousand."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT_BYTES: Final = 64 << 20
_LARGE_BYTES: Final = 32 << 20  # the most that glibc takes


def share_arenas(count: int = 2) -> None:
    """Tells glibc to serve all threads from so many heaps, instead of up to eight a core.

    A coordinator's many threads take chunks in turn, and each heap keeps the pieces between what lives longer. A
    quarter less memory, and it stays where it is over hundreds of rounds (`make soak`). Call it before threads start.
    Does nothing where the C library is another one.
    """
    _set(_M_ARENA_MAX, count)


def keep_freed_memory() -> None:
    """Tells glibc to serve chunks of megabytes from its heap, instead of mapping and unmapping each.

    A mapped chunk costs a page fault for every 4 KiB, which is most of the processor time of passing a chunk on
    (docs/performance.md). For nodes, and from one heap for all threads: with a heap for each, every thread that ever
    held a chunk keeps its own. A coordinator, whose threads are many, grows by 200 MiB.
    Does nothing where the C library is another one.
    """
    share_arenas(1)
    _set(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    _set(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _set(parameter: int, value: int) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
