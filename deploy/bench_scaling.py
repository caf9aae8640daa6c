"""How cost grows with institutions: `studies.scaling` at 10 to 1000, as a second table and bench/scaling.json.

`python -m deploy.bench_scaling`, part of `make bench-large`. In memory and in one process: what is measured is the
secure sum itself, not the network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from studies.scaling import ScalingRow, scaling_row

RESULTS: Final = Path("bench/scaling.json")
MOST_BYTES: Final = 2 << 30
"""Of all uploads of one row, which lie in memory."""


def parameters_for(institutions: int, wanted: int) -> int:
    """The wanted number of parameters, or as many as so many uploads leave room for."""
    return min(wanted, MOST_BYTES // (4 * institutions))


def save(path: Path, rows: Sequence[ScalingRow]) -> list[ScalingRow]:
    """Puts the rows into the file, in the place of those of the same size; returns all that the file now holds."""
    kept = read_rows(path) if path.exists() else []
    merged = {(r.institutions, r.parameters): r for r in (*kept, *rows)}
    found = [merged[key] for key in sorted(merged)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n")
    return found


def read_rows(path: Path) -> list[ScalingRow]:
    """The rows of a results file."""
    return [ScalingRow(**r) for r in json.loads(path.read_text())]


def table(rows: Iterable[ScalingRow]) -> Table:
    """The rows for people."""
    t = Table(
        title="How a secure sum grows, a third vanishing after the key phase",
        caption="k: mask neighbours. keys: CPU of one institution, a key pair. mask: CPU of one upload.\n"
        "unmask: wall, from all shares to the opened sum; ÷floor: less Shamir, over the keystreams' bytes at the rate\n"
        "of both cores. coord.: CPU of all messages. KiB: of one institution, the masked words apart.",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headings = ("N", "size", "gone", "k", "keys ms", "mask s", "list ms", "coord. s", "Shamir s", "unmask s", "floor s")
    for heading in (*headings, "÷floor", "KiB up", "KiB down"):
        t.add_column(heading, justify="right", no_wrap=True)
    for r in rows:
        t.add_row(
            str(r.institutions),
            f"{r.parameters / 1e6:.4g}M",
            str(r.dropouts),
            str(r.neighbours),
            f"{r.key_ms:.1f}",
            f"{r.mask_seconds:.3f}",
            f"{r.list_ms:.1f}",
            f"{r.coordinator_seconds:.2f}",
            f"{r.shamir_seconds:.2f}",
            f"{r.unmask_seconds:.2f}",
            f"{r.floor_seconds:.2f}",
            f"{r.ratio:.2f}",
            f"{(r.bytes_up - 4 * r.parameters) / 1024:.0f}",
            f"{r.bytes_down / 1024:.0f}",
        )
    return t


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, saves and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("institutions", nargs="*", type=int, default=[10, 30, 100, 300, 1000])
    parser.add_argument("--parameters", type=int, default=1_000_000, help="fewer where uploads would not fit in memory")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    for institutions in chosen.institutions:
        rows = save(chosen.out, [scaling_row(institutions, parameters_for(institutions, chosen.parameters))])
    Console(width=160).print(table(rows))


if __name__ == "__main__":
    main()
