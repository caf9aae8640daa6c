"""Nodes behind a line that breaks off again and again, in the middle of uploads and downloads: nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.bad_line import BadLine
from tests.processes.local import Bench, alive, records_of
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes

BEHIND = ("node-2", "node-5", "node-8")
PARAMETERS = 600_000
CUTS = 6  # each way; about one for each transfer of megabytes


@pytest.fixture
def line(bench: Bench) -> Iterator[BadLine]:
    """Three of the nine nodes reach the coordinator over it."""
    with BadLine(bench.local.port) as line:
        files = {name: bench.local.folder(name) / "node.toml" for name in BEHIND}
        good = {name: file.read_text() for name, file in files.items()}
        try:
            for name, file in files.items():
                file.write_text(good[name].replace(bench.local.address, f"127.0.0.1:{line.port}"))
                bench.start_node(name)
            yield line
        finally:
            for name, file in files.items():
                file.write_text(good[name])
                bench.start_node(name)


def test_every_sum_is_exact_though_connections_break_at_random_bytes(bench: Bench, line: BadLine) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    draw, passing = random.Random(seed), 2 * len(BEHIND) * 4 * PARAMETERS
    plan = bench.plan(rounds=2, parameters=PARAMETERS)
    line.cut_at(*([draw.randrange(passing) for _ in range(CUTS)] for _ in ("up", "down")))
    run = bench.begin(plan)
    summary = bench.wait_ended(run)
    assert (summary.status, summary.reason) == ("finished", ""), seed
    assert line.broken >= CUTS, seed
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 2], seed
    for record in records.values():
        assert (record["attempt"], record["withdrawn"]) == (1, {}), seed
        assert all(alive(record, s) == set(bench.names) for s in record["sums"]), seed
    assert check_sums(bench, run, plan) == 2
