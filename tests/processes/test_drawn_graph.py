"""Nine real nodes that mask over a drawn graph, over mTLS; neighbours vanish after the key phase and in an upload."""

from __future__ import annotations

import pytest

from federation.settings import mask_graph
from security.secure_sum.graph import SparseGraph
from tests.processes.local import Bench, alive, records_of
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes


def test_neighbours_that_are_left_open_what_those_who_vanished_owe(bench: Bench) -> None:
    before, within = bench.names[1], bench.names[6]
    bench.start_node(before, dies="training/2")
    bench.start_node(within, dies="upload-updates/2")
    plan = bench.plan(rounds=3, complete_graph_up_to=8)
    assert mask_graph(plan) == SparseGraph(6, 3, complete_up_to=8)
    run = bench.begin(plan)
    for name in (before, within):
        bench.wait_killed(name)
        bench.start_node(name)
    summary = bench.wait_ended(run)
    assert (summary.status, summary.reason) == ("finished", "")
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 2, 3]
    assert all("reveals" in record["seconds"] for record in records.values())
    everybody = set(bench.names)
    assert [alive(records[r], "updates") for r in (1, 2, 3)] == [everybody, everybody - {before, within}, everybody]
    assert all("blending" in records[number] for number in (1, 2, 3))
    assert check_sums(bench, run, plan) == 3
