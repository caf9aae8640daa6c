"""A run goes on whoever vanishes and whenever, and takes itself up wherever its coordinator was killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.directives import directive_for
from coordinator.observer import Observer
from coordinator.store import LIST_SHOWN, LIST_SIGNED, SUM_FOLDED, SUM_OPENED
from federation.in_memory import MemorySpool
from federation.vectors import StorageFullError, UploadKey
from institution_node.errors import NonFiniteTrainingError
from institution_node.trainer import Trajectory
from institution_node.training import LocalTrainer
from security.secure_sum.phases import AggregatorPhase
from security.secure_sum.upload import Upload
from tests.federation.plaintext_rounds import check_model
from tests.small_federation import SmallFederation, small_plan

SETUP = ("holders", "counts", "means", "squares", "weights")
PHASES = ("make_keys", "deal_shares", "contribute", "sign_list", "open_shares")


def kind(directive: pb.Directive) -> str:
    return str(directive.WhichOneof("kind"))


def place(federation: SmallFederation, directive: pb.Directive) -> tuple[int, str, str]:
    """(round, sum, kind) that a directive belongs to; keys and shares belong to no sum."""
    run, what = federation.run, kind(directive)
    if run.attempt is None:
        return run.round, "", what
    return run.round, "" if what in PHASES[:2] else run.attempt.machine.current.name, what


def started(**changes: object) -> SmallFederation:
    federation = SmallFederation(small_plan(7, **{"rounds": 2, **changes}))
    federation.enrol()
    return federation


class Heard(Observer):
    """Writes down what the coordinator's observer hears."""

    def __init__(self) -> None:
        self.burnt_rounds: list[tuple[int, str]] = []
        self.drops: list[tuple[str, str, str]] = []
        self.failures: list[tuple[int, int, str]] = []

    def burnt(self, round_: int, code: str) -> None:
        self.burnt_rounds.append((round_, code))

    def dropped(self, institution: str, phase: str, reason: str) -> None:
        self.drops.append((institution, phase, reason))

    def attempt_failed(self, round_: int, attempt: int, code: str) -> None:
        self.failures.append((round_, attempt, code))


# -- somebody vanishes ---------------------------------------------------------------------------------------------

GOES = [
    *((0, "", k) for k in PHASES[:2]),
    (0, "counts", "contribute"),
    (0, "means", "sign_list"),
    *((0, "weights", k) for k in PHASES[2:]),
    *((1, "", k) for k in PHASES[:2]),
    *((1, s, k) for s in ("updates", "statistics") for k in PHASES[2:]),
]


@pytest.mark.parametrize("at", GOES, ids=lambda at: "-".join(map(str, at)))
def test_an_institution_vanishes_in_a_phase_and_is_back_next_round(at: tuple[int, str, str]) -> None:
    federation = started()
    gone = federation.plan.roster[1]
    since: list[int] = []

    def acts(name: str, directive: pb.Directive) -> bool:
        if name == gone and place(federation, directive) == at and not since:
            since.append(federation.run.round)
        return not (name == gone and since and federation.run.round == since[0])

    assert federation.run_to_end(acts) == "finished"
    assert since == [at[0]]
    check_model(federation, 2)
    last = json.loads(federation.run.records()[-1])
    uploaded_weights = at[0] > 0 or at == (0, "weights", "sign_list") or at == (0, "weights", "open_shares")
    assert (gone in last["sums"]["updates"]["alive"]) == uploaded_weights  # else it sits out: it has no weight
    if not uploaded_weights:
        directive = federation.participants[gone].link.next_directive(federation.run.id, 0, 0.0)
        assert kind(directive) == "run_ended"
        assert gone not in federation.run.state.setup.institutions


def test_too_few_at_the_keys_is_tried_again_until_enough_are_there() -> None:
    federation = started()
    away = set(federation.plan.roster[:3])
    polls: list[int] = []

    def acts(name: str, directive: pb.Directive) -> bool:
        polls.append(federation.run.attempt.number)
        return name not in away or federation.run.attempt.number >= 3

    assert federation.run_to_end(acts) == "finished"
    record = json.loads(federation.run.records()[0])
    assert record["round"] == 0
    assert record["attempt"] == 3
    assert len(record["cohort"]) == 7


def test_too_few_for_ever_stands_in_a_clear_phase() -> None:
    federation = started()
    away = set(federation.plan.roster[:3])
    assert federation.run_to_end(lambda name, d: name not in away, patience=60) == "standing"
    assert federation.run.phase == "keys"
    assert federation.run.status == "running"
    assert not any(m.kind == "upload" for m in federation.sent)


