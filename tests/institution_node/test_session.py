"""What an institution refuses a lying or restored coordinator, and how its own restarts leave an attempt."""

from __future__ import annotations

import copy
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from coordinator.store import Store
from federation.rounds import RoundError, opened_by
from institution_node.session import WithdrawnError
from security.errors import ConsiliumError
from security.secure_sum.errors import StaleAttemptError, TranscriptError
from tests.coordinator.test_run import kind, place
from tests.federation.plaintext_rounds import check_model
from tests.small_federation import SmallFederation, small_plan

VICTIM = 1


class ReachedError(Exception):
    """The place where a test wants to be."""


def started(folder: Path | None = None, **changes: object) -> SmallFederation:
    federation = SmallFederation(small_plan(7, **{"rounds": 2, **changes}), folder=folder)
    federation.enrol()
    return federation


def until(federation: SmallFederation, round_: int, phase: str, name: str) -> pb.Directive:
    """Drives everybody until `name` is about to act on a directive of this kind in this round; returns it."""
    found: list[pb.Directive] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and kind(directive) == phase and federation.run.round == round_:
            found.append(directive)
            raise ReachedError
        return True

    with pytest.raises(ReachedError):
        federation.run_to_end(acts)
    return found[0]


def refusal(federation: SmallFederation, name: str, directive: pb.Directive) -> ConsiliumError:
    """What a node says to a directive that it must not act on: it withdraws, with a code and nothing else."""
    before = len(federation.told[name].refused)
    reply = federation.participants[name].session.handle(directive)
    assert reply.upload is None
    assert reply.message is not None
    assert reply.message.WhichOneof("message") == "withdrawal"
    error = federation.told[name].refused[before]
    withdrawal = reply.message.withdrawal
    assert withdrawal.code == error.code
    assert {f.name for f, _ in withdrawal.ListFields()} <= {"round", "attempt", "code"}
    # Nothing of that attempt is left here: whatever comes next, nothing more is masked, signed or opened.
    again = federation.participants[name].session.handle(directive)
    assert again.upload is None
    assert again.message is None or again.message.WhichOneof("message") == "withdrawal"
    return error


# -- the coordinator lies about what a round begins with -----------------------------------------------------------


def edited(directive: pb.Directive, change: Callable[[round_pb2.RoundStart], None]) -> pb.Directive:
    start = round_pb2.RoundStart.FromString(directive.make_keys.round_start)
    change(start)
    lie = pb.Directive()
    lie.CopyFrom(directive)
    lie.make_keys.round_start = start.SerializeToString(deterministic=True)
    return lie


def other_weights(federation: SmallFederation) -> Callable[[round_pb2.RoundStart], None]:
    def change(start: round_pb2.RoundStart) -> None:
        size = federation.coordinator.content.size(start.components[0].weights)
        start.components[0].weights = federation.coordinator.content.put(bytes(size))

    return change


@pytest.mark.parametrize("round_", [1, 2])
def test_another_model_than_the_seed_or_the_last_sum_gave_is_refused(round_: int) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, round_, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, other_weights(federation))), TranscriptError)


def test_another_optimiser_state_is_refused() -> None:
    federation = started(server_optimiser={"kind": "fedavgm"})
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)

    def change(start: round_pb2.RoundStart) -> None:
        del start.components[0].slots["momentum"]

    assert isinstance(refusal(federation, name, edited(honest, change)), RoundError)


def too_small(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] = 3  # α would be above 1


def zero(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] = 0


def without_me(start: round_pb2.RoundStart) -> None:
    del start.setup.institutions[VICTIM]


def other_schema(start: round_pb2.RoundStart) -> None:
    start.setup.schema = "0" * 64


