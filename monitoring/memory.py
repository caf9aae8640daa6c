"""How much memory processes hold: `RssAnon` of /proc, which leaves files and shared pages out. Linux only."""

from __future__ import annotations

import math
import os
import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

_RSS_ANON: Final = re.compile(rb"^RssAnon:\s*(\d+) kB$", re.MULTILINE)


def rss_anon_bytes(pid: int | None = None) -> float:
    """Anonymous resident memory of a process (None: this one), in bytes; NaN where it is gone or not to be had."""
    try:
        status = Path(f"/proc/{os.getpid() if pid is None else pid}/status").read_bytes()
    except OSError:
        return math.nan
    found = _RSS_ANON.search(status)
    return int(found[1]) * 1024.0 if found else math.nan


def gpu_bytes() -> float:
    """GPU memory that PyTorch holds in this process, in bytes; 0 where it was not loaded or has used no GPU."""
    torch = sys.modules.get("torch")  # never loaded for this: it takes seconds
    if torch is None or not torch.cuda.is_initialized():
        return 0.0
    return float(sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count())))


class PeakSampler:
    """Remembers the largest `RssAnon` of each process, read by a thread of its own while the `with` block runs.

    The kernel keeps a high-water mark of all resident memory (VmHWM) but none of the anonymous part, so it is sampled:
    a peak shorter than `interval` can be missed.

    Args:
        pids: processes to watch; more can be added.
        interval: seconds between two readings.
    """

    def __init__(self, pids: Iterable[int] = (), interval: float = 0.02) -> None:
        self._interval = interval
        self._lock = threading.Lock()
        self._peaks: dict[int, float] = dict.fromkeys(pids, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-sampler", daemon=True)

    def add(self, pid: int) -> None:
        """Watches one more process."""
        with self._lock:
            self._peaks.setdefault(pid, 0.0)

    def sample(self) -> None:
        """Takes one reading now."""
        with self._lock:
            for pid, peak in self._peaks.items():
                now = rss_anon_bytes(pid)
                if now > peak:  # never for NaN
                    self._peaks[pid] = now

    def peak_bytes(self, pid: int) -> float:
        """The largest reading so far; 0 before the first and for a process that never was."""
        with self._lock:
            return self._peaks.get(pid, 0.0)

    def peaks(self) -> dict[int, float]:
        """Process to largest reading, in bytes."""
        with self._lock:
            return dict(self._peaks)

    def __enter__(self) -> PeakSampler:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()
