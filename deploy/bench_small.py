"""`make bench-ratios`: a small bench for CI that fails on a ratio, never on a time.

Processor seconds wherever possible, numerator and denominator in turn, medians: a busy machine moves both alike. What
fails is measured again, twice. Of the ratio that has wall time in it both parts are read on the machine as it is then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from deploy import bench_in_memory
from deploy.bench_federation import bench_federation, measure
from deploy.bench_floors import processor_floor, ratio_to_floor
from deploy.bench_loops import opening_to_floor, signature_seconds, upload_to_floor
from deploy.bench_rates import RateMeter
from deploy.bench_ratios import Readings, judge, read_baseline, table
from deploy.bench_rows import Case, Measured
from security.user_errors import user_errors

BASELINE: Final = Path("bench/baseline.json")
SECONDS: Final = 60.0
MEMORY: Final = Case(9, 1_000_000, transport="memory")
FIXED: Final = Case(9, 1_000, transport="memory")
SIGNATURES: Final = 1_000
PROCESSES: Final = Case(3, 4_000_000)
PASSES: Final = 2
MEANINGS: Final = {
    "upload_to_floor": "masked upload ÷ its keystreams and hash, CPU",
    "opening_to_floor": "opening a sum ÷ its keystreams, CPU",
    "memory_masks_to_none": f"round of {MEMORY.institutions} in memory, masks ÷ none, CPU",
    "fixed_part_to_signatures": f"round of {FIXED.institutions} with hardly a parameter ÷ {SIGNATURES} signatures, CPU",
    "processes_masks_to_none": f"round of {PROCESSES.institutions} over gRPC, masks ÷ none, CPU",
    "processes_to_processor_floor": f"round of {PROCESSES.institutions} over gRPC ÷ all its floors, CPU",
    "processes_to_floor": f"round of {PROCESSES.institutions} over gRPC ÷ largest floor, wall",
}
"""What each ratio is, in words."""
LOOPS: Final = {"upload_to_floor": upload_to_floor, "opening_to_floor": opening_to_floor}


def measured(wanted: Sequence[str], meter: RateMeter, root: Path) -> Readings:
    """Readings of the wanted ratios, and of those that come with them."""
    found: dict[str, list[float]] = defaultdict(list)
    for name in wanted:
        if name in LOOPS:
            LOOPS[name]()  # pages and caches are warm from here on
            found[name] = [LOOPS[name]() for _ in range(9)]
    if "memory_masks_to_none" in wanted:
        for _ in range(PASSES):
            none, masks = (bench_in_memory.measure(c, 3, meter) for c in (MEMORY.comparable, MEMORY))
            found["memory_masks_to_none"].append(_processor(MEMORY, masks) / _processor(MEMORY, none))
    if "fixed_part_to_signatures" in wanted:
        for _ in range(PASSES):
            spent = _processor(FIXED, bench_in_memory.measure(FIXED, 3, meter))
            found["fixed_part_to_signatures"].append(spent / signature_seconds(SIGNATURES))
    if any(name.startswith("processes") for name in wanted):
        _over_grpc(found, meter, root)
    return found


def _processor(case: Case, m: Measured) -> float:
    """Processor seconds of a round."""
    return m.cpu_coordinator + case.institutions * m.cpu_institution


def _over_grpc(found: dict[str, list[float]], meter: RateMeter, root: Path) -> None:
    case = PROCESSES
    with (
        tempfile.TemporaryDirectory(dir=root) as folder,
        bench_federation(Path(folder), case.institutions) as (f, keys),
    ):
        for _ in range(PASSES):
            none, masks = (measure(f, keys, c, 6, meter, SECONDS) for c in (case.comparable, case))
            floor = processor_floor(masks.work, meter.measure(time.process_time), meter.cores)
            found["processes_masks_to_none"].append(_processor(case, masks) / _processor(case, none))
            found["processes_to_processor_floor"].append(_processor(case, masks) / floor)
            found["processes_to_floor"].append(
                ratio_to_floor(statistics.median(masks.seconds), masks.work, masks.rates)
            )


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 where a ratio worsened by a third."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write-baseline", action="store_true", help="commit what is measured now as the baseline")
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder, RateMeter(Path(folder)) as meter:
        if chosen.write_baseline:
            readings = measured(list(MEANINGS), meter, Path(folder))
            baseline = {name: round(statistics.median(readings[name]), 3) for name in MEANINGS}
            chosen.baseline.parent.mkdir(parents=True, exist_ok=True)
            chosen.baseline.write_text(json.dumps(baseline, indent=1) + "\n")
            return
        baseline = read_baseline(chosen.baseline.read_text(), list(MEANINGS))
        judged = judge(lambda wanted: measured(wanted, meter, Path(folder)), baseline)
    Console().print(table(judged, MEANINGS))
    if not all(v.passed for v in judged):
        sys.exit(1)


if __name__ == "__main__":
    main()