@pytest.mark.parametrize("phase", ["sign_list", "open_shares"])
def test_a_failed_sum_of_updates_burns_the_round_number(phase: str) -> None:
    """Too few sign, or open: the list was shown, so the number is never used again, and w stays as it was."""
    federation = SmallFederation(small_plan(7, rounds=2), observer=(heard := Heard()))
    federation.enrol()
    away = set(federation.plan.roster[:3])

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name in away and place(federation, directive) == (1, "updates", phase))

    assert federation.run_to_end(acts) == "finished"
    assert [r for r, _ in heard.burnt_rounds] == [1]
    rounds = [json.loads(r)["round"] for r in federation.run.records()]
    assert rounds == [0, 2]
    assert not any(told.refused for told in federation.told.values())


@pytest.mark.parametrize("phase", ["contribute", "sign_list", "open_shares"])
def test_failed_statistics_commit_the_round_and_the_last_losses_stand(phase: str) -> None:
    federation = started(rounds=3)
    away = set(federation.plan.roster[: 6 if phase == "contribute" else 3])

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name in away and place(federation, directive) == (2, "statistics", phase))

    assert federation.run_to_end(acts) == "finished"
    check_model(federation, 3)
    one, two, three = (json.loads(r) for r in federation.run.records()[1:])
    assert "blending" in one
    assert "blending" not in two
    assert "blending" in three
    assert two["opened"] == ["updates"]
    assert not any(told.refused for told in federation.told.values())


def test_who_missed_the_updates_is_not_waited_for_in_the_statistics() -> None:
    """Its losses would be of a model that it helped nothing to; nobody stands until the deadline for them."""
    federation = started(rounds=1)
    late = federation.plan.roster[0]
    began = federation.coordinator.now

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name == late and place(federation, directive) == (1, "updates", "contribute"))

    assert federation.run_to_end(acts) == "finished"
    record = json.loads(federation.run.records()[-1])
    assert late not in record["sums"]["updates"]["alive"]
    assert late not in record["sums"]["statistics"]["alive"]
    assert len(record["sums"]["statistics"]["alive"]) == 6
    waited = (federation.coordinator.now - began).total_seconds()
    assert waited < 2 * federation.plan.deadlines.upload


def test_a_component_below_the_floor_stays_shut_and_stays_as_it_was() -> None:
    federation = started(rounds=1)
    away = set(federation.plan.roster[:2])  # of four owners of everything but mrna

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name in away and place(federation, directive) == (1, "updates", "contribute"))

    before: dict[str, str] = {}

    def after() -> None:
        if federation.run.round == 1 and not before:
            before.update({n: c.weights for n, c in federation.run.state.components.items()})

    assert federation.run_to_end(acts, after=after) == "finished"
    now = {n: c.weights for n, c in federation.run.state.components.items()}
    moved = {name for name in now if now[name] != before[name]}
    assert moved == {"encoder/mrna", "classifier/mrna"}


def test_everybody_refusing_the_plan_ends_the_run_with_the_reason() -> None:
    federation = SmallFederation(small_plan(7, rounds=1))
    for name in federation.plan.roster:
        federation.participants[name].link.enrol(federation.run.id, "plan-not-accepted")
    assert federation.run.status == "failed"
    assert "accept the plan" in federation.run.reason


def test_too_few_for_the_weights_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has no weight sits out; fewer than the threshold could never open anything again."""
    federation = started()
    for name in federation.plan.roster[:3]:
        link = federation.participants[name].link
        upload = link.upload

        def lost(run: bytes, masked: Upload, upload: Callable[..., None] = upload) -> None:
            if federation.run.attempt.machine.current.name != "weights":
                upload(run, masked)

        monkeypatch.setattr(link, "upload", lost)
    assert federation.run_to_end() == "failed"
    assert "weights" in federation.run.reason


# -- the coordinator is killed -------------------------------------------------------------------------------------


def restarting(federation: SmallFederation, when: Callable[[], bool]) -> Callable[[], None]:
    """Restarts the coordinator the first time that `when` holds."""
    done: list[bool] = []

    def after() -> None:
        if not done and when():
            done.append(True)
            federation.coordinator.restart()

    return after


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


def test_a_round_that_nobody_can_train_ends_the_run_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(self: LocalTrainer, *arguments: object) -> Trajectory[Any]:
        raise NonFiniteTrainingError("the loss is not finite.")

    monkeypatch.setattr(LocalTrainer, "train", diverges)
    federation = SmallFederation(small_plan())
    federation.enrol()
    assert federation.run_to_end() == "failed"
    assert "non-finite-training" in federation.run.reason
    assert len(federation.withdrawals()) == 3 * len(federation.plan.roster)
