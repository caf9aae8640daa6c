"""The node's loop: what it joins and what it refuses, what it survives, and what it never takes silently."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import numpy as np
import pytest
from consilium.v1 import round_pb2 as rounds_pb
from consilium.v1 import service_pb2 as pb

from federation.plan import Plan
from federation.rounds import digest
from institution_node.data import InstitutionData, NoPatientError
from institution_node.final_model import FinalModelError, keep_final_model
from institution_node.link import CoordinatorRefusalError, CoordinatorUnreachableError, StoppedError
from institution_node.local_run import LocalRun
from institution_node.model_folder import read_model
from institution_node.node import RECHECK_SECONDS, Assignment, DataChangedError, Node, run_until_stopped
from institution_node.policy import NodeIdentity, Policy
from institution_node.predict import predict
from institution_node.session import RoundWork
from security.privacy.randomness import SeededRandomness, SystemRandomness
from studies.memory_coordinator import MemoryCoordinator, MemoryLink
from tests.institution_node.scripted import (
    ACCEPTING,
    BYTES,
    NAME,
    PLAN,
    RUN,
    Bench,
    Ears,
    ScriptedLink,
    TinyWork,
    make_keys,
)
from tests.plans import example_identity
from tests.small_federation import DictMemory, patients

# -- whole runs ---------------------------------------------------------------------------------------------------


def test_nodes_take_a_run_from_invitation_to_their_own_copy_of_the_model(tmp_path: Path) -> None:
    coordinator = MemoryCoordinator(BYTES)
    nodes, ears, ended = {}, {}, {}

    @contextmanager
    def work(a: Assignment) -> Iterator[RoundWork]:
        yield LocalRun(a.plan_bytes, a.institution, a.data, a.library, a.memory, a.randomness)

    def finish(assignment: Assignment, said: pb.RunEnded) -> None:
        ended[assignment.institution] = keep_final_model(tmp_path / assignment.institution, assignment, said)

    def data_of(name: str) -> Callable[[Plan], InstitutionData]:
        return lambda plan: patients(plan, name)

    for index, entry in enumerate(PLAN.institutions):
        ears[entry.name] = Ears()
        nodes[entry.name] = Node(
            MemoryLink(coordinator, entry.name),
            NodeIdentity(PLAN.federation, entry.name, entry.key, entry.modalities),
            example_identity(index),
            lambda: ACCEPTING,
            DictMemory(),
            SeededRandomness(1, entry.name),
            data_of(entry.name),
            work,
            finish=finish,
            watcher=ears[entry.name],
        )
    idle = 0
    while idle < 50 and len(ended) < len(nodes):
        moved = [node.step(0) for node in nodes.values()]
        if coordinator.work() or any(moved):
            idle = 0
        else:
            idle += 1
            coordinator.pass_time(5.0)
    assert coordinator.run.status == "finished"
    best = coordinator.run.state.selection.chosen
    assert best is not None
    for name, e in ears.items():
        assert e.errors == []
        assert e.heard == [("enrolled",), ("ended", "finished")], name
        model = read_model(ended[name])
        assert model.round == best.round  # the round that the plan exports, not simply the last
        assert set(model.components) >= set(coordinator.run.state.components)
        assert predict(model, patients(PLAN, name).tables).staged
    assert all(node.run is None for node in nodes.values())
    assert not any(node.step(0) for node in nodes.values())  # the ended run is not joined again


def test_a_run_that_ended_before_there_was_a_model_leaves_none(tmp_path: Path) -> None:
    ended = pb.RunEnded(status="stopped", final=rounds_pb.RoundStart(format=1, run=RUN).SerializeToString())
    bench = Bench(ScriptedLink())
    bench.node.step(0)
    with pytest.raises(FinalModelError):
        keep_final_model(tmp_path, bench.made[0], ended)
    assert list(tmp_path.iterdir()) == []


# -- before a run -------------------------------------------------------------------------------------------------


def test_a_plan_that_policy_does_not_accept_is_refused_once_and_joined_once_it_does() -> None:
    link = ScriptedLink()
    bench = Bench(link, policy=Policy())
    assert bench.node.step(0)
    assert link.enrolments == ["accepted-plans"]
    assert not bench.node.step(0)
    assert link.enrolments == ["accepted-plans"]  # nothing changed, nothing is said
    bench.policy = ACCEPTING
    assert bench.node.step(0)
    assert link.enrolments == ["accepted-plans", ""]
    assert bench.ears.heard == [("rejected", "policy-refusal"), ("enrolled",)]
    assert bench.node.run == RUN


def test_a_plan_that_is_none_is_refused() -> None:
    link = ScriptedLink(plan=b"no plan")
    bench = Bench(link)
    bench.node.step(0)
    assert link.enrolments == ["plan"]
    assert bench.node.run is None


def test_a_plan_that_breaks_the_rules_for_plans_is_refused_whatever_policy_says() -> None:
    colluders = PLAN.secure_sum.model_copy(update={"threshold": 2})
    wrong = PLAN.model_copy(update={"secure_sum": colluders}).to_bytes()
    link = ScriptedLink(plan=wrong)
    bench = Bench(link, policy=ACCEPTING.model_copy(update={"accepted_plans": (digest(wrong).hex(),)}))
    bench.node.step(0)
    assert link.enrolments == ["plan"]


def test_seeded_randomness_is_refused_unless_policy_allows_it() -> None:
    link = ScriptedLink()
    strict = Policy(accepted_plans=(RUN.hex(),))
    bench = Bench(link, policy=strict, randomness=SeededRandomness(1, "node"))
    bench.node.step(0)
    assert link.enrolments == ["allow-seeded-randomness"]


def test_tables_that_cannot_be_used_are_tried_again_after_a_while() -> None:
    def nobody() -> InstitutionData:
        raise NoPatientError("there is nobody.")

    link = ScriptedLink()
    bench = Bench(link, data=nobody)
    bench.node.step(0)
    bench.data = lambda: patients(PLAN, NAME)
    bench.node.step(0)
    assert link.enrolments == ["data-no-patient"]
    bench.now = RECHECK_SECONDS
    bench.node.step(0)
    assert link.enrolments == ["data-no-patient", ""]


def test_changed_tables_stop_the_node_until_its_engineer_confirms() -> None:
    link = ScriptedLink()
    bench = Bench(link)
    bench.node.step(0)
    changed = replace(patients(PLAN, NAME), fingerprint="another")
    bench.data = lambda: changed
    with pytest.raises(DataChangedError, match="--accept-new-data"):
        bench.restart().step(0)
    assert link.enrolments == ["", "data-changed"]
    assert bench.memory.load(RUN.hex()).fingerprint != "another"
    assert bench.restart(accept_new_data=True).step(0)
    assert bench.memory.load(RUN.hex()).fingerprint == "another"
    assert bench.restart().step(0)
    assert bench.ears.heard == [
        ("enrolled",),
        ("data-changed", False),
        ("rejected", "data-changed"),
        ("data-changed", True),
        ("enrolled",),
        ("enrolled",),
    ]


def test_an_institution_that_the_coordinator_does_not_admit_waits() -> None:
    link = ScriptedLink()
    link.reason = "too-late"
    bench = Bench(link)
    assert not bench.node.step(0)
    assert not bench.node.step(0)
    assert bench.ears.heard == [("sits-out", "too-late")]
    assert not bench.work.open
    assert bench.node.run is None


def test_no_invitation_is_nothing_to_do() -> None:
    link = ScriptedLink(plan=b"")
    assert not Bench(link).node.step(0)
    assert link.enrolments == []


# -- in a run -----------------------------------------------------------------------------------------------------


def test_an_answer_that_does_not_get_through_is_given_again_with_the_same_bytes() -> None:
    link = ScriptedLink(make_keys())
    bench = Bench(link)
    bench.node.step(0)
    link.fail = [CoordinatorUnreachableError("away.")]
    assert not bench.node.step(0)
    assert bench.node.step(0)
    first, second = link.sent
    assert first.HasField("keys")
    assert first.SerializeToString() == second.SerializeToString()
    assert not bench.node.step(0)  # the directive has been acted on


def test_what_comes_with_an_answer_is_acted_on_without_asking() -> None:
    link = ScriptedLink(make_keys())
    link.answers = [pb.Directive(serial=9, run_ended=pb.RunEnded(status="stopped"))]
    bench = Bench(link)
    assert bench.node.step(5.0)
    assert bench.node.step(5.0)
    assert (link.sent[-1].known, link.sent[-1].wait_seconds) == (link.directives[0].serial, 5.0)
    link.directives.clear()  # nobody is asked any more
    assert bench.node.step(5.0)
    assert bench.node.run is None


def test_to_be_told_to_wait_is_to_ask_again() -> None:
    link = ScriptedLink(make_keys())
    link.answers = [pb.Directive(serial=9, wait=pb.Wait(phase="keys"))]
    bench = Bench(link)
    for _ in range(2):
        assert bench.node.step(0.0)
    link.directives = [pb.Directive(serial=11, run_ended=pb.RunEnded(status="stopped"))]
    assert bench.node.step(0.0)
    assert bench.node.run is None


def test_a_message_that_the_coordinator_refuses_is_not_sent_for_ever() -> None:
    link = ScriptedLink(make_keys())
    bench = Bench(link)
    bench.node.step(0)
    link.fail = [CoordinatorRefusalError("phase")]
    assert bench.node.step(0)
    assert not bench.node.step(0)
    assert len(link.sent) == 1
    assert [e.code for e in bench.ears.errors] == ["refused-by-coordinator"]


def test_a_fault_in_the_work_costs_the_attempt_and_nothing_else() -> None:
    link = ScriptedLink(make_keys())
    bench = Bench(link, work=TinyWork("open"))
    bench.node.step(0)
    assert bench.node.step(0)
    (sent,) = link.sent
    assert sent.withdrawal == pb.Withdrawal(round=0, attempt=1, code="work-failed")
    assert ("withdrawn", 0, 1, "work-failed") in bench.ears.heard
    assert isinstance(bench.ears.errors[0].__cause__, ZeroDivisionError)
    assert "canary" not in str(bench.ears.errors[0])
    bench.work.fault = ""
    link.directives = [make_keys(attempt=2, serial=2)]
    assert bench.node.step(0)
    assert link.sent[-1].HasField("keys")


def test_a_fault_while_a_vector_is_sent_costs_the_attempt_and_nothing_else() -> None:
    coordinator = MemoryCoordinator(BYTES)
    nodes = []
    heard: list[Ears] = []
    for index, entry in enumerate(PLAN.institutions):
        work, ears = TinyWork("fill" if index == 0 else ""), Ears()
        heard.append(ears)

        @contextmanager
        def make(a: Assignment, work: TinyWork = work) -> Iterator[RoundWork]:
            yield work

        nodes.append(
            Node(
                MemoryLink(coordinator, entry.name),
                NodeIdentity(PLAN.federation, entry.name, entry.key, entry.modalities),
                example_identity(index),
                lambda: ACCEPTING,
                DictMemory(),
                SystemRandomness(),
                lambda plan, name=entry.name: patients(plan, name),  # type: ignore[misc] # mypy and defaults
                make,
                watcher=ears,
            )
        )
    for _ in range(12):
        for node in nodes:
            node.step(0)
        coordinator.work()
    assert heard[0].heard == [("enrolled",), ("withdrawn", 0, 1, "work-failed")]
    assert all(ears.heard == [("enrolled",)] for ears in heard[1:])
    assert isinstance(heard[0].errors[0].__cause__, MemoryError)
    assert nodes[0].run == RUN


def test_sitting_out_is_heard_and_the_end_still_awaited() -> None:
    link = ScriptedLink(pb.Directive(serial=1, sit_out=pb.SitOut(reason="no-weight")))
    bench = Bench(link)
    bench.node.step(0)
    assert bench.node.step(0)
    assert not bench.node.step(0)
    link.directives = [pb.Directive(serial=2, run_ended=pb.RunEnded(status="finished"))]
    assert bench.node.step(0)
    assert bench.ears.heard == [("enrolled",), ("sits-out", "no-weight"), ("ended", "finished")]
    assert not bench.work.open


@pytest.mark.parametrize(
    ("fault", "rounds"),
    [
        (CoordinatorRefusalError("unknown-content"), 1),
        (OSError(28, "No space left on device"), 1),
        (CoordinatorUnreachableError("away."), 2),
    ],
)
def test_a_final_model_that_cannot_be_kept_does_not_keep_the_run_open(fault: Exception, rounds: int) -> None:
    faults = [fault]

    def finish(assignment: Assignment, said: pb.RunEnded) -> None:
        if faults:
            raise faults.pop()

    link = ScriptedLink(pb.Directive(serial=1, run_ended=pb.RunEnded(status="finished", final=b"x")))
    bench = Bench(link, finish=finish)
    bench.node.step(0)
    for _ in range(rounds):
        assert bench.node.run == RUN
        bench.node.step(0)
    assert bench.node.run is None
    assert len(bench.ears.errors) == 1


# -- stopping -----------------------------------------------------------------------------------------------------


def test_a_node_that_is_stopped_withdraws_and_lets_go() -> None:
    link, stop = ScriptedLink(make_keys(attempt=3)), Event()
    bench = Bench(link)
    polls = []

    def then_stop(run: bytes, known: int, wait_seconds: float) -> pb.Directive:
        polls.append(wait_seconds)
        if known:
            stop.set()
            raise StoppedError("this node was told to stop.")
        return link.directives[0]

    link.next_directive = then_stop  # type: ignore[method-assign] # the same, and then a signal
    run_until_stopped(bench.node, stop, wait_seconds=7.0, idle_seconds=0.0)
    assert polls == [7.0, 7.0]
    assert link.sent[-1].withdrawal == pb.Withdrawal(round=0, attempt=3, code="node-stopped")
    assert not bench.work.open
    assert bench.node.run is None


def test_leaving_without_an_attempt_says_nothing() -> None:
    link = ScriptedLink()
    bench = Bench(link)
    bench.node.step(0)
    bench.node.leave()
    bench.node.leave()
    assert link.sent == []
    assert not bench.work.open


def test_leaving_while_the_coordinator_is_away_still_lets_go() -> None:
    link = ScriptedLink(make_keys())
    bench = Bench(link)
    bench.node.step(0)
    bench.node.step(0)
    link.fail = [CoordinatorUnreachableError("away.")]
    bench.node.leave()
    assert not bench.work.open


def test_the_sessions_keys_come_from_the_nodes_own_source() -> None:
    draws = []

    class Watched:
        seeded = False

        def bytes(self, n: int) -> bytes:
            draws.append(n)
            return os.urandom(n)

        def child(self, label: str) -> Watched:
            return self

    bench = Bench(ScriptedLink(make_keys()), randomness=Watched())
    bench.node.step(0)
    bench.node.step(0)
    assert np.sum(draws) > 0
