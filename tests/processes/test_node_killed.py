"""A node killed with -9 in every phase and started again: the others' round goes on, and it is back in the next."""

from __future__ import annotations

import pytest

from tests.processes.local import Bench, alive, records_of
from tests.processes.plaintext import check_sums

pytestmark = pytest.mark.processes

VICTIM = "node-4"


def events(bench: Bench, name: str, run: bytes, event: str) -> list[tuple[int, str]]:
    """(round, reason) of an institution's audit entries of this run."""
    found = [e for e in bench.audit(name) if e["event"] == event and e["fields"].get("plan") == run.hex()]
    return [(e["fields"].get("round", -1), e["fields"].get("reason", "")) for e in found]


@pytest.mark.parametrize(
    ("place", "in_cohort", "in_updates"),
    [
        ("keys", False, False),
        ("shares", False, False),
        ("training", True, False),
        ("upload-updates", True, False),
        ("signed-updates", True, True),
        ("upload-statistics", True, True),
    ],
)
def test_others_go_on_and_it_is_back_in_the_next_round(
    bench: Bench, place: str, in_cohort: bool, in_updates: bool
) -> None:
    bench.start_node(VICTIM, dies=f"{place}/2")
    plan = bench.plan(rounds=3)
    run = bench.begin(plan)
    bench.wait_killed(VICTIM)
    bench.start_node(VICTIM)
    summary = bench.wait_ended(run)
    assert (summary.status, summary.reason) == ("finished", "")
    records = records_of(bench.committed(run))
    assert sorted(records) == [0, 1, 2, 3]
    others = set(bench.names) - {VICTIM}
    two = records[2]
    assert (two["round"], two["attempt"]) == (2, 1)  # the others' attempt stood
    assert (VICTIM in two["cohort"]) == in_cohort
    assert alive(two, "updates") == others | ({VICTIM} if in_updates else set())
    assert alive(two, "statistics") == others
    # The node that came back had no keys of the attempt, said so, and was in the next one.
    assert set(two["withdrawn"]) == {VICTIM}
    assert [round_ for round_, _ in events(bench, VICTIM, run, "withdrawn")] == [2]
    for number in (0, 1, 3):
        assert all(alive(records[number], s) == set(bench.names) for s in records[number]["sums"])
    assert not any(events(bench, name, run, "withdrawn") for name in others)
    assert check_sums(bench, run, plan) == 3
