"""How this process keeps memory that it has freed: chunks of uploads come and go by the thousand."""

from __future__ import annotations

import ctypes
import sys
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 64 << 20
_LARGE_BYTES: Final = 32 << 20  # the most that glibc takes


def keep_freed_memory() -> None:
    """Tells glibc to serve chunks of megabytes from its heap, instead of mapping and unmapping each.

    A mapped chunk costs a page fault for every 4 KiB, which is most of the processor time of passing a chunk on
    (docs/performance.md). For nodes: a coordinator, whose many threads would each keep their own, grows by 200 MiB.
    Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
