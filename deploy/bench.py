"""`make bench`: secure rounds over mTLS with real processes, as one table and bench/results.json.

A row is the median of the rounds that follow the first, keys to committed sums, processes already up. `none` runs the
same transport, spool, hash and server optimiser without masks, so the ratio is what security costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from deploy.bench_plan import COLUMNS, MODALITY, bench_plan
from deploy.cli import connect
from deploy.local_federation import LocalFederation, LocalInstitution
from federation.plan import Plan, digest
from monitoring.memory import PeakSampler
from security.errors import ConsiliumError

Backend = Literal["masks", "none"]
FEDERATION = "bench"
ROUND_SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """What one row measures."""

    institutions: int
    parameters: int
    backend: Backend
    dropouts: int


@dataclass(frozen=True)
class Row:
    """One row of bench/results.json."""

    institutions: int
    parameters: int
    backend: Backend
    dropouts: int
    wall_seconds: float
    ratio_to_none: float
    coordinator_peak_mib: float
    bytes_up_per_parameter: float
    bytes_down_per_parameter: float
    rounds: int


@dataclass(frozen=True)
class Measured:
    """One case, measured."""

    seconds: tuple[float, ...]
    peak_mib: float
    up: float
    down: float
    parameters: int


@contextmanager
def bench_federation(case: Case, root: Path) -> Iterator[tuple[LocalFederation, list[str]]]:
    """Certificates and configuration for one case."""
    names = [f"node-{k + 1}" for k in range(case.institutions)]
    with LocalFederation(root, FEDERATION, seed=1) as federation:
        federation.make_authority()
        federation.enrol("coordinator", ["coordinator"])
        federation.enrol("operator", ["operator"])
        federation.enrol("institution", names)
        federation.configure_coordinator()
        yield federation, names


def measure(case: Case, rounds: int) -> Measured:
    """Runs one case: a coordinator and nodes as processes, `rounds` training rounds, the first not counted."""
    with tempfile.TemporaryDirectory() as folder, bench_federation(case, Path(folder)) as (federation, names):
        keys = {name: federation.public_key(name) for name in names}
        plan = bench_plan(keys, case.parameters, rounds, case.backend, FEDERATION)
        run = digest(plan.to_bytes())
        for name in names:
            nowhere = federation.folder(name) / "generated"
            institution = LocalInstitution(name, {MODALITY: nowhere}, nowhere)
            federation.configure_node(institution, [run.hex()])
        coordinator = federation.start_coordinator()
        for k, name in enumerate(names):
            vanish = {"CONSILIUM_BENCH_VANISH": "1"} if k < case.dropouts else {}
            federation.start_node(name, vanish, module="deploy.bench_node")
        with PeakSampler([coordinator.pid], 0.02) as sampler:
            commits, up, down = _follow(federation, plan, run, rounds)
        between = tuple(b - a for a, b in pairwise(commits))
        size = _parameters(plan)
        return Measured(between, sampler.peak_bytes(coordinator.pid) / 2**20, up / size, down / size, size)


def _follow(federation: LocalFederation, plan: Plan, run: bytes, rounds: int) -> tuple[list[float], float, float]:
    """Starts the run and waits for its end; commit times of the training rounds, bytes up and down a round and node."""
    from coordinator.store import Store

    with connect(federation.address, federation.folder("operator")) as link:
        link.start(plan.to_bytes())
        end = time.monotonic() + ROUND_SECONDS * (rounds + 2)
        while (summary := link.status(run).summary).status not in ("finished", "failed", "stopped"):
            federation.check_alive()
            if time.monotonic() > end:
                raise ConsiliumError(f"the bench stands still in round {summary.round}.")
            time.sleep(0.5)
    if summary.status != "finished":
        raise ConsiliumError(f"the bench's run ended as {summary.status}: {summary.reason}.")
    store = Store(f"sqlite:///{federation.folder('coordinator') / 'state' / 'state.sqlite'}")
    committed = [r for r in store.rounds(run.hex()) if r.round >= 1]
    records = [json.loads(r.record) for r in committed]
    store.close()
    nodes = len(plan.institutions)
    up = statistics.median(r["bytes"]["up"] for r in records) / nodes
    down = statistics.median(r["bytes"]["down"] for r in records) / nodes
    return [r.at.timestamp() for r in committed], up, down


def _parameters(plan: Plan) -> int:
    from federation.layout import layout

    made = layout(plan, {MODALITY: COLUMNS})
    return sum(c.size for c in made.components.values())


def bench(sizes: Sequence[int], institutions: int, rounds: int, drops: Sequence[int]) -> list[Row]:
    """All rows, in order; each size's `none` first, since the others are told as ratios to it."""
    rows: list[Row] = []
    for size in sizes:
        base = 0.0
        cases = [Case(institutions, size, "none", 0), *(Case(institutions, size, "masks", d) for d in drops)]
        for case in cases:
            m = measure(case, rounds)
            wall = statistics.median(m.seconds)
            base = base or wall
            rows.append(
                Row(
                    institutions,
                    size,
                    case.backend,
                    case.dropouts,
                    round(wall, 3),
                    round(wall / base, 2),
                    round(m.peak_mib, 1),
                    round(m.up, 3),
                    round(m.down, 3),
                    len(m.seconds),
                )
            )
            spread = f"{min(m.seconds):.2f} to {max(m.seconds):.2f}"
            print(f"{case}: {wall:.3f} s ({spread}), peak {m.peak_mib:.0f} MiB", file=sys.stderr)  # noqa: T201 - progress
    return rows


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    t = Table(title="Secure rounds over mTLS on loopback, real processes, no training")
    for heading in ("institutions", "parameters", "backend", "dropouts", "round s", "÷ none", "coordinator MiB"):
        t.add_column(heading, justify="right")
    t.add_column("bytes up", justify="right")
    t.add_column("bytes down", justify="right")
    for r in rows:
        t.add_row(
            str(r.institutions),
            f"{r.parameters:,}",
            r.backend,
            str(r.dropouts),
            f"{r.wall_seconds:.2f}",
            f"{r.ratio_to_none:.2f}",
            f"{r.coordinator_peak_mib:.0f}",
            f"{r.bytes_up_per_parameter:.2f}",
            f"{r.bytes_down_per_parameter:.2f}",
        )
    return t


def main() -> None:
    """Entry point of `make bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--institutions", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=6, help="the first is not counted")
    parser.add_argument("--dropouts", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("bench/results.json"))
    arguments = parser.parse_args()
    rows = bench(arguments.sizes, arguments.institutions, arguments.rounds, arguments.dropouts)
    Console().print(table(rows))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
