"""A run takes no more room on the disk than it has, and goes on by itself once there is more."""

from __future__ import annotations

import json

import pytest

from coordinator.directives import directive_for
from federation.in_memory import MemorySpool
from federation.vectors import StorageFullError, UploadKey
from security.secure_sum.phases import AggregatorPhase
from tests.coordinator.following import started


class Crowded(MemorySpool):
    """A spool whose disk takes so many bytes more."""

    free = 0
    asked: tuple[int, ...] = ()

    def check_room(self, needed: int) -> None:
        self.asked = (*self.asked, needed)
        if needed > self.free:
            raise StorageFullError("no room.", remedy="Free some.")


@pytest.mark.parametrize("full_in", [1, 2])
def test_a_round_does_not_begin_without_room_for_all_of_it_and_begins_by_itself_with_it(full_in: int) -> None:
    federation = started(rounds=2, server_optimiser={"kind": "fedadam"})
    federation.coordinator.spool = federation.run.spool = spool = Crowded()
    waited: list[int] = []
    spool.free = 1 << 40

    def after() -> None:
        run = federation.run
        if run.round == full_in - 1 and run.attempt is not None:
            spool.free = 0
        if run.attempt is None and run.round == full_in and not run.ended:
            assert run.phase == "waiting for room on the disk"
            assert "Free some" in run.reason
            assert directive_for(run, run.plan.roster[0], b"").WhichOneof("kind") == "wait"
            assert federation.coordinator.store.run(run.key).attempt == -1  # nothing was begun
            waited.append(run.round)
            if len(waited) == 2:
                federation.coordinator.restart()  # waiting goes on
            elif len(waited) == 4:
                spool.free = max(spool.asked)

    assert federation.run_to_end(after=after) == "finished"
    assert len(waited) >= 4
    assert federation.run.reason == ""
    assert [json.loads(r)["round"] for r in federation.run.records()] == [0, 1, 2]
    sizes = [
        part.length for part in federation.run.state.sums(federation.run.cohorts, federation.run.content, 1)[0].parts
    ]
    assert max(spool.asked) > 4 * sum(sizes) * (1 + 3)  # the opened sums, and w(t+1) with both slots


def test_the_uploads_are_gone_before_the_next_model_takes_room() -> None:
    federation = started(rounds=1)
    spooled: dict[str, list[bool]] = {}

    def after() -> None:
        run, spool = federation.run, federation.coordinator.spool
        if run.ended or run.round != 1 or run.attempt.machine.phase is not AggregatorPhase.OPENINGS:
            return
        place = f"{run.attempt.machine.current.name} folded" if run.attempt.folded else run.attempt.machine.current.name
        sum_, number = run.attempt.machine.current.name, run.attempt.number
        keys = [UploadKey(run.key, 1, number, sum_, i) for i in run.attempt.machine.current.alive]
        spooled.setdefault(place, []).append(any(spool.is_complete(k) for k in keys))

    assert federation.run_to_end(after=after) == "finished"
    assert set(spooled) == {"updates", "updates folded", "statistics"}
    assert {name: set(there) for name, there in spooled.items()} == {
        "updates": {True},
        "updates folded": {False},
        "statistics": {True},
    }
