"""`make studies`: runs studies, goes on where it stopped, and writes docs/results.md and docs/results.json.

`python -m studies.run figure3 --seeds 10` runs one. With `--budget 2h` the most informative runs come first, and what
was not run is said.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from security.errors import ConfigurationError
from security.user_errors import user_errors
from studies.catalogue import STUDIES, Study, study
from studies.cells import Cell, CellResult
from studies.cohorts import find_data
from studies.figures import by_round, forest, losses_by_round
from studies.machine import restart_alike
from studies.methods import CM_FL, DGB_PCW
from studies.order import informative
from studies.outcomes import DRAWS, Row, rows_of
from studies.recipes import fingerprint
from studies.results_page import page, table
from studies.run_cells import Source, run_cells
from studies.store import STORE, ResultStore
from studies.tcga import FOLDS

PAGE: Final = Path("docs/results.md")
ROWS: Final = Path("docs/results.json")
FIGURES: Final = Path("docs/figures")
FINDINGS: Final = Path(__file__).with_name("findings.toml")
CURVES: Final = ("figure3", "late", "three")
"""Studies whose figures by round are drawn."""
LOSSES: Final = "figure3"
"""The one whose losses by subset are drawn."""
SEEDS: Final = 10
WIDTH: Final = 190


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
    cells = informative(wanted, seeds, chosen.folds)
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
    rows = {each.name: rows_of(each, found, _called(each, root), DRAWS if chosen.write else 0) for each in wanted}
    for each in wanted:
        console.print(table(each, rows[each.name]))
    missing = len(set(cells)) - len(found)
    if missing:
        console.print(f"{missing} of {len(set(cells))} runs are missing: the budget was spent. Run it again to go on.")
    if chosen.write:
        figures = {each.name: _draw(each, rows[each.name], found, _called(each, root)) for each in wanted}
        _write([row for each in rows.values() for row in each], missing, figures)


def _called(each: Study, root: Path | None) -> str:
    return "synthetic" if root is None else each.data


def _draw(each: Study, rows: Sequence[Row], found: Mapping[Cell, CellResult], data: str) -> list[str]:
    """Writes a study's figures; their paths seen from the page."""
    if not rows:
        return []
    made: dict[str, str | None] = {each.name: forest(each, rows)}
    if each.name in CURVES:
        made |= {f"{each.name}-{m}": by_round(each, found, m, data) for m in ("balanced_accuracy", "auroc")}
        for variant in each.variants if each.name == LOSSES else ():
            if variant.method in (CM_FL, DGB_PCW) and variant.recipe == "nine":
                made[f"{each.name}-losses-{variant.method}"] = losses_by_round(each, variant.name, found, data)
    FIGURES.mkdir(exist_ok=True)
    written = {name.replace("_", "-").replace("+", "-"): svg for name, svg in made.items() if svg is not None}
    for name, svg in written.items():
        (FIGURES / f"{name}.svg").write_text(svg)
    return [f"{FIGURES.name}/{name}.svg" for name in written]


def _write(rows: Sequence[Row], missing: int, figures: Mapping[str, Sequence[str]]) -> None:
    digits = [{k: round(v, 6) if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows]
    ROWS.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in digits) + "\n]\n")
    findings = tomllib.loads(FINDINGS.read_text())
    PAGE.write_text(page(rows, missing, findings, figures))


if __name__ == "__main__":
    restart_alike("studies.run", sys.argv[1:])
    main()
