"""`make bench`: secure rounds over mTLS with real processes, as one table and bench/results.json.

A row is the median of the rounds that follow a first one, from the first key to the commit, processes already up.
`none` runs the same transport, spool, hash and server optimiser without keys, shares and masks: the ratio is what
security costs. Cases are run in several passes, in turn, so that a slow minute of the machine falls on all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from deploy import bench_in_memory
from deploy.bench_federation import bench_federation, measure
from deploy.bench_rates import RateMeter
from deploy.bench_rows import Case, Measured, Row, Transport, merge, rows_of, table
from security.user_errors import user_errors

RESULTS: Final = Path("bench/results.json")
TABLE_WIDTH: Final = 132
CASE_SECONDS: Final = 240.0
"""A case that takes longer is given up."""


def cases(
    sizes: Sequence[int], institutions: Sequence[int], dropouts: Sequence[int], transport: Transport = "grpc"
) -> list[Case]:
    """All of these, by institutions and size; each size's `none` first, since the others are told as ratios to it."""
    found: list[Case] = []
    for n in institutions:
        for size in sizes:
            found.append(Case(n, size, "none", 0, transport))
            found += [Case(n, size, "masks", d, transport) for d in dropouts]
    return found


def default_cases() -> list[Case]:
    """The rows of `make bench`: sizes at nine institutions, numbers of institutions at a million parameters."""
    return [
        *cases([1_000_000], [3], [0]),
        *cases([1_000_000, 10_000_000], [9], [0, 1]),
        *cases([100_000_000], [9], [0]),
        *cases([100_000], [9], [0]),
        *(Case(9, size, "ckks") for size in (100_000, 1_000_000)),
        Case(9, 10_000_000, word_bits=16),
        Case(9, 10_000_000, fraction=0.1),
        *cases([1_000_000], [32], [0]),
        Case(50, 1_000_000),
        *cases([1_000_000], [100], [0], "memory"),
    ]


def many_cases() -> list[Case]:
    """Rows that take minutes each, of `make bench-large`."""
    return [Case(50, 1_000_000, "none"), *cases([1_000_000], [300], [0], "memory")]


SETS: Final = {"default": default_cases, "many": many_cases}


def rounds_of(case: Case) -> int:
    """Counted rounds in one pass: fewer where one takes long."""
    words = case.institutions * case.parameters * (8 if case.backend == "ckks" else 1)
    if case.transport == "memory":
        return 2 if words <= 100_000_000 else 1
    return 5 if words <= 50_000_000 else 3 if words <= 100_000_000 else 1


def passes_of(case: Case, passes: int) -> int:
    """How often a case is run: the largest once."""
    return passes if case.institutions <= 9 and case.parameters <= 10_000_000 else 1


def run(
    wanted: Sequence[Case], passes: int, meter: RateMeter, root: Path, rounds: int | None = None
) -> Iterator[tuple[Case, Measured]]:
    """Measures all cases; those of one number of institutions share their certificates, and nothing else."""
    for n in sorted({c.institutions for c in wanted}):
        group = [c for c in wanted if c.institutions == n]
        turns = [c for k in range(passes) for c in group if k < passes_of(c, passes)]
        processes = [c for c in turns if c.transport == "grpc"]
        if processes:
            with tempfile.TemporaryDirectory(dir=root) as folder, bench_federation(Path(folder), n) as (f, keys):
                for case in processes:
                    over_grpc = partial(measure, f, keys, case, rounds or rounds_of(case), meter, CASE_SECONDS)
                    yield case, _told(case, over_grpc)
        for case in (c for c in turns if c.transport == "memory"):
            in_memory = partial(bench_in_memory.measure, case, rounds or rounds_of(case), meter)
            yield case, _told(case, in_memory)


def _told(case: Case, work: Callable[[], Measured]) -> Measured:
    begun = time.monotonic()
    measured = work()
    seconds = f"{min(measured.seconds):.2f} to {max(measured.seconds):.2f} s a round"
    print(f"{case}: {seconds}; {time.monotonic() - begun:.0f} s in all", file=sys.stderr)  # noqa: T201 - progress
    return measured


def save(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Puts the rows into the file, in the place of those of the same cases; returns all that the file now holds."""
    kept = read_rows(path) if path.exists() else []
    merged = merge(kept, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(r) for r in merged], indent=1) + "\n")
    return merged


def show(rows: Sequence[Row]) -> None:
    """Prints the table; on a narrow terminal its lines wrap, since cells cut short say nothing."""
    Console(width=max(Console().width, TABLE_WIDTH)).print(table(rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a results file; those that an older bench wrote with other fields are left out."""
    return [Row(**r) for r in json.loads(path.read_text()) if r.keys() == Row.__dataclass_fields__.keys()]


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `make bench`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", choices=SETS, default="default", help="cases of the committed table; many: up to 300")
    parser.add_argument("--sizes", type=int, nargs="+", help="parameters, in place of a set")
    parser.add_argument("--institutions", type=int, nargs="+", default=[9])
    parser.add_argument("--dropouts", type=int, nargs="+", default=[0])
    parser.add_argument("--transport", choices=["grpc", "memory"], default="grpc")
    parser.add_argument("--passes", type=int, default=2, help="over all cases, in turn; the largest are run once")
    parser.add_argument("--rounds", type=int, help="counted rounds in a pass")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    wanted = SETS[chosen.set]()
    if chosen.sizes:
        wanted = cases(chosen.sizes, chosen.institutions, chosen.dropouts, chosen.transport)
    with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder, RateMeter(Path(folder)) as meter:
        measured: list[tuple[Case, Measured]] = []
        for case in run(wanted, chosen.passes, meter, Path(folder), chosen.rounds):
            measured.append(case)
            kept = save(chosen.out, rows_of(measured))  # a case that fails takes nothing with it
    show(kept)


if __name__ == "__main__":
    main()
