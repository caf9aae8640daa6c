"""`make bench-large`: a secure round of the paper's own model, 513.7 million parameters, on one machine.

Nine institutions, of whom six own the mRNA encoder, as real processes over mTLS; without masks, with them, and with a
dropout. Updates are made from a counter as they are read, in place of training. Everything rests in files; what each
process holds is read from the processes themselves. Rows join bench/results.json (those of FedAvg, the default),
bench/large.json has every process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from deploy.bench import RESULTS, save, show
from deploy.bench_disk import DiskBytes, disk_account, slots_that_fit
from deploy.bench_federation import FEDERATION, BenchFederation, reading
from deploy.bench_floors import floors, loads_of, median_rates
from deploy.bench_rates import RateMeter
from deploy.bench_rows import MIB, Case, Measured, at_one_rate, rows_of
from deploy.bench_watch import Watch
from federation.plan import Plan
from federation.server_optimisers import Kind, state_slots
from security.errors import ConfigurationError
from security.user_errors import user_errors
from studies.paper_plan import COLUMNS, HIDDEN, INSTITUTIONS, MRNA_PARAMETERS, paper_plan

DETAILS: Final = Path("bench/large.json")
DISK_BYTES: Final = 50_000_000_000
"""What the paper's federation may take of one disk, smaller ones in proportion."""
BESIDE_MODELS: Final = 0.02
"""Of that: for plans, stores, what a file system needs itself."""
RATES: Final[Mapping[Kind, float]] = {"fedavg": 1.0, "fedavgm": 1.0, "fedadam": 0.01, "fedyogi": 0.01}
CASES: Final = (("none", 0), ("masks", 0), ("masks", 1))


@dataclass(frozen=True)
class LargeReading:
    """One case with what every process held.

    Attributes:
        measured: as of any case.
        idle, peak: party to bytes of `RssAnon`, before the run and at most.
        cpu: party to processor seconds of the whole run, the making of the model included.
        account: phase to the bytes of files that were expected.
        resting: vectors of the server optimiser's state that rested at a node.
    """

    measured: Measured
    idle: Mapping[str, float]
    peak: Mapping[str, float]
    cpu: Mapping[str, float]
    account: Mapping[str, DiskBytes] = field(default_factory=dict)
    resting: int = 0


def measure_large(
    federation: BenchFederation,
    keys: Mapping[str, str],
    case: Case,
    hidden: Sequence[int],
    rounds: int,
    meter: RateMeter,
    seconds: float,
    optimiser: Kind = "fedavg",
) -> LargeReading:
    """Runs one case on fresh processes. Of the optimiser's state, as much rests at the nodes as one disk takes.

    Args:
        federation: of the paper's nine institutions.
        keys: their public keys.
        case: backend and dropouts; a dropout is one of the encoder's owners.
        hidden: layers of the mRNA encoder.
        rounds: counted; one more goes before them.
        meter: reads the machine's rates before and after.
        seconds: until the run is given up.
        optimiser: the server's.
    """
    name = f"paper-{case.backend}-{case.dropouts}"
    overrides: dict[str, Any] = {
        "secure_sum": {"backend": case.backend},
        "server_optimiser": {"kind": optimiser, "learning_rate": RATES[optimiser]},
    }
    plan = paper_plan(keys, rounds + 1, federation=FEDERATION, run_name=name, hidden=hidden, **overrides)
    gone = list(keys)[: case.dropouts]
    resting = resting_slots(plan, case.parameters)
    loads = loads_of(plan, COLUMNS, gone, resting)
    run = federation.accept(list(keys), plan, INSTITUTIONS, resting)
    before = meter.measure()
    pids = federation.start_all(list(keys), {who: {"CONSILIUM_BENCH_VANISH": "1"} for who in gone})
    try:
        with Watch(pids, 0.02, federation.root, 1.0 if case.parameters == MRNA_PARAMETERS else 0.05) as watch:
            federation.run_to_end(plan, seconds)
        measured = reading(loads, watch, federation.rounds(run), median_rates([before, meter.measure()]))
    finally:
        federation.stop_all()
    usage = watch.usage
    return LargeReading(
        measured,
        {party: u.idle_bytes for party, u in usage.items()},
        {party: u.peak_bytes for party, u in usage.items()},
        {party: u.cpu[-1] for party, u in usage.items()},
        disk_account(loads),
        resting,
    )


def resting_slots(plan: Plan, parameters: int) -> int:
    """How many vectors of the server optimiser's state each node keeps where all share a disk of `DISK_BYTES`.

    Args:
        plan: of the paper's institutions.
        parameters: of its largest encoder; a smaller one has a smaller disk.
    """
    room = round(DISK_BYTES * (1 - BESIDE_MODELS) * parameters / MRNA_PARAMETERS)
    slots = len(state_slots(plan.server_optimiser.kind))
    return slots_that_fit(lambda k: loads_of(plan, COLUMNS, resting=k), slots, room)


def run(
    hidden: Sequence[int],
    parameters: int,
    rounds: int,
    root: Path,
    wanted: Sequence[tuple[str, int]],
    seconds: float,
    optimiser: Kind = "fedavg",
) -> Iterator[tuple[Case, LargeReading]]:
    """All cases, one after the other, on one set of certificates."""
    federation = BenchFederation(root, FEDERATION, seed=1)
    with federation, RateMeter(root, seconds=1.0, disk_bytes=512 << 20) as meter:
        keys = federation.set_up(list(INSTITUTIONS))
        for backend, dropouts in wanted:
            case = Case(len(INSTITUTIONS), parameters, "none" if backend == "none" else "masks", dropouts)
            begun = time.monotonic()
            found = measure_large(federation, keys, case, hidden, rounds, meter, seconds, optimiser)
            said = f"{optimiser}, {case}: {found.measured.seconds} s; {time.monotonic() - begun:.0f} s in all"
            print(said, file=sys.stderr)  # noqa: T201 - progress
            yield case, found


