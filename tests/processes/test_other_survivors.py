"""The coordinator back after a signed list, or from an old state, among other institutions than it knew."""

from __future__ import annotations

import json
import shutil

import pytest

from coordinator.store import LIST_SIGNED, SUM_OPENED
from federation.plan import Plan
from tests.processes.local import Bench, alive, records_of, until
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes

GONE, LISTED = "node-2", "node-7"


def signed_in(bench: Bench, name: str, run: bytes, round_number: int) -> list[tuple[str, int]]:
    """(sum, survivors) of every list that an institution signed in a round, by its own audit log."""
    joined, found = -1, []
    for entry in bench.audit(name):
        fields = entry["fields"]
        if fields.get("plan") != run.hex():
            continue
        if entry["event"] == "joined":
            joined = fields["round"]
        elif entry["event"] == "signed" and joined == round_number:
            found.append((fields["sum"], fields["count"]))
    return found


def listed_without_gone(bench: Bench, openings: float = 60.0) -> tuple[bytes, Plan]:
    """A run whose round 2 has a signed list of sum A without `GONE`, which is back; and a dead coordinator."""
    bench.start_coordinator("after-list-signed/2/updates")
    bench.start_node(GONE, dies="upload-updates/2")
    plan = bench.plan(rounds=3, openings=openings)
    run = bench.begin(plan)
    bench.wait_killed(GONE)
    bench.start_node(GONE)
    bench.wait_killed("coordinator")
    assert {p.kind for p in bench.points(run, 2)} == {LIST_SIGNED}
    return run, plan


def test_the_same_list_opens_though_others_are_there(bench: Bench) -> None:
    run, plan = listed_without_gone(bench)
    bench.process(LISTED).kill()
    bench.start_coordinator()
    # LISTED stays away until the sum is open: nobody needs it, and its spooled upload counts.
    until("sum A opens", lambda: SUM_OPENED in {p.kind for p in bench.points(run, 2)} or len(bench.committed(run)) > 2)
    bench.start_node(LISTED)
    assert bench.wait_ended(run).status == "finished"
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 2, 3]
    everybody = set(bench.names)
    assert alive(records[2], "updates") == everybody - {GONE}
    assert alive(records[2], "statistics") == everybody - {GONE, LISTED}
    assert alive(records[3], "updates") == everybody
    # Who stayed signed one list a sum, took it for the one that was opened, and left nothing.
    assert set(records[2]["withdrawn"]) == {GONE, LISTED}
    for name in everybody - {GONE, LISTED}:
        assert signed_in(bench, name, run, 2) == [("updates", 8), ("statistics", 7)]
    assert check_sums(bench, run, plan) == 3


def test_or_nothing_opens_where_too_few_of_the_shareholders_are_left(bench: Bench) -> None:
    run, plan = listed_without_gone(bench, openings=5.0)
    words = content(bench, run)
    lost = ["node-3", "node-4", "node-5", LISTED]
    for name in lost:
        bench.process(name).kill()
        bench.start_node(name)  # alive, and without the attempt's shares
    bench.start_coordinator()
    assert bench.wait_ended(run).status == "finished"
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 3]  # the number of round 2 is burnt
    assert alive(records[3], "updates") == set(bench.names)
    for name in set(bench.names) - {GONE, *lost}:
        assert signed_in(bench, name, run, 2) == [("updates", 8)]
    assert check_sums(bench, run, plan) == 2
    assert words  # there was content to compare with


def content(bench: Bench, run: bytes) -> set[str]:
    return {file.name for file in (bench.state / "content" / run.hex()).iterdir()}


@pytest.mark.parametrize(
    "later", ["after-commit/2", "after-commit/3", pytest.param("before-commit/2", marks=pytest.mark.slow)]
)
def test_a_coordinator_restored_from_an_earlier_round_is_refused(bench: Bench, later: str) -> None:
    bench.start_coordinator("after-commit/1")
    run = bench.begin(bench.plan(rounds=5))
    bench.wait_killed("coordinator")
    backup = bench.state.with_name("backup")
    shutil.copytree(bench.state, backup)
    bench.start_coordinator(later)
    bench.wait_killed("coordinator")
    shutil.rmtree(bench.state)
    backup.rename(bench.state)
    restored, kept = bench.committed(run), content(bench, run)
    assert [c.round for c in restored] == [0, 1]
    entries = {name: len(bench.audit(name)) for name in bench.names}

    bench.start_coordinator()
    summary = bench.wait_ended(run)
    assert summary.status == "failed"
    assert "state is old" in summary.reason
    assert bench.committed(run) == restored
    assert content(bench, run) == kept  # nothing was opened
    refusals = 0
    for name in bench.names:
        bench.wait_for_audit(name, "run-ended", run)
        since = bench.audit(name)[entries[name] :]
        assert not {"joined", "signed"} & {e["event"] for e in since}, json.dumps(since)
        refusals += any(
            e["fields"]["reason"] in ("stale-attempt", "transcript") for e in since if e["event"] == "refused"
        )
    assert refusals > len(bench.names) - 6  # so few that the threshold cannot be reached