@pytest.mark.parametrize("change", [too_small, zero, without_me, other_schema])
def test_another_setup_than_round_0_gave_is_refused_and_not_remembered(
    change: Callable[[round_pb2.RoundStart], None],
) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, change)), TranscriptError | RoundError)
    assert federation.memory(name).setup is None  # the true one is still taken
    later = pb.Directive()
    later.CopyFrom(honest)
    reply = federation.participants[name].session.handle(later)
    assert reply.message is not None
    assert reply.message.WhichOneof("message") == "keys"


def one_more(start: round_pb2.RoundStart) -> None:
    for cohort in start.setup.patients:
        start.setup.patients[cohort] += 1  # as likely as the true one, and not what was settled


@pytest.mark.parametrize("change", [too_small, other_schema, one_more])
def test_a_setup_that_changes_later_is_refused(change: Callable[[round_pb2.RoundStart], None]) -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 2, "make_keys", name)
    assert isinstance(refusal(federation, name, edited(honest, change)), TranscriptError)


@pytest.mark.parametrize(
    "figures",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"scores": 3, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": -1}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": NaN}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {"mrna": "x"}, "median_squared_overfitting": null, "temperatures": {}}',
        b'{"scores": {}, "median_squared_overfitting": [1], "temperatures": {}}',
        b"[" * 100_000,
    ],
)
def test_figures_that_are_none_are_a_typed_refusal(figures: bytes) -> None:
    federation = _at_round_1()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)

    def change(start: round_pb2.RoundStart) -> None:
        start.figures = figures

    assert isinstance(refusal(federation, name, edited(honest, change)), RoundError)


_kept: list[SmallFederation] = []


def _at_round_1() -> SmallFederation:
    """One federation after round 0 for all the cases that leave it as it was."""
    if not _kept:
        _kept.append(started())
    return _kept[0]


def cut_weights(federation: SmallFederation) -> Callable[[round_pb2.RoundStart], None]:
    def change(start: round_pb2.RoundStart) -> None:
        start.components[0].weights = federation.coordinator.content.put(b"abc")

    return change


def test_content_of_another_size_is_a_typed_refusal() -> None:
    """A node that was away fetches w(t); three bytes are no model."""
    federation = started()
    name = federation.plan.roster[VICTIM]

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == name and federation.run.round == 1)

    found: list[pb.Directive] = []

    def stop(who: str, directive: pb.Directive) -> bool:
        if who == name and federation.run.round == 2 and kind(directive) == "make_keys":
            found.append(directive)
            raise ReachedError
        return acts(who, directive)

    with pytest.raises(ReachedError):
        federation.run_to_end(stop)
    assert isinstance(refusal(federation, name, edited(found[0], cut_weights(federation))), RoundError)


def test_two_institutions_shown_different_figures_open_nothing() -> None:
    """Half is shown other DGB figures: their masks cannot cancel, their keys do not fit, and nobody opens a sum."""
    federation = started(rounds=1)
    half = set(federation.plan.roster[:3])

    def lie(name: str, directive: pb.Directive) -> None:
        if name in half and kind(directive) == "make_keys" and federation.run.round == 1:
            start = round_pb2.RoundStart.FromString(directive.make_keys.round_start)
            start.figures = b'{"median_squared_overfitting": null, "scores": {"mrna": 1.0}, "temperatures": {}}'
            directive.make_keys.round_start = start.SerializeToString(deterministic=True)

    federation.lie = lie
    with pytest.raises(ConsiliumError) as refused:  # the coordinator's own courtesy check: another context
        federation.run_to_end(patience=20)
    assert refused.value.code == "wrong-context"
    assert federation.lies
    assert not [m for m in federation.sent if m.round == 1 and m.kind != "keys"]


def test_round_0_again_is_refused_for_ever() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    first = pb.Directive()
    first.CopyFrom(until(federation, 0, "make_keys", name))
    until(federation, 1, "make_keys", name)
    for attempt in (2, 7):
        first.make_keys.attempt = attempt
        assert isinstance(refusal(federation, name, first), StaleAttemptError)


