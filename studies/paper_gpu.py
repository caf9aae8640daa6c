"""`python -m studies.paper_gpu`: local steps of the paper's own model on a GPU, in float32 and mixed precision.

The encoders of METHOD.md's institution with all modalities, 513.7 million parameters, trained by the node's own
`LocalTrainer` on generated patients. Measured, per precision:
- seconds of a local step: two rounds of K and 2K steps differ by K of them, so that loading and storing the weights,
  which a round does once, fall out; the median of several pairs;
- seconds of a whole round's training, these included;
- memory of the device at most (torch's allocator), or of the process, where the device is a CPU.
And, at a small size: how far the device's update is from the CPU's, and mixed precision's from float32's.

Without a CUDA device it says so and does the small size on the CPU, by the same code.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from federation.layout import Layout, layout
from federation.plan import Plan
from institution_node.trainer import Precision
from institution_node.training import LocalTrainer
from security.errors import ConfigurationError
from security.privacy.randomness import SeededRandomness
from security.signing import IdentityKey, public_key_text
from security.user_errors import user_errors
from studies.methods import changed
from studies.paper_plan import COLUMNS, HIDDEN, INSTITUTIONS, paper_plan

INSTITUTION: Final = "brca-1"
SMALL: Final = (64, 32)
"""Hidden layers of the mRNA encoder where devices are compared, and where there is no GPU."""
PATIENTS: Final = 128
RATE: Final = 1e-4
TOLERANCE: Final = 1e-3
"""Largest difference of a device's update from the CPU's, as part of the largest update: float32 in another order."""
MIXED_TOLERANCE: Final = 0.15
"""Largest angle, in radians, between updates of mixed precision and of float32: bfloat16 has 8 bits."""
PRECISIONS: Final[tuple[Precision, ...]] = ("float32", "mixed")

Float32 = npt.NDArray[np.float32]
Weights = Mapping[str, Float32]


class DeviceDifferenceError(ConfigurationError):
    """A device computes something else than the CPU."""

    code = "device-difference"


@dataclass(frozen=True)
class Timed:
    """Local training of one model in one precision.

    Attributes:
        device: its name.
        precision: of the products.
        parameters: of the institution's whole model.
        steps, batch: of one round, and patients in a step.
        step_seconds: of a step.
        round_seconds: of a round with weights loaded and stored.
        memory_bytes: at most; of the device, or of the process where that is a CPU.
    """

    device: str
    precision: str
    parameters: int
    steps: int
    batch: int
    step_seconds: float
    round_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class Compared:
    """A device against the CPU at a small size, from the same weights, batches and dropout.

    Attributes:
        device: its name.
        float32: largest difference of its float32 update from the CPU's, as part of the largest update.
        mixed_radians: angle between its updates of mixed precision and of float32.
    """

    device: str
    float32: float
    mixed_radians: float

    def check(self) -> None:
        """Returns if both are within tolerance.

        Raises:
            DeviceDifferenceError: one is not.
        """
        if not (self.float32 <= TOLERANCE and self.mixed_radians <= MIXED_TOLERANCE):
            raise DeviceDifferenceError(
                f"float32 differs by {self.float32:.2g} of the largest update (at most {TOLERANCE:g}), mixed precision "
                f"by {self.mixed_radians:.2g} rad (at most {MIXED_TOLERANCE:g}).",
                remedy="Look for TF32 switched on elsewhere, or a faulty driver.",
                place=self.device,
            )


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        hidden: layers of the mRNA encoder.
        steps, batch: of a round, and patients in a step.
        optimiser: of the plan's.
    """

    hidden: tuple[int, ...]
    steps: int
    batch: int = 16
    optimiser: str = "adam"

    def plan(self) -> Plan:
        """The paper's, with this training."""
        keys = {name: public_key_text(IdentityKey.generate().public) for name in INSTITUTIONS}
        training = {"local_steps": self.steps, "batch_size": self.batch, "optimiser": self.optimiser}
        plan = paper_plan(keys, 1, hidden=self.hidden)
        return changed(plan, {"training": training})


