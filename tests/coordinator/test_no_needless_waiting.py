"""Deadlines are for those who may still come, not for those who have said that they cannot."""

from __future__ import annotations

import json
from datetime import timedelta

from security.secure_sum.phases import AggregatorPhase
from studies.memory_coordinator import EPOCH
from tests.small_federation import SmallFederation, small_plan


def test_keys_that_cannot_come_are_not_waited_for() -> None:
    """Killed after the list was signed at institutions and before it was durable: all who signed are stale."""
    plan = small_plan()
    federation = SmallFederation(plan)
    federation.enrol(*plan.roster)
    restarted: list[int] = []

    def after() -> None:
        run = federation.run
        if restarted or run.attempt is None or run.round != 1:
            return
        machine = run.attempt.machine
        spare = len(plan.institutions) - plan.secure_sum.threshold
        if machine.phase is AggregatorPhase.SIGNATURES and len(machine.current.signatures) > spare:
            restarted.append(run.round)
            federation.coordinator.restart()

    assert federation.run_to_end(after=after) == "finished"
    assert restarted == [1]
    assert [json.loads(r)["round"] for r in federation.run.records()][:2] == [0, 2]
    # In memory, time passes only while nobody can do anything.
    assert federation.coordinator.now - EPOCH < timedelta(seconds=plan.deadlines.keys)
