"""What the bench reads from processes: checked against a process that says what it does."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.bench_watch import Usage, Watch, at, cpu_seconds, folder_bytes, open_files

CHILD = """
import sys, time
held = bytearray(64 << 20)
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
print("done", flush=True)
sys.stdin.read()
"""


def test_readings_between_two_moments_follow_the_line() -> None:
    assert [at(t, [1.0, 3.0], [10.0, 20.0]) for t in (0.0, 1.0, 2.0, 3.0, 9.0)] == [10.0, 10.0, 15.0, 20.0, 20.0]
    usage = Usage(times=[0.0, 1.0, 2.0], cpu=[0.0, 1.0, 1.5])
    assert usage.cpu_between(0.5, 2.0) == 1.0
    assert Usage().cpu_between(0.0, 1.0) == 0.0


def test_a_process_is_read_from_outside() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        begun = time.time()
        assert child.stdout is not None
        with Watch({"child": child.pid}, interval=0.01) as watch:
            assert child.stdout.readline() == b"done\n"
            assert open_files(child.pid) >= 3
        usage = watch.usage["child"]
        assert usage.peak_bytes > 64 << 20
        assert 0.25 <= cpu_seconds(child.pid) == usage.cpu[-1]
        assert usage.cpu_between(begun, time.time()) >= 0.25
    finally:
        child.kill()
        child.communicate()


def test_a_process_that_is_gone_keeps_what_was_read() -> None:
    gone = 2**22 + 1  # above the largest process id
    assert math.isnan(cpu_seconds(gone))
    assert open_files(gone) == 0
    with Watch({"me": os.getpid(), "gone": gone}, interval=0.01) as watch:
        pass
    assert watch.usage["gone"] == Usage()
    assert watch.usage["me"].idle_bytes > 0


def test_the_folder_counts_blocks_of_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(bytes(1 << 20))
    os.sync()
    assert folder_bytes(tmp_path) == pytest.approx(1 << 20, rel=0.02)
    assert folder_bytes(tmp_path / "nothing") == 0
