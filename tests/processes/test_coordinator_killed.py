"""The coordinator killed with -9 in every phase and started again: the run goes on by itself, and loses nothing."""

from __future__ import annotations

import pytest

from tests.processes.local import Bench, alive, records_of
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes

PHASES = {
    "after-keys/2": "keys",
    "after-shares/2": "shares",
    "in-upload/2/updates": "upload A",
    "before-list-signed/2/updates": "list signed by institutions, not decided",
    "after-list-signed/2/updates": "list signed",
    "before-sum-opened/2/updates": "opened, not committed",
    "after-sum-opened/2/updates": "between A and B",
    "in-upload/2/statistics": "upload B",
    "before-commit/2": "before the commit",
    "after-commit/2": "after the commit",
}
RARER = (
    "after-attempt-begun/2",
    "after-uploads/2/updates",
    "after-openings/2/updates",
    "after-fold/2/updates",
    "before-sum-folded/2/updates",
    "after-sum-folded/2/updates",  # the uploads are there still, and not needed any more
    "before-list-signed/2/statistics",
    "after-list-signed/2/statistics",
    "after-openings/2/statistics",
    "after-fold/2/statistics",
    "before-sum-opened/2/statistics",
    "after-sum-opened/2/statistics",
    # In round 0, which cannot be burnt:
    "after-keys/0",
    "after-shares/0",
    "after-uploads/0/means",
    "after-list-signed/0/holders",
    "after-sum-opened/0/weights",
    "before-commit/0",
)


def killed_and_started_again(bench: Bench, failpoint: str) -> None:
    bench.start_coordinator(failpoint)
    plan = bench.plan(rounds=3)
    run = bench.begin(plan)
    bench.wait_killed("coordinator")
    before = bench.committed(run)
    bench.start_coordinator()
    summary = bench.wait_ended(run)
    assert (summary.status, summary.reason) == ("finished", "")
    after = bench.committed(run)
    assert after[: len(before)] == before  # records and states, byte for byte
    at = int(failpoint.split("/")[1])
    assert len(before) == at + failpoint.startswith("after-commit")
    records = records_of(after)
    assert set(records) <= {0, 1, 2, 3}
    assert {0, 1, 3} <= set(records)
    # Everybody is there in every round: only the coordinator went away.
    assert all(alive(r, s) == set(bench.names) for r in records.values() for s in r["sums"]), records
    assert check_sums(bench, run, plan) >= 2


@pytest.mark.parametrize("failpoint", PHASES, ids=list(PHASES.values()))
def test_the_run_goes_on_after_the_coordinator_died(bench: Bench, failpoint: str) -> None:
    killed_and_started_again(bench, failpoint)


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", RARER)
def test_and_at_every_other_place(bench: Bench, failpoint: str) -> None:
    killed_and_started_again(bench, failpoint)
