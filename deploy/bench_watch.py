"""What processes use while a case runs: memory, processor time, open files, disk; read from outside. Linux only."""

from __future__ import annotations

import math
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from monitoring.memory import rss_anon_bytes

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process with its threads, user and system, in seconds; NaN where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return math.nan
    user, system = stat.rpartition(")")[2].split()[11:13]  # the name in brackets may hold spaces
    return (int(user) + int(system)) / _TICKS


def open_files(pid: int) -> int:
    """Open file descriptors of a process; 0 where it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def folder_bytes(folder: Path) -> int:
    """Disk blocks that the files under a folder take, in bytes; what vanishes meanwhile is left out."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
            except OSError:
                continue
    return total


def at(moment: float, times: Sequence[float], values: Sequence[float]) -> float:
    """The value of a growing quantity at a moment, on the line between the readings around it.

    Args:
        moment: seconds, on the same clock as `times`.
        times: of the readings, increasing, at least one.
        values: as many.
    """
    k = bisect_left(times, moment)
    if k == 0:
        return values[0]
    if k == len(times):
        return values[-1]
    share = (moment - times[k - 1]) / (times[k] - times[k - 1])
    return values[k - 1] + share * (values[k] - values[k - 1])


@dataclass
class Usage:
    """The readings of one process.

    Attributes:
        idle_bytes: `RssAnon` at the first reading.
        peak_bytes: the largest `RssAnon` of all readings: a peak shorter than the interval can be missed.
        times: wall clock, seconds since the epoch.
        cpu: processor seconds at these times.
        memory: bytes of `RssAnon` at these times.
        files: open file descriptors at these times.
    """

    idle_bytes: float = 0.0
    peak_bytes: float = 0.0
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def cpu_between(self, begin: float, end: float) -> float:
        """Processor seconds spent between two moments; 0 where nothing was read."""
        return at(end, self.times, self.cpu) - at(begin, self.times, self.cpu) if self.times else 0.0


class Watch:
    """Reads processes, and a folder's size, by a thread of its own while the `with` block runs.

    Args:
        pids: name to process.
        interval: seconds between two readings.
        folder: whose disk use is read; None: none.
        disk_interval: seconds between two readings of it.
    """

    def __init__(
        self, pids: dict[str, int], interval: float = 0.02, folder: Path | None = None, disk_interval: float = 1.0
    ) -> None:
        self.usage = {name: Usage() for name in pids}
        self.disk_peak_bytes = 0
        self._pids, self._interval, self._folder = dict(pids), interval, folder
        self._disk_interval = disk_interval
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch, name="watch", daemon=True)]
        if folder is not None:
            self._threads.append(threading.Thread(target=self._watch_disk, name="watch-disk", daemon=True))

    def sample(self) -> None:
        """Takes one reading of every process now."""
        for name, pid in self._pids.items():
            memory, spent, usage = rss_anon_bytes(pid), cpu_seconds(pid), self.usage[name]
            if math.isnan(memory) or math.isnan(spent):
                continue
            usage.idle_bytes = usage.idle_bytes or memory
            usage.peak_bytes = max(usage.peak_bytes, memory)
            usage.times.append(time.time())
            usage.cpu.append(spent)
            usage.memory.append(memory)
            usage.files.append(open_files(pid))

    def __enter__(self) -> Watch:
        self.sample()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.sample()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()

    def _watch_disk(self) -> None:
        assert self._folder is not None
        while not self._stop.wait(self._disk_interval):
            self.disk_peak_bytes = max(self.disk_peak_bytes, folder_bytes(self._folder))