class Bench:
    """The institution's patients and weights, made once for all devices and precisions.

    Args:
        setting: what is trained.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.plan = setting, setting.plan()
        self.layout: Layout = layout(self.plan, COLUMNS)
        generator = np.random.default_rng(1)
        self.labels = np.arange(PATIENTS, dtype=np.int64) % 2
        self.features = {
            m: (generator.standard_normal((PATIENTS, width)) + 0.1 * self.labels[:, None]).astype(np.float32)
            for m, width in COLUMNS.items()
        }
        owned = self.layout.owned(INSTITUTION)
        self.weights: Weights = {name: self.layout.components[name].initial(self.plan.seed) for name in owned}

    @property
    def parameters(self) -> int:
        """Of the institution's model."""
        return sum(vector.size for vector in self.weights.values())

    def trainer(self, device: str, precision: Precision, steps: int) -> LocalTrainer:
        """The node's, for rounds of so many steps."""
        plan = changed(self.plan, {"training": {"local_steps": steps}})
        rows = np.arange(PATIENTS, dtype=np.int64)
        none = rows[:0]
        return LocalTrainer(
            plan, self.layout, INSTITUTION, self.features, self.labels, rows, none, device, precision=precision
        )

    def update(self, device: str, precision: Precision) -> npt.NDArray[np.float64]:
        """The update of one round, all components in a row; the same batches and dropout on every device."""
        trained = self.trainer(device, precision, self.setting.steps)
        updates = trained.train(self.weights, {}, RATE, SeededRandomness(1, "paper-gpu")).updates
        return np.concatenate([updates[name] for name in self.weights]).astype(np.float64)

    def timed(self, device: str, precision: Precision, pairs: int) -> Timed:
        """Times rounds of K and of 2K steps, after one that is not counted."""
        _forget_peak(device)
        once: list[float] = []
        twice: list[float] = []
        steps = self.setting.steps
        trainer = self.trainer(device, precision, steps)
        for k in range(-1, pairs):
            for length, found in ((steps, once), (2 * steps, twice)):
                # One trainer, whose model is as large as the device may hold; only the number of steps changes.
                trainer.plan = changed(self.plan, {"training": {"local_steps": length}})
                began = time.perf_counter()
                trainer.train(self.weights, {}, RATE, SeededRandomness(k + 2, "paper-gpu"))
                _wait(device)
                if k >= 0:
                    found.append(time.perf_counter() - began)
        each = [(b - a) / steps for a, b in zip(once, twice, strict=True)]
        return Timed(
            device_name(device),
            precision,
            self.parameters,
            steps,
            self.setting.batch,
            statistics.median(each),
            statistics.median(once),
            _peak(device),
        )


def compare(device: str, hidden: Sequence[int] = SMALL) -> Compared:
    """A device against the CPU at a small size. SGD: Adam makes a full step of a gradient that is all rounding."""
    bench = Bench(Setting(tuple(hidden), steps=5, optimiser="sgd"))
    here, there = bench.update("cpu", "float32"), bench.update(device, "float32")
    mixed = bench.update(device, "mixed")
    cosine = float(mixed @ there) / float(np.linalg.norm(mixed) * np.linalg.norm(there))
    return Compared(
        device_name(device), float(np.abs(there - here).max() / np.abs(here).max()), float(np.arccos(min(1.0, cosine)))
    )


def device_name(device: str) -> str:
    """The GPU's own, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu ({platform.machine()})"


def chosen_device(wanted: str) -> tuple[str, str]:
    """torch's name of the device, and why it is no GPU where one could have been.

    Raises:
        ConfigurationError: `cuda` is asked for and torch finds none.
    """
    if wanted == "cpu":
        return "cpu", ""
    if torch.cuda.is_available():
        return "cuda", ""
    why = f"torch {torch.__version__} finds no CUDA device on this machine"
    if wanted == "cuda":
        raise ConfigurationError(f"{why}.", remedy="Run it where there is one, or with --device cpu.")
    return "cpu", why


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: str) -> int:
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # the process's so far: of all it did before, too


def report(console: Console, rows: Sequence[Timed], compared: Compared) -> None:
    """Prints both as tables."""
    table = Table("device", "precision", "parameters", "a step", "a round", "memory", title="local training")
    for row in rows:
        table.add_row(
            row.device,
            row.precision,
            f"{row.parameters:,}",
            f"{row.step_seconds * 1e3:.1f} ms",
            f"{row.round_seconds:.2f} s ({row.steps} steps of {row.batch})",
            f"{row.memory_bytes / 2**30:.2f} GiB",
        )
    console.print(table)
    console.print(
        f"{compared.device} against the CPU, small size: float32 differs by {compared.float32:.2g} of the largest "
        f"update; mixed precision by {compared.mixed_radians:.2g} rad from float32"
    )


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--steps", type=int, default=10, help="K of a round")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of rounds that are timed")
    parser.add_argument(
        "--hidden", type=int, nargs="+", help="layers of the mRNA encoder; default: the paper's on a GPU"
    )
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    chosen = parser.parse_args(arguments)
    console = Console()
    device, why = chosen_device(chosen.device)
    if why:
        console.print(f"SKIPPED at the paper's size: {why}. What follows is the same code at a small size.")
    full = HIDDEN["mrna"] if device == "cuda" else SMALL
    compared = compare(device)
    bench = Bench(Setting(tuple(chosen.hidden or full), chosen.steps, chosen.batch))
    rows = [bench.timed(device, precision, chosen.pairs) for precision in PRECISIONS]
    report(console, rows, compared)
    if chosen.out is not None:
        told: dict[str, Any] = {"skipped": why, "torch": torch.__version__, "compared": asdict(compared)}
        chosen.out.write_text(json.dumps(told | {"timed": [asdict(row) for row in rows]}, indent=1) + "\n")
    compared.check()


if __name__ == "__main__":
    main()