def check_room(folder: Path, wanted: int) -> None:
    """Refuses to begin where the disk is too small.

    Raises:
        ConfigurationError: with what is missing.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ConfigurationError(
            f"{free / 1e9:.0f} GB are free, and the bench takes up to {wanted / 1e9:.0f}.",
            remedy="Free some, or name another disk's folder with --root; --hidden makes a smaller model.",
            place=str(folder),
        )


def details(found: Sequence[tuple[Case, LargeReading]], optimiser: Kind = "fedavg") -> list[dict[str, Any]]:
    """What bench/large.json holds, one entry a case; floors are at the median rates of the run."""
    rates = median_rates([r.measured.rates for _, r in found])
    return [
        {
            "optimiser": optimiser,
            "optimiser_slots_at_a_node": r.resting,
            "backend": case.backend,
            "dropouts": case.dropouts,
            "wall_seconds": [round(s, 2) for s in r.measured.seconds],
            "floor_seconds": {kind: round(s, 2) for kind, s in floors(r.measured.work, rates).items()},
            "rates_mb_per_second": {kind: round(rate / 1e6) for kind, rate in vars(r.measured.rates).items()},
            "disk_peak_gib": round((r.measured.disk_peak or 0) / 2**30, 2),
            "disk_peak_bytes_per_parameter": round((r.measured.disk_peak or 0) / case.parameters, 2),
            "disk_expected_gib": {phase: round(d.together / 2**30, 2) for phase, d in r.account.items()},
            "rss_anon_mib": {
                party: {"idle": round(r.idle[party] / MIB, 1), "peak": round(peak / MIB, 1)}
                for party, peak in r.peak.items()
            },
            "rss_anon_total_mib": round(sum(r.peak.values()) / MIB, 1),
            "cpu_seconds_of_the_run": {party: round(spent, 1) for party, spent in r.cpu.items()},
        }
        for case, r in found
    ]


def merged(kept: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The new entries in the place of kept ones of the same case; others stay."""

    def case(entry: Mapping[str, Any]) -> tuple[str, str, int]:
        return entry.get("optimiser", "fedavg"), entry["backend"], entry["dropouts"]

    replaced = {case(entry) for entry in new}
    return [*(entry for entry in kept if case(entry) not in replaced), *new]


def memory_table(found: Sequence[tuple[Case, LargeReading]]) -> Table:
    """What every process held, for people."""
    t = Table(title="Peak RssAnon, MiB (above idle)", box=SIMPLE_HEAD)
    t.add_column("process", no_wrap=True)
    for case, _ in found:
        t.add_column(f"{case.backend}, {case.dropouts} gone", justify="right")
    for party in found[0][1].peak:
        cells = [f"{r.peak[party] / MIB:.0f} (+{(r.peak[party] - r.idle[party]) / MIB:.0f})" for _, r in found]
        t.add_row(party, *cells)
    t.add_row("all", *(f"{sum(r.peak.values()) / MIB:.0f}" for _, r in found))
    t.add_row("disk, GiB", *(f"{(r.measured.disk_peak or 0) / 2**30:.1f}" for _, r in found))
    return t


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `make bench-large`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=list(HIDDEN["mrna"]), help="of the mRNA encoder")
    parser.add_argument("--optimiser", choices=list(RATES), default="fedavg", help="the server's")
    parser.add_argument("--rounds", type=int, default=1, help="counted; one more goes before them")
    parser.add_argument("--cases", nargs="+", default=[f"{b}:{d}" for b, d in CASES], help="backend:dropouts")
    parser.add_argument("--root", type=Path, help="folder on the disk to use")
    parser.add_argument("--seconds", type=float, default=1800.0, help="until a case is given up")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--details", type=Path, default=DETAILS)
    chosen = parser.parse_args(arguments)
    paper = tuple(chosen.hidden) == tuple(HIDDEN["mrna"])
    wanted = [(backend, int(gone)) for backend, _, gone in (text.partition(":") for text in chosen.cases)]
    with tempfile.TemporaryDirectory(prefix="consilium-large-", dir=chosen.root) as folder:
        if paper:
            check_room(Path(folder), DISK_BYTES)
        parameters = MRNA_PARAMETERS if paper else encoder_size(chosen.hidden)
        place = Path(folder)
        cases = run(chosen.hidden, parameters, chosen.rounds, place, wanted, chosen.seconds, chosen.optimiser)
        found = list(cases)
    chosen.details.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(chosen.details.read_text()) if chosen.details.exists() else []
    chosen.details.write_text(json.dumps(merged(kept, details(found, chosen.optimiser)), indent=1) + "\n")
    Console().print(memory_table(found))
    rows = rows_of(at_one_rate([(case, r.measured) for case, r in found]))
    show(save(chosen.out, rows) if chosen.optimiser == "fedavg" else rows)  # one table, one optimiser


def encoder_size(hidden: Sequence[int], width: int = 16) -> int:
    """Parameters of an mRNA encoder with these hidden layers."""
    layers = (COLUMNS["mrna"], *hidden, width)
    return sum(a * b + b for a, b in pairwise(layers))


if __name__ == "__main__":
    main()
