"""`make studies`: runs studies, goes on where it stopped, and writes docs/results.md and docs/results.json.

`python -m studies.run figure3 --seeds 10` runs one. With `--budget 2h` the most informative runs come first, and what
was not run is said.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from security.errors import ConfigurationError
from security.user_errors import user_errors
from studies.catalogue import STUDIES, study
from studies.cells import Cell
from studies.cohorts import find_data
from studies.outcomes import Row, rows_of
from studies.recipes import fingerprint
from studies.results_page import page, table
from studies.run_cells import Source, run_cells
from studies.store import ResultStore
from studies.tcga import FOLDS

STORE: Final = Path("runs/studies")
PAGE: Final = Path("docs/results.md")
ROWS: Final = Path("docs/results.json")
SEEDS: Final = 10
WIDTH: Final = 150


def seconds_of(text: str) -> float:
    """`90s`, `45m`, `2h` in seconds.

    Raises:
        ConfigurationError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if found is None:
        raise ConfigurationError(f"{text!r} is no time.", remedy="Write 90s, 45m or 2h.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"studies; default: all of {', '.join(STUDIES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1 to this number")
    parser.add_argument("--folds", type=int, default=FOLDS)
    parser.add_argument("--budget", help="no further run is begun after this: 90s, 45m, 2h")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--synthetic", action="store_true", help="generated patients, also where real ones are there")
    parser.add_argument("--store", type=Path, default=STORE)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE} and {ROWS}, of all that the store has")
    chosen = parser.parse_args(arguments)
    wanted = [study(name) for name in chosen.names or STUDIES]
    root = None if chosen.synthetic else find_data()
    source, data = Source(root), fingerprint(root)
    end = time.monotonic() + seconds_of(chosen.budget) if chosen.budget else None
    seeds = range(1, chosen.seeds + 1)
    # Seeds outermost: what the budget cuts off is seeds, not studies.
    cells = [cell for seed in seeds for each in wanted for cell in each.cells([seed], chosen.folds)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console()
    console.width = max(console.width, WIDTH)  # cells cut short say nothing
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("runs", total=None)

        def progress(done: int, all_: int, cell: Cell) -> None:
            bar.update(task, completed=done, total=all_, description=str(cell))

        found = run_cells(
            cells,
            source,
            data,
            ResultStore(chosen.store),
            chosen.processes,
            progress,
            lambda: end is not None and time.monotonic() > end,
        )
    kind = "synthetic" if root is None else "real"
    rows = {each.name: rows_of(each, found, kind) for each in wanted}
    for each in wanted:
        console.print(table(each, rows[each.name]))
    missing = len(set(cells)) - len(found)
    if missing:
        console.print(f"{missing} of {len(set(cells))} runs are missing: the budget was spent. Run it again to go on.")
    if chosen.write:
        _write([row for each in rows.values() for row in each], missing)


def _write(rows: Sequence[Row], missing: int) -> None:
    ROWS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    PAGE.write_text(page(rows, missing))


if __name__ == "__main__":
    main()
