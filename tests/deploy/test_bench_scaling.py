"""The table of how cost grows: rows are replaced by size, and what is shown is what is kept."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from deploy.bench_scaling import main, parameters_for, save, table
from studies.scaling import ScalingRow


def test_a_row_takes_the_place_of_the_one_of_its_size(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "scaling.json"
    main(["5", "--parameters", "64", "--out", str(path)])
    (measured,) = [ScalingRow(**row) for row in json.loads(path.read_text())]
    assert (measured.institutions, measured.parameters, measured.dropouts) == (5, 64, 1)
    again, other = replace(measured, unmask_seconds=7.25), replace(measured, institutions=3)
    assert save(path, [again, other]) == [other, again]
    assert [ScalingRow(**row) for row in json.loads(path.read_text())] == [other, again]


def test_the_table_shows_each_row(tmp_path: Path) -> None:
    path = tmp_path / "scaling.json"
    main(["5", "--parameters", "64", "--out", str(path)])
    rows = [replace(ScalingRow(**json.loads(path.read_text())[0]), unmask_seconds=7.25)]
    shown = io.StringIO()
    Console(width=160, file=shown).print(table(rows))
    assert "7.25" in shown.getvalue()


def test_uploads_of_many_institutions_fit_in_memory() -> None:
    assert parameters_for(300, 1_000_000) == 1_000_000
    assert 4 * 1000 * parameters_for(1000, 1_000_000) <= 2 << 30