def test_another_attempt_after_a_signed_list_is_refused() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    keys = until(federation, 1, "make_keys", name)
    until(federation, 1, "open_shares", name)
    keys.make_keys.attempt = 2
    assert isinstance(refusal(federation, name, keys), StaleAttemptError)


def test_a_model_that_was_left_does_not_come_back_under_a_later_number() -> None:
    """Round 7 with the model of round 1: two cohorts' sums from one model would differ by a few institutions."""
    federation = started(rounds=3)
    name = federation.plan.roster[VICTIM]
    old = until(federation, 1, "make_keys", name)
    until(federation, 3, "make_keys", name)

    def later(start: round_pb2.RoundStart) -> None:
        start.round = 7

    assert isinstance(refusal(federation, name, edited(old, later)), TranscriptError)


# -- the coordinator lies within a round ---------------------------------------------------------------------------


def test_statistics_before_updates_are_refused() -> None:
    federation = started()
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "contribute", name)
    honest.contribute.sum = "statistics"
    assert isinstance(refusal(federation, name, honest), WithdrawnError)
    assert (1, "statistics") not in federation.recorded[name]


def at_statistics() -> tuple[SmallFederation, str, pb.Directive]:
    federation = started()
    name = federation.plan.roster[VICTIM]
    until(federation, 1, "contribute", name)

    found: list[pb.Directive] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and place(federation, directive) == (1, "statistics", "contribute"):
            found.append(directive)
            raise ReachedError
        return True

    with pytest.raises(ReachedError):
        federation.run_to_end(acts)
    return federation, name, found[0]


def changed_opened(directive: pb.Directive, change: Callable[[round_pb2.OpenedSum], None]) -> pb.Directive:
    opened = round_pb2.OpenedSum.FromString(directive.contribute.opened[0])
    change(opened)
    directive.contribute.opened[0] = opened.SerializeToString(deterministic=True)
    return directive


def other_words(opened: round_pb2.OpenedSum) -> None:
    opened.parts[0].words = opened.parts[1].words


def not_my_list(opened: round_pb2.OpenedSum) -> None:
    from consilium.v1 import secure_sum_pb2

    listed = secure_sum_pb2.SurvivorList.FromString(opened.list)
    listed.gone.append(listed.alive.pop())
    opened.list = listed.SerializeToString(deterministic=True)


def other_result(opened: round_pb2.OpenedSum) -> None:
    opened.components[0].weights = opened.components[1].weights


def result_missing(opened: round_pb2.OpenedSum) -> None:
    del opened.components[0]


def other_sum(opened: round_pb2.OpenedSum) -> None:
    opened.sum = "statistics"


def no_list(opened: round_pb2.OpenedSum) -> None:
    opened.list = b"\xff\xff"


@pytest.mark.parametrize("change", [other_words, not_my_list, other_result, result_missing, other_sum, no_list])
def test_a_changed_opened_sum_is_refused(change: Callable[[round_pb2.OpenedSum], None]) -> None:
    federation, name, honest = at_statistics()
    error = refusal(federation, name, changed_opened(honest, change))
    assert isinstance(error, ConsiliumError)
    assert (1, "statistics") not in federation.recorded[name]
    assert federation.memory(name).known_round == -1


def test_opened_sums_that_change_between_two_directives_are_refused() -> None:
    federation, name, honest = at_statistics()
    reply = federation.participants[name].session.handle(honest)
    assert reply.upload is not None
    lie = changed_opened(copy.deepcopy(honest), lambda opened: opened.parts.reverse())
    assert isinstance(refusal(federation, name, lie), WithdrawnError)


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """A byte or two turned, cut off or put in."""
    whole = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(whole)))
        match int(rng.integers(3)):
            case 0:
                whole[at] ^= int(rng.integers(1, 256))
            case 1:
                del whole[at : at + int(rng.integers(1, 5))]
            case _:
                whole[at:at] = rng.bytes(int(rng.integers(1, 5)))
    return bytes(whole)


