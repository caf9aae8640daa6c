"""The large bench without its size: what it refuses, counts and writes down."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from deploy.bench_floors import Rates, RoundBytes
from deploy.bench_large import LargeReading, check_room, details, encoder_size, memory_table, merged
from deploy.bench_rows import Case, Measured
from security.errors import ConfigurationError
from studies.paper_plan import HIDDEN, MRNA_PARAMETERS

MIB = 2**20
WORK = RoundBytes(keystream=200, sent=100, hashed=400, written=10, read=100)
MEASURED = Measured(
    WORK, 10, (60.0, 62.0), 10.0, 5.0, 9 * MIB, 2 * MIB, 20 * MIB, 2**30, 4.0, 4.0, Rates(100, 20, 100, 10, 100)
)
READING = LargeReading(
    MEASURED, {"coordinator": 4 * MIB, "brca-1": 5 * MIB}, {"coordinator": 9 * MIB, "brca-1": 7 * MIB}, {"brca-1": 3.0}
)
CASE = Case(9, MRNA_PARAMETERS, "masks", 1)


def test_the_paper_s_encoder_has_the_papers_size() -> None:
    assert encoder_size(HIDDEN["mrna"]) == MRNA_PARAMETERS == 513_695_440


def test_a_disk_that_is_too_small_is_refused_before_anything_starts(tmp_path: Path) -> None:
    check_room(tmp_path, 1)
    with pytest.raises(ConfigurationError, match="GB are free") as refused:
        check_room(tmp_path, 2**60)
    assert "--root" in refused.value.remedy


def test_every_process_is_written_down_with_what_it_held_above_idle() -> None:
    (entry,) = json.loads(json.dumps(details([(CASE, READING)])))
    assert entry["rss_anon_mib"]["brca-1"] == {"idle": 5.0, "peak": 7.0}
    assert entry["rss_anon_total_mib"] == 16.0
    assert entry["disk_peak_gib"] == 1.0
    assert entry["floor_seconds"] == {"keystream": 2.0, "tls": 5.0, "hash": 4.0, "disk": 2.0}
    assert math.isclose(entry["wall_seconds"][1], 62.0)


def test_entries_of_other_cases_stay() -> None:
    (entry,) = details([(CASE, READING)])
    (adam,) = details([(CASE, READING)], "fedadam")
    assert (adam["optimiser"], adam["disk_peak_bytes_per_parameter"]) == ("fedadam", 2.09)
    old = {k: v for k, v in entry.items() if k != "optimiser"}  # of before there were others
    assert merged([old, {**old, "dropouts": 0}], [adam]) == [old, {**old, "dropouts": 0}, adam]
    assert merged([old, adam], [entry]) == [adam, entry]


def test_the_table_shows_every_process(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(memory_table([(CASE, READING)]))
    said = console.export_text()
    assert "9 (+5)" in said
    assert "7 (+2)" in said
    assert "16" in said
