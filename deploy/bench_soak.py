"""`make soak`: many rounds over real processes; memory and open files must end where they were after round 10."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from deploy.bench_drift import Drift, drift, table
from deploy.bench_federation import FEDERATION, bench_federation
from deploy.bench_plan import MODALITY, bench_plan
from deploy.bench_rows import Case
from deploy.bench_watch import Watch
from security.user_errors import user_errors


def soak(institutions: int, parameters: int, rounds: int, root: Path, seconds: float) -> list[Drift]:
    """Runs so many masked rounds on fresh processes.

    Args:
        institutions: as processes, beside the coordinator.
        parameters: of their one component.
        rounds: at least 14.
        root: an empty folder.
        seconds: until the run is given up.

    Returns:
        One drift a process, the coordinator's first.
    """
    with bench_federation(root, institutions) as (federation, keys):
        plan = bench_plan(keys, Case(len(keys), parameters), rounds, FEDERATION)
        run = federation.accept(list(keys), plan, dict.fromkeys(keys, (MODALITY,)))
        pids = federation.start_all(list(keys), {})
        with Watch(pids, interval=0.05) as watch:
            federation.run_to_end(plan, seconds)
        commits = [r.committed for r in federation.rounds(run)]
    return [drift(name, usage, commits) for name, usage in watch.usage.items()]


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exit code 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--institutions", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1800.0, help="until it is given up")
    parser.add_argument("--out", type=Path, default=Path("bench/soak.json"))
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="consilium-soak-") as folder:
        drifts = soak(chosen.institutions, chosen.parameters, chosen.rounds, Path(folder), chosen.seconds)
    Console().print(table(drifts, chosen.rounds))
    case = {"institutions": chosen.institutions, "parameters": chosen.parameters, "rounds": chosen.rounds}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(case | {"processes": [asdict(d) for d in drifts]}, indent=1) + "\n")
    if not all(d.passed for d in drifts):
        sys.exit(1)


if __name__ == "__main__":
    main()