def test_whatever_is_broken_in_the_opening_of_a_round_is_a_typed_refusal() -> None:
    federation = started(rounds=1)
    name = federation.plan.roster[VICTIM]
    honest = until(federation, 1, "make_keys", name)
    rng = np.random.default_rng(3)
    for _ in range(300):
        start = flipped(honest.make_keys.round_start, rng)
        reply = federation.participants[name].session.handle(
            pb.Directive(make_keys=pb.MakeKeys(round_start=start, attempt=1))
        )
        assert reply.message is not None  # a withdrawal; keys, where only what cannot be checked yet was changed
        assert reply.upload is None
    codes = {error.code for error in federation.told[name].refused}
    assert {"round", "transcript"} <= codes


def test_whatever_is_broken_in_an_opened_sum_is_a_typed_refusal() -> None:
    federation, name, honest = at_statistics()
    rng = np.random.default_rng(4)
    work, refused = federation.works[name], 0
    for _ in range(300):
        try:
            message, listed = opened_by(flipped(honest.contribute.opened[0], rng))
            work.take_opened(federation.run.attempt.machine.attempt.sums[0], message, listed)
        except ConsiliumError:
            refused += 1
    assert refused > 200  # the others changed only the list, which the session holds against its signature


# -- the coordinator is restored from an old backup ----------------------------------------------------------------


def test_a_coordinator_from_an_old_backup_is_refused_and_its_run_fails(tmp_path: Path) -> None:
    plan = small_plan(7, rounds=4)
    federation = SmallFederation(plan)
    coordinator = federation.coordinator
    coordinator.store = Store(f"sqlite:///{tmp_path / 'now.sqlite'}")
    coordinator.store.create_run(federation.run.key, plan.run, federation.bytes, coordinator.now)
    coordinator.store.set_status(federation.run.key, "enrolling", "", coordinator.now)
    coordinator.restart()
    federation.enrol()
    backup: dict[str, object] = {}

    def after() -> None:
        run = federation.run
        if run.round == 1 and run.attempt and run.attempt.machine.keys and not backup:
            with sqlite3.connect(tmp_path / "now.sqlite") as source, sqlite3.connect(tmp_path / "old.sqlite") as copied:
                source.backup(copied)
            backup.update(coordinator.content._contents)
        if run.round == 3 and len(run.attempt.machine.current.completed) == 3 and coordinator.starts == 2:
            coordinator.store = Store(f"sqlite:///{tmp_path / 'old.sqlite'}")
            coordinator.content._contents = dict(backup)  # type: ignore[arg-type]  # as it was copied
            coordinator.restart()
            assert federation.run.round == 1
            restored.append(len(federation.sent))

    restored: list[int] = []
    assert federation.run_to_end(after=after) == "failed"
    assert "old" in federation.run.reason
    since = federation.sent[restored[0] :]
    assert {m.kind for m in since} == {"withdrawal"}
    assert {code for _, _, code in federation.withdrawals()} == {"stale-attempt"}


# -- the node itself is restarted ----------------------------------------------------------------------------------

RESTARTS = [
    (0, "", "deal_shares"),
    (0, "counts", "contribute"),
    (0, "weights", "sign_list"),
    (1, "", "make_keys"),
    (1, "", "deal_shares"),
    (1, "updates", "contribute"),
    (1, "updates", "sign_list"),
    (1, "updates", "open_shares"),
    (1, "statistics", "contribute"),
    (1, "statistics", "sign_list"),
    (1, "statistics", "open_shares"),
]


