"""The bench's own federations: a short soak, and more nodes than anybody runs on one machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from coordinator.store import Store
from deploy.bench_federation import BenchFederation, bench_federation, measure
from deploy.bench_rates import RateMeter
from deploy.bench_rows import Case
from deploy.bench_soak import soak

MIB = 2**20


def test_memory_and_open_files_end_where_they_were_after_round_ten(tmp_path: Path) -> None:
    drifts = soak(institutions=3, parameters=300_000, rounds=40, root=tmp_path, seconds=100.0)
    assert [d.name for d in drifts] == ["coordinator", "node-1", "node-2", "node-3"]
    assert all(d.passed for d in drifts), drifts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_nodes_over_grpc_mask_over_a_drawn_graph_while_a_third_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []
    start_all = BenchFederation.start_all

    def remember(*arguments: object) -> dict[str, int]:
        pids = start_all(*arguments)  # type: ignore[arg-type] # passed on as they came
        started.extend(pids.values())
        return pids

    monkeypatch.setattr(BenchFederation, "start_all", remember)
    gone = 17  # as many as the graph has to stand: it has 20 neighbours
    case = Case(50, 200_000, dropouts=gone)
    with RateMeter(tmp_path, seconds=0.05, disk_bytes=MIB) as meter, bench_federation(tmp_path, 50) as (f, keys):
        m = measure(f, keys, case, 2, meter, 600.0, complete_graph_up_to=49)
    store = Store(f"sqlite:///{f.folder('coordinator') / 'state' / 'state.sqlite'}")
    (run,) = store.runs()
    records = [json.loads(committed.record) for committed in store.rounds(run.run)]
    store.close()
    assert [len(r["sums"]["updates"]["alive"]) for r in records if r["round"]] == [50 - gone] * 3
    assert all(len(r["cohort"]) == 50 and "reveals" in r["seconds"] for r in records)
    assert len(m.seconds) == 2
    assert m.work.sent == pytest.approx(m.up + m.down, rel=0.03)
    assert m.coordinator_peak is not None
    assert m.coordinator_peak < 512 * MIB
    assert m.node_peak is not None
    assert m.node_peak < 300 * MIB
    assert len(started) == 51
    assert not [pid for pid in started if os.path.exists(f"/proc/{pid}")]
