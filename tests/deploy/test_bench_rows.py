"""Rows of the bench: medians, ratios and passes, and a whole case on the in-memory transport."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from rich.console import Console

from deploy import bench_in_memory
from deploy.bench import RESULTS, SETS, cases, passes_of, read_rows, rounds_of, save
from deploy.bench_docs import BEGIN, END, PAGE, markdown, updated, with_rows
from deploy.bench_floors import Rates, RoundBytes
from deploy.bench_rates import RateMeter
from deploy.bench_rows import Case, Measured, at_one_rate, merge, rows_of, sent, table
from security.errors import ConfigurationError

RATES = Rates(1e11, 2e9, 8e9, 1e10, 2e10)
WORK = RoundBytes(sent=72_000_000, hashed=80_000_000, written=40_000_000)
MIB = 2**20


def measured(*seconds: float, peak: float = 100 * MIB, cpu: float = 1.0) -> Measured:
    return Measured(WORK, 9_000_000, seconds, cpu, cpu / 10, peak, peak / 2, 10 * peak, peak, 36e6, 36e6, RATES)


MASKS, NONE = Case(9, 1_000_000), Case(9, 1_000_000, "none")


def test_a_row_is_the_median_of_all_passes_and_told_as_a_ratio() -> None:
    readings = [(NONE, measured(1.0, 3.0)), (MASKS, measured(2.0, 2.0)), (NONE, measured(2.0)), (MASKS, measured(9.0))]
    none, masks = rows_of(readings)
    assert (none.wall_seconds, none.ratio_to_none, none.rounds) == (2.0, 1.0, 3)
    assert (masks.wall_seconds, masks.ratio_to_none, masks.rounds) == (2.0, 1.0, 3)
    assert masks.cpu_seconds == pytest.approx(1.0 + 9 * 0.1)
    assert masks.bytes_up_per_parameter == 4.0


def test_half_words_and_parts_are_told_as_a_ratio_to_everything_sent_bare() -> None:
    half, tenth = Case(9, 1_000_000, word_bits=16), Case(9, 1_000_000, fraction=0.1)
    rows = rows_of([(NONE, measured(1.0)), (half, measured(0.5)), (tenth, measured(0.2))])
    assert [(sent(r), r.ratio_to_none) for r in rows] == [("32 bit", 1.0), ("16 bit", 0.5), ("10%, 32 bit", 0.2)]
    assert len(merge(rows, rows_of([(MASKS, measured(1.0))]))) == 4  # none takes another's place


def test_peaks_of_passes_are_the_largest_and_processor_time_the_mean_by_rounds() -> None:
    both = measured(1.0, peak=MIB, cpu=1.0) + measured(1.0, 1.0, 1.0, peak=3 * MIB, cpu=3.0)
    assert (both.coordinator_peak, both.cpu_coordinator) == (3 * MIB, 2.5)


def test_the_ratio_to_the_floor_is_wall_over_the_largest_floor() -> None:
    (row,) = rows_of([(MASKS, measured(1.0))])
    assert (row.floor, row.floor_seconds) == ("tls", round(WORK.sent / RATES.tls, 4))
    assert row.ratio_to_floor == round(1.0 / (WORK.sent / RATES.tls), 2)
    assert row.ratio_to_none is None


def test_floors_can_be_at_the_median_rates_of_the_whole_run() -> None:
    slow, fast = (replace(measured(1.0), rates=replace(RATES, tls=rate)) for rate in (1e9, 9e9))
    rows = rows_of(at_one_rate([(NONE, slow), (MASKS, measured(1.0)), (Case(3, 1000), fast)]))
    assert {r.floor_seconds for r in rows} == {round(WORK.sent / RATES.tls, 4)}
    assert at_one_rate([]) == []


def test_rows_of_other_cases_stay_in_the_file_and_those_of_the_same_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "results.json"
    large = Case(9, 513_695_440)
    save(path, rows_of([(large, measured(90.0)), (MASKS, measured(1.0))]))
    save(path, rows_of([(NONE, measured(0.5)), (MASKS, measured(2.0))]))
    rows = read_rows(path)
    assert [(r.parameters, r.backend, r.wall_seconds) for r in rows] == [
        (1_000_000, "none", 0.5),
        (1_000_000, "masks", 2.0),
        (513_695_440, "masks", 90.0),
    ]
    assert {"institutions", "parameters", "backend", "dropouts", "wall_seconds", "ratio_to_none", "cpu_seconds"} <= set(
        json.loads(path.read_text())[0]
    )


def test_rows_of_an_older_bench_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"institutions": 9, "parameters": 1000, "wall_seconds": 1.0}]))
    assert [r.parameters for r in save(path, rows_of([(MASKS, measured(1.0))]))] == [1_000_000]


def test_the_order_of_a_table_does_not_depend_on_the_order_of_measuring() -> None:
    rows = rows_of([(MASKS, measured(1.0)), (NONE, measured(1.0)), (Case(3, 1000), measured(1.0))])
    assert merge(rows, []) == merge([], list(reversed(rows)))


def test_large_cases_run_once_and_each_size_begins_without_masks() -> None:
    assert [c.backend for c in cases([1000], [9], [0, 1])] == ["none", "masks", "masks"]
    assert passes_of(MASKS, 3) == 3
    assert passes_of(replace(MASKS, parameters=100_000_000), 3) == 1


def test_a_set_names_every_case_once_and_no_ratio_is_left_without_its_base() -> None:
    for made in SETS.values():
        assert len(set(made())) == len(made())
    everything = {c for made in SETS.values() for c in made()}
    assert {c.comparable for c in everything} <= everything
    assert {c.institutions for c in everything} == {3, 9, 32, 50, 100, 300}
    assert all(rounds_of(c) >= 1 for c in everything)


def test_the_table_says_what_is_not_known(tmp_path: Path) -> None:
    unknown = replace(measured(1.0), coordinator_peak=None, node_peak=None, all_peaks=None, disk_peak=None)
    rows = rows_of([(Case(100, 1_000_000, transport="memory"), unknown)])
    console = Console(width=130, record=True, file=(tmp_path / "out").open("w"))
    console.print(table(rows))
    said = console.export_text()
    assert "memory" in said
    assert "–" in said
    assert json.loads(json.dumps(asdict(rows[0])))["coordinator_peak_mib"] is None


def test_the_committed_page_shows_the_committed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    assert read_rows(RESULTS), "make bench"
    page = PAGE.read_text()
    assert updated(page) == page, "make docs"
    assert "| 1000 | 536,870 |" in page


def test_a_page_without_a_place_for_rows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no place"):
        with_rows("# Performance\n", "table")
    page = f"a\n{BEGIN}\nold\n{END}\nb\n"
    told = markdown(rows_of([(MASKS, measured(1.0))]))
    made = with_rows(page, told)
    assert made == with_rows(made, told)
    assert "| 9 | 1,000,000 | masks | grpc | 32 bit | 0 | 1 | 1.00 | – |" in made
    assert "old" not in made


def test_a_case_in_memory_moves_the_bytes_that_the_floors_count(tmp_path: Path) -> None:
    with RateMeter(tmp_path, seconds=0.01, disk_bytes=1 << 20) as meter:
        found = [(c, bench_in_memory.measure(c, 2, meter)) for c in cases([40_000], [4], [0, 1], "memory")]
    none, masks, dropout = (m for _, m in found)
    for case, m in found:
        up, down = m.owned * 4 * (1 - case.dropouts / case.institutions), m.owned * 4
        assert (m.up, m.down) == pytest.approx((up, down), rel=0.03)  # the rest: sum B, the heads
        assert m.work.sent == 0 < m.work.hashed
        assert len(m.seconds) == 2
        assert m.cpu_institution > 0 < m.cpu_coordinator
        assert all(rate > 0 for rate in vars(m.rates).values())
    assert masks.up == none.up
    assert dropout.up < masks.up