@pytest.mark.parametrize("at", RESTARTS, ids=lambda at: "-".join(map(str, at)))
def test_a_restarted_node_leaves_that_attempt_and_is_in_the_next_round(
    at: tuple[int, str, str], tmp_path: Path
) -> None:
    federation = started(tmp_path)
    name = federation.plan.roster[VICTIM]
    restarted: list[int] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and not restarted and place(federation, directive) == at:
            restarted.append(len(federation.sent))
            federation.start(name)
            return False
        return True

    began = federation.coordinator.now
    assert federation.run_to_end(acts) == "finished"
    assert restarted
    in_attempt = [m for m in federation.sent[restarted[0] :] if m.institution == name and m.round == at[0]]
    if at[2] == "make_keys":
        assert any(m.kind == "keys" for m in in_attempt)  # no attempt was joined yet
    else:
        assert {m.kind for m in in_attempt} <= {"withdrawal"}
        # Nobody waited for it: it said so, for the attempt that it had joined. (The last openings need no all.)
        assert (name, at[0], "withdrawn") in federation.withdrawals() or at[2] == "open_shares"
    assert (federation.coordinator.now - began).total_seconds() < 30
    check_model(federation, 2)
    last = json.loads(federation.run.records()[-1])
    took_part = at[0] > 0 or at[1:] == ("weights", "sign_list")
    assert (name in last["sums"]["updates"]["alive"]) == took_part


def test_a_node_restarted_in_the_middle_of_an_upload_never_masks_a_second_vector(tmp_path: Path) -> None:
    """It has retrained by then, on other batches: two vectors under one mask would show their difference."""
    federation = started(tmp_path, rounds=1)
    name = federation.plan.roster[VICTIM]
    directive = until(federation, 1, "contribute", name)
    session = federation.participants[name].session
    upload = session.handle(directive).upload
    assert upload is not None
    first = b"".join(upload.chunks())
    again = session.handle(directive).upload  # a cut connection: the same bytes
    assert again is not None
    assert b"".join(again.chunks()) == first
    mark = federation.memory(name).mark
    federation.start(name)
    assert federation.memory(name).mark == mark
    assert isinstance(refusal(federation, name, directive), WithdrawnError)
    keys = pb.Directive(
        make_keys=pb.MakeKeys(round_start=federation.run.attempt.round_start, attempt=federation.run.attempt.number)
    )
    assert isinstance(refusal(federation, name, keys), StaleAttemptError)
    assert federation.run_to_end() == "finished"
    record = json.loads(federation.run.records()[-1])
    assert name not in record["sums"]["updates"]["alive"]


def test_what_must_survive_a_restart_does(tmp_path: Path) -> None:
    plan = small_plan(9, rounds=2)
    federation = SmallFederation(plan, folder=tmp_path)
    federation.enrol()
    name = plan.roster[1]  # the only one with mrna+image: its classifier stays with it
    until(federation, 2, "make_keys", name)
    before, rows = federation.memory(name), federation.works[name]._train_rows
    federation.start(name)
    after = federation.memory(name)
    assert after.mark == before.mark
    assert after.noised_patients == before.noised_patients > 0
    assert after.last_losses == before.last_losses != {}
    assert after.setup == before.setup is not None
    assert after.models == before.models != ()
    assert np.array_equal(federation.works[name]._train_rows, rows)
    assert list(after.private) == ["classifier/mrna+image"]
    for component, values in before.private.items():
        assert np.array_equal(after.private[component], values)
    assert federation.run_to_end() == "finished"
    last = json.loads(federation.run.records()[-1])
    assert name in last["sums"]["statistics"]["alive"]
    moved = federation.memory(name).private["classifier/mrna+image"]
    assert not np.array_equal(moved, before.private["classifier/mrna+image"])


def test_a_late_institution_is_silent_and_accuses_nobody() -> None:
    """It slept through the statistics' beginning and wakes at their list: it cannot know what was summed."""
    federation = started(rounds=1)
    name = federation.plan.roster[VICTIM]

    def acts(who: str, directive: pb.Directive) -> bool:
        return not (who == name and place(federation, directive) == (1, "statistics", "contribute"))

    assert federation.run_to_end(acts) == "finished"
    assert not federation.told[name].refused
    assert not federation.withdrawals()
    assert federation.told[name].signed[-1] == "updates"
