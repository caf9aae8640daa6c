"""A run takes itself up wherever its coordinator was killed, and shows one list only."""

from __future__ import annotations

import json

import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.store import LIST_SHOWN, LIST_SIGNED, SUM_FOLDED, SUM_OPENED
from tests.coordinator.following import SETUP, place, restarting, started
from tests.federation.plaintext_rounds import check_model

MOMENTS = [
    *((r, "", phase, 3) for r in (0, 1) for phase in ("keys", "shares")),
    *((0, "counts", phase, 3) for phase in ("uploads", "signatures")),
    *((0, "weights", phase, 0) for phase in ("signatures", "openings")),
    *((1, "updates", phase, count) for phase in ("uploads", "signatures") for count in (0, 3)),
    (1, "updates", "openings", 0),
    *((1, "statistics", phase, 3) for phase in ("uploads", "signatures", "openings")),
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda m: "-".join(map(str, m)))
def test_a_killed_coordinator_takes_the_run_up(moment: tuple[int, str, str, int]) -> None:
    round_, sum_name, phase, count = moment
    federation = started()

    def when() -> bool:
        run = federation.run
        if run.attempt is None or run.round != round_:
            return False
        machine = run.attempt.machine
        current = machine.current
        if machine.phase.value != phase or (sum_name and current.name != sum_name):
            return False
        reached = {
            "keys": len(machine.keys),
            "shares": len(machine.shares),
            "uploads": len(current.completed),
            "signatures": len(current.signatures),
            "openings": len(current.openings),
        }
        return reached[phase] >= count

    restarts = federation.coordinator.starts
    assert federation.run_to_end(after=restarting(federation, when)) == "finished"
    assert federation.coordinator.starts == restarts + 1
    rounds = [json.loads(r)["round"] for r in federation.run.records()]
    assert rounds[0] == 0
    assert len(rounds) >= 2
    assert rounds[-1] >= 2
    if rounds == [0, 1, 2]:
        check_model(federation, 2)
    else:  # the list was shown and not yet durable: that number is burnt
        assert rounds == [0, 2]
        assert (round_, phase) == (1, "signatures")


@pytest.mark.parametrize("point", [LIST_SIGNED, SUM_FOLDED, SUM_OPENED])
def test_killed_at_a_durable_point_loses_nothing(point: str) -> None:
    federation = started()
    saved: set[tuple[int, str]] = set()

    def after() -> None:
        run = federation.run
        if run.ended:
            return
        for p in federation.coordinator.store.points(run.key, run.round):
            if p.kind == point and (run.round, p.sum) not in saved:
                saved.add((run.round, p.sum))
                federation.coordinator.restart()

    assert federation.run_to_end(after=after) == "finished"
    every = {(0, s) for s in SETUP} | {(r, s) for r in (1, 2) for s in ("updates", "statistics")}
    last = {(0, "weights"), (1, "statistics"), (2, "statistics")}  # opened and committed in one step
    updates = {(1, "updates"), (2, "updates")}
    assert saved == {LIST_SIGNED: every, SUM_FOLDED: updates, SUM_OPENED: every - last}[point]
    assert [json.loads(r)["round"] for r in federation.run.records()] == [0, 1, 2]
    check_model(federation, 2)


def test_killed_again_and_again() -> None:
    """The run still ends. Numbers may be burnt, and what was committed once stays."""
    federation = started(rounds=1)
    records: list[tuple[str, ...]] = []
    steps = [0]

    def after() -> None:
        steps[0] += 1
        if steps[0] % 37 == 0 and not federation.run.ended:
            federation.coordinator.restart()
        now = federation.run.records()
        if records:
            assert now[: len(records[-1])] == records[-1]
        records.append(now)

    status = federation.run_to_end(after=after)
    assert status == "finished"
    assert federation.coordinator.starts >= 4


