"""`make studies-quick`: every study in small, whose figures must be those of studies/quick.json, digit for digit.

One split of every study on generated patients over a few rounds; where the real tables are at hand, the main comparison
on these too. A change of the arithmetic shows here before anybody trusts a stored result: whoever means it raises
`studies.store.REVISION` and writes the figures again with `--write`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from security.errors import ConsiliumError
from security.user_errors import user_errors
from studies.catalogue import STUDIES, Study
from studies.cohorts import find_data
from studies.machine import kind, restart_alike
from studies.outcomes import METRICS, rows_of
from studies.recipes import fingerprint
from studies.run_cells import Source, run_cells
from studies.store import REVISION, ResultStore
from studies.synthetic import Shape

KEPT: Final = Path(__file__).with_name("quick.json")
SHAPE: Final = Shape(genes=60, image_features=40, signal=0.2)
"""As many patients as TCGA has, with few columns."""
ROUNDS: Final = 6
REAL_ROUNDS: Final = 8
REAL_STUDIES: Final = ("figure3",)
DIGITS: Final = 6
ELSEWHERE: Final = 0.03
"""How far figures may be off on a machine of another kind, where float additions have another order."""

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Study to variant to metric to its figure."""


class OtherFiguresError(ConsiliumError):
    """The same seeds no longer give the same figures."""

    code = "other-figures"


def small_studies(names: Iterable[str], rounds: int) -> list[Study]:
    """Studies with few rounds."""
    return [replace(STUDIES[name], rounds=rounds) for name in names]


def figures(studies: Sequence[Study], source: Source, processes: int = 2) -> Figures:
    """Of the first split of each study, computed now and not taken from any store."""
    cells = list(dict.fromkeys(cell for study in studies for cell in study.cells([1], [0])))
    with tempfile.TemporaryDirectory() as folder:
        found = run_cells(cells, source, "quick", ResultStore(Path(folder)), processes)
    made: dict[str, dict[str, dict[str, float]]] = {}
    for study in studies:
        for row in rows_of(study, found, "quick"):
            if row.metric in METRICS:
                made.setdefault(study.name, {}).setdefault(row.method, {})[row.metric] = round(row.mean, DIGITS)
    return made


def differences(kept: Figures, found: Figures, tolerance: float) -> list[str]:
    """What differs by more than this, a line each; empty where nothing does."""
    before, now = _flat(kept), _flat(found)
    lines = [f"{' / '.join(key)} is not there any more" for key in before if key not in now]
    lines += [f"{' / '.join(key)} is new" for key in now if key not in before]
    lines += [
        f"{' / '.join(key)}: {now[key]} instead of {value}"
        for key, value in before.items()
        if key in now and not abs(now[key] - value) <= tolerance
    ]
    return lines


def _flat(figures: Figures) -> dict[tuple[str, str, str], float]:
    return {(s, v, m): x for s, own in figures.items() for v, its in own.items() for m, x in its.items()}


def check(kept: Mapping[str, Any], found: Figures, data: str) -> str:
    """What to say of figures that agree with the kept ones.

    Args:
        kept: studies/quick.json.
        found: figures of now.
        data: "synthetic" or "real".

    Raises:
        OtherFiguresError: they do not agree.
    """
    alike = kept["machine"] == kind()
    wrong = differences(kept[data], found, 0.0 if alike else ELSEWHERE)
    if wrong:
        raise OtherFiguresError(
            f"{len(wrong)} figures on {data} patients are not those of {KEPT.name}:\n  " + "\n  ".join(wrong[:20]),
            remedy="If that is meant, raise studies.store.REVISION and run `python -m studies.quick --write`.",
        )
    how = "to the last digit" if alike else f"within {ELSEWHERE} (they were made on {kept['machine']})"
    return f"{len(_flat(found))} figures on {data} patients are as they were, {how}"


@user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the figures of now in {KEPT.name}")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args(arguments)
    console, begin = Console(width=120), time.monotonic()
    kept: dict[str, Any] = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    root = find_data()
    print_of = None if root is None else fingerprint(root)
    real = print_of is not None and (chosen.write or kept.get("patients") == print_of)
    found = {"synthetic": figures(small_studies(STUDIES, ROUNDS), Source(None, SHAPE), chosen.processes)}
    if real:
        found["real"] = figures(small_studies(REAL_STUDIES, REAL_ROUNDS), Source(root), chosen.processes)
    if chosen.write:
        told = {"machine": kind(), "revision": REVISION, "patients": print_of or kept.get("patients")}
        KEPT.write_text(json.dumps({**kept, **told, **found}, indent=1) + "\n")
        console.print(f"written: {KEPT}")
    for data, own in found.items() if not chosen.write else ():
        console.print(check(kept, own, data))
    if not real:
        console.print("real patients are not at hand, or not those of the kept figures: not compared")
    console.print(f"{time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    restart_alike("studies.quick", sys.argv[1:])
    main()
