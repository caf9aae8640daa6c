"""The paper's model on a GPU: the same code on the CPU at a small size here, on a GPU where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from security.errors import ConfigurationError
from studies.paper_gpu import (
    MIXED_TOLERANCE,
    SMALL,
    TOLERANCE,
    Bench,
    Compared,
    DeviceDifferenceError,
    Setting,
    chosen_device,
    compare,
    main,
)
from studies.paper_plan import HIDDEN, MRNA_PARAMETERS
from tests.cuda import DEVICES, NEEDS_CUDA

torch.set_num_threads(1)
TINY = (8, 4)
FULL_BYTES = 24 << 30
"""Weights, gradients, two vectors of Adam's, what a step makes of them, and room."""


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_computes_what_the_cpu_does_and_mixed_precision_nearly_so(device: str) -> None:
    found = compare(device, SMALL)
    found.check()
    assert 0.0 < found.mixed_radians <= MIXED_TOLERANCE  # mixed precision is not float32 by another name


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_timed_and_its_memory_read(device: str) -> None:
    bench = Bench(Setting(TINY, steps=2, batch=4))
    for precision in ("float32", "mixed"):
        timed = bench.timed(device, precision, pairs=1)
        assert timed.parameters == bench.parameters
        assert timed.round_seconds > 0.0
        assert timed.memory_bytes > 4 * bench.parameters


def test_mixed_precision_moves_what_float32_moves() -> None:
    bench = Bench(Setting(TINY, steps=1))
    plain, mixed = bench.update("cpu", "float32"), bench.update("cpu", "mixed")
    assert not np.array_equal(plain, mixed)
    assert plain.shape == mixed.shape == (bench.parameters,)
    trained = bench.trainer("cpu", "mixed", 1)
    assert trained.model.parameters_flat.dtype == trained.model.gradients_flat.dtype == torch.float32
    evaluated = [bench.trainer("cpu", p, 1).evaluate(bench.weights).losses for p in ("float32", "mixed")]
    assert evaluated[0] == evaluated[1]  # what is sent of losses does not depend on the setting


@pytest.mark.parametrize(
    "found", [Compared("x", 2 * TOLERANCE, 0.0), Compared("x", 0.0, 1.0), Compared("x", np.nan, 0)]
)
def test_a_device_that_computes_something_else_is_told(found: Compared) -> None:
    with pytest.raises(DeviceDifferenceError) as told:
        found.check()
    assert told.value.remedy


def test_the_command_says_why_there_is_no_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gpu.json"
    main(["--device", "cpu", "--steps", "1", "--batch", "4", "--pairs", "1", "--hidden", "8", "--out", str(out)])
    assert [row["precision"] for row in json.loads(out.read_text())["timed"]] == ["float32", "mixed"]
    assert "local training" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_auto_is_the_cpu_with_the_reason_and_cuda_an_error() -> None:
    device, why = chosen_device("auto")
    assert device == "cpu"
    assert "finds no CUDA device" in why
    with pytest.raises(ConfigurationError, match="finds no CUDA device"):
        chosen_device("cuda")


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_CUDA)])
def test_the_papers_encoder_takes_its_steps(device: str) -> None:
    if torch.cuda.get_device_properties(device).total_memory < FULL_BYTES:
        pytest.skip("the GPU has less than 24 GiB")
    bench = Bench(Setting(HIDDEN["mrna"], steps=2))
    assert bench.parameters > MRNA_PARAMETERS
    for precision in ("float32", "mixed"):
        timed = bench.timed(device, precision, pairs=1)
        assert timed.step_seconds > 0.0
        assert 4 * 4 * MRNA_PARAMETERS < timed.memory_bytes < FULL_BYTES