def test_after_the_list_is_signed_only_that_list_opens() -> None:
    """Killed there, and others are back than before: the gone stay gone, and no second list is shown."""
    federation = started(rounds=1)
    early, late = federation.plan.roster[0], federation.plan.roster[6]
    lists: set[bytes] = set()
    killed: list[bool] = []

    def acts(name: str, directive: pb.Directive) -> bool:
        at = place(federation, directive)
        if at == (1, "updates", "sign_list"):
            lists.add(directive.sign_list.list)
        if at == (1, "updates", "open_shares"):
            lists.add(directive.open_shares.list)
        if name == early and at == (1, "updates", "contribute") and not killed:
            return False  # not here before, here after
        return not (name == late and killed and federation.run.round == 1)  # here before, gone after

    def after() -> None:
        run = federation.run
        if not killed and run.round == 1 and federation.coordinator.store.points(run.key, 1):
            killed.append(True)
            federation.coordinator.restart()

    assert federation.run_to_end(acts, after=after) == "finished"
    assert killed
    assert len(lists) == 1
    record = json.loads(federation.run.records()[-1])
    assert early not in record["sums"]["updates"]["alive"]
    assert late in record["sums"]["updates"]["alive"]
    check_model(federation, 1)


def test_before_the_list_is_shown_the_attempt_moves_on_and_nobody_is_masked_twice_alike() -> None:
    federation = started(rounds=1)

    def when() -> bool:
        run = federation.run
        return bool(run.round == 1 and run.attempt and len(run.attempt.machine.current.completed) == 4)

    assert federation.run_to_end(after=restarting(federation, when)) == "finished"
    record = json.loads(federation.run.records()[-1])
    assert (record["round"], record["attempt"]) == (1, 2)
    uploads: dict[str, set[bytes]] = {}
    for message in federation.sent:
        if message.kind == "upload" and message.round == 1 and message.attempt in (1, 2):
            uploads.setdefault(message.institution, set()).add(message.data)
    assert sum(len(u) for u in uploads.values()) == 4 + 7 + 7


def test_the_cohort_of_the_next_attempt_may_hold_more_parts_than_the_first_had() -> None:
    """What was below the floor in one attempt is encoded when another attempt has enough owners for it."""
    federation = started(rounds=1)
    away = set(federation.plan.roster[:2])  # two of the four that own image, clinical and their classifier

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name in away and federation.run.round == 1 and federation.run.attempt.number == 1)

    def when() -> bool:
        run = federation.run
        return bool(run.round == 1 and run.attempt and run.attempt.machine.current.completed)

    assert federation.run_to_end(acts, after=restarting(federation, when)) == "finished"
    check_model(federation, 1)
    record = json.loads(federation.run.records()[-1])
    assert record["attempt"] == 2
    assert len(record["sums"]["updates"]["alive"]) == 7


def test_a_run_that_was_over_is_over_after_a_restart() -> None:
    federation = started(rounds=1)
    assert federation.run_to_end() == "finished"
    final = federation.run.final()
    federation.coordinator.restart()
    assert federation.run.status == "finished"
    assert federation.run.final() == final


def test_killed_between_the_last_commit_and_the_end_begins_no_further_round() -> None:
    federation = started(rounds=1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    federation.run.stop = die  # after the commit's transaction
    with pytest.raises(KeyboardInterrupt):
        federation.run_to_end()
    federation.coordinator.restart()
    assert federation.run.status == "finished"
    assert [json.loads(r)["round"] for r in federation.run.records()] == [0, 1]


def test_the_shown_list_of_round_0_is_durable_because_that_round_cannot_be_burnt() -> None:
    federation = started(rounds=1)
    kinds: set[str] = set()

    def after() -> None:
        kinds.update(p.kind for p in federation.coordinator.store.points(federation.run.key, 0))

    assert federation.run_to_end(after=after) == "finished"
    assert kinds == {LIST_SHOWN, LIST_SIGNED, SUM_OPENED}
