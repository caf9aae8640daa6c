"""A run goes on whoever vanishes and whenever, or says why it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from consilium.v1 import service_pb2 as pb

from institution_node.errors import NonFiniteTrainingError
from institution_node.trainer import Trajectory
from institution_node.training import LocalTrainer
from security.secure_sum.upload import Upload
from tests.coordinator.following import PHASES, Heard, kind, place, started
from tests.federation.plaintext_rounds import check_model
from tests.small_federation import SmallFederation, small_plan

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


def test_a_round_that_nobody_can_train_ends_the_run_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(self: LocalTrainer, *arguments: object) -> Trajectory[Any]:
        raise NonFiniteTrainingError("the loss is not finite.")

    monkeypatch.setattr(LocalTrainer, "train", diverges)
    federation = SmallFederation(small_plan())
    federation.enrol()
    assert federation.run_to_end() == "failed"
    assert "non-finite-training" in federation.run.reason
    assert len(federation.withdrawals()) == 3 * len(federation.plan.roster)
