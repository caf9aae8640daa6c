"""The example package of encoders, installed by pip in a folder of the test's own, and plans that use it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from federation.plan import EncoderOption, EncoderTensor, Plan

EXAMPLE = Path(__file__).resolve().parents[1] / "docs" / "example-encoder"
KIND = "gated-attention"
PIN = "example-encoders==0.1.0"
OPTIONS = (EncoderOption(name="group", number=2.0), EncoderOption(name="hidden", number=4.0))
TENSORS = (
    EncoderTensor(name="embed.weight", shape=(16, 2), fan_in=2),
    EncoderTensor(name="embed.bias", shape=(16,), init="zeros"),
    EncoderTensor(name="norm.weight", shape=(16,), init="ones"),
    EncoderTensor(name="norm.bias", shape=(16,), init="zeros"),
    EncoderTensor(name="content.weight", shape=(4, 16), fan_in=16),
    EncoderTensor(name="content.bias", shape=(4,), init="zeros"),
    EncoderTensor(name="gate.weight", shape=(4, 16), fan_in=16),
    EncoderTensor(name="gate.bias", shape=(4,), init="zeros"),
    EncoderTensor(name="score.weight", shape=(1, 4), fan_in=4),
)


def install_example(folder: Path) -> Path:
    """The folder to put on the path."""
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)  # pip builds in place
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(source)], check=True, timeout=100)
    return site


def with_kind(plan: Plan, modality: str = "image", kind: str = KIND, **fields: Any) -> Plan:
    """A plan one of whose modalities has an encoder of another kind."""
    changed: Mapping[str, Any] = {"kind": kind, "options": OPTIONS, "tensors": TENSORS, **fields}
    modalities = tuple(m.model_copy(update=changed) if m.name == modality else m for m in plan.modalities)
    return Plan.from_bytes(plan.model_copy(update={"modalities": modalities}).to_bytes())
