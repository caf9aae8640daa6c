"""Nine real nodes whose sums are encrypted, over mTLS; who should decrypt is killed, and the next holder does."""

from __future__ import annotations

import pytest

from tests.processes.local import Bench, alive, records_of
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes


def test_the_opened_sums_are_exact_though_the_first_holder_of_the_key_is_killed(bench: Bench) -> None:
    first = bench.names[0]
    bench.start_node(first, dies="signed-updates/2")
    plan = bench.plan(rounds=3, encrypted=("weights", "updates", "statistics"))
    assert plan.roster[0] == first
    run = bench.begin(plan)
    bench.wait_killed(first)
    bench.start_node(first)
    summary = bench.wait_ended(run)
    assert (summary.status, summary.reason) == ("finished", "")
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 2, 3]
    assert alive(records[2], "updates") == set(bench.names)  # it had uploaded
    assert alive(records[2], "statistics") == set(bench.names) - {first}
    assert set(records[2]["withdrawn"]) == {first}
    assert all("blending" in records[number] for number in (1, 2, 3))
    assert check_sums(bench, run, plan) == 3
