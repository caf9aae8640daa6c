"""The same figures on every machine of one kind: which instructions the numerical libraries may use, and one thread.

The order of float additions depends on the width of a processor's vectors. Libraries choose kernels when they are
loaded, so the choice has to stand in the environment before Python starts.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = {
    "MKL_CBWR": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore::ImportWarning",  # NumPy's, of features that the machine does not have anyway
}
"""What nearly every x86-64 machine since 2013 has; a wider one is not asked to use more."""


def restart_alike(module: str, arguments: Sequence[str]) -> None:
    """Starts this program again under `ENVIRONMENT`, if it was not started so; returns where it was."""
    if all(os.environ.get(name) == value for name, value in ENVIRONMENT.items()):
        return
    command = [sys.executable, "-m", module, *arguments]
    os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})  # noqa: S606 (ourselves, without a shell)


def kind(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Of machine: those of one kind give the same figures under `ENVIRONMENT`."""
    machine = platform.machine()
    try:
        flags = cpuinfo.read_text().split()
    except OSError:
        return machine
    return f"{machine} with AVX2" if {"avx2", "fma"} <= set(flags) else machine
