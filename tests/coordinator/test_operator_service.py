"""What an operator may do, sees and is told, over real mTLS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from consilium.v1 import service_pb2 as pb
from consilium.v1.service_pb2_grpc import OperatorServiceStub

from federation.plan import digest
from security.audit import verify
from tests.coordinator.serving import OPERATOR, SECONDS, Serving, code_of, institution, invited, start_run
from tests.plans import example_plan

PLAN = example_plan(5)
RUN = digest(PLAN.to_bytes())
Code = grpc.StatusCode


@pytest.fixture
def operator(serving: Serving) -> Iterator[OperatorServiceStub]:
    with serving.as_operator(OPERATOR) as stub:
        yield stub


def details(error: Any) -> str:
    return str(error.details())


def test_a_run_is_started_once_and_seen(serving: Serving, operator: OperatorServiceStub) -> None:
    assert list(operator.ListRuns(pb.ListRunsRequest()).runs) == []
    assert start_run(operator, PLAN.to_bytes()) == RUN
    with pytest.raises(grpc.RpcError) as refused:
        start_run(operator, PLAN.to_bytes())
    assert code_of(refused.value) == (Code.ALREADY_EXISTS, "run-exists")
    assert "another run name" in details(refused.value)  # the remedy: it is the operator's own mistake
    (summary,) = operator.ListRuns(pb.ListRunsRequest()).runs
    assert (summary.run, summary.name, summary.status, summary.round) == (RUN, PLAN.run, "enrolling", 0)
    assert (summary.rounds, summary.data) == (3, "synthetic")
    with serving.as_institution(institution("brca-1", 0)) as node:
        node.Enrol(pb.EnrolRequest(run=RUN))
    with serving.as_institution(institution("brca-2", 1)) as node:
        node.Enrol(pb.EnrolRequest(run=RUN, refusal="plan-not-accepted"))
    standing = operator.ListInstitutions(pb.ListInstitutionsRequest()).institutions
    assert [(i.name, i.status, i.reason) for i in standing][:3] == [
        ("brca-1", "enrolled", ""),
        ("brca-2", "refused", "plan-not-accepted"),
        ("brca-3", "invited", ""),
    ]
    assert standing[0].combination == "mrna+image+clinical"
    status = operator.GetRun(pb.GetRunRequest(run=RUN)).status
    assert (status.phase, status.attempt, list(status.records)) == ("enrolling", 0, [])


def test_plans_that_may_not_run_are_refused_with_their_problems(operator: OperatorServiceStub) -> None:
    weak = example_plan(5, secure_sum={"threshold": 3})
    elsewhere = PLAN.model_copy(update={"federation": "elsewhere"})
    warm = PLAN.model_copy(update={"initial_model": "ab" * 32})
    for plan, said in (
        (weak.to_bytes(), "secure_sum.threshold"),
        (elsewhere.to_bytes(), "this coordinator serves 'example'"),
        (warm.to_bytes(), "initial_model"),
        (b"no plan", "not a plan"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            start_run(operator, plan)
        assert code_of(refused.value) == (Code.INVALID_ARGUMENT, "plan")
        assert said in details(refused.value)
    assert list(operator.ListRuns(pb.ListRunsRequest()).runs) == []


def test_an_institution_is_in_one_run_at_a_time(operator: OperatorServiceStub) -> None:
    second = example_plan(5, run="second")
    start_run(operator, PLAN.to_bytes())
    with pytest.raises(grpc.RpcError) as refused:
        start_run(operator, second.to_bytes())
    assert code_of(refused.value) == (Code.FAILED_PRECONDITION, "run-active")
    operator.StopRun(pb.StopRunRequest(run=RUN, reason="made way"))
    assert start_run(operator, second.to_bytes()) == digest(second.to_bytes())


def test_a_watcher_sees_changes_until_the_end(serving: Serving, operator: OperatorServiceStub) -> None:
    start_run(operator, PLAN.to_bytes())
    seen: list[pb.RunStatus] = []
    begun = threading.Event()

    def watch() -> None:
        for answer in operator.WatchRun(pb.WatchRunRequest(run=RUN), timeout=SECONDS):
            seen.append(answer.status)
            begun.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert begun.wait(SECONDS)
    operator.StopRun(pb.StopRunRequest(run=RUN, reason="enough"))
    operator.StopRun(pb.StopRunRequest(run=RUN, reason="again"))  # nothing happens
    watcher.join(SECONDS)
    assert not watcher.is_alive()
    assert seen[0].summary.status == "enrolling"
    assert (seen[-1].summary.status, seen[-1].summary.reason) == ("stopped", "enough")
    with serving.as_institution(institution("brca-1", 0)) as node:
        ended = node.NextDirective(pb.NextDirectiveRequest(run=RUN)).directive.run_ended
        assert (ended.status, ended.reason) == ("stopped", "enough")
        with pytest.raises(grpc.RpcError) as refused:
            node.Enrol(pb.EnrolRequest(run=RUN))
        assert code_of(refused.value) == (Code.FAILED_PRECONDITION, "run-ended")
        assert invited(node) == b""


def test_what_is_not_there(operator: OperatorServiceStub) -> None:
    calls: list[tuple[Any, Any, Any]] = [
        (operator.GetRun, pb.GetRunRequest(run=bytes(32)), (Code.NOT_FOUND, "unknown-run")),
        (operator.StopRun, pb.StopRunRequest(run=bytes(32)), (Code.NOT_FOUND, "unknown-run")),
        (operator.StopRun, pb.StopRunRequest(reason="two\nlines"), (Code.INVALID_ARGUMENT, "malformed-request")),
        (operator.ListInstitutions, pb.ListInstitutionsRequest(), (Code.NOT_FOUND, "unknown-run")),
    ]
    for call, request, expected in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert code_of(refused.value) == expected
    start_run(operator, PLAN.to_bytes())
    with pytest.raises(grpc.RpcError) as refused:
        list(operator.ExportModel(pb.ExportModelRequest(run=RUN)))
    assert code_of(refused.value) == (Code.FAILED_PRECONDITION, "export")
    assert "first sums" in details(refused.value)


def test_starts_and_stops_are_audited(serving: Serving, operator: OperatorServiceStub, tmp_path: Path) -> None:
    start_run(operator, PLAN.to_bytes())
    log = tmp_path / "state" / "audit.log"
    assert '"event":"run-started"' in log.read_text()
    assert '"operator":"operator"' in log.read_text()
    operator.StopRun(pb.StopRunRequest(run=RUN, reason="enough"))
    assert '"event":"run-stop-asked"' in log.read_text()
    assert verify(log).entries >= 2


def test_a_run_begun_is_there_after_a_restart(serving: Serving, operator: OperatorServiceStub, tmp_path: Path) -> None:
    start_run(operator, PLAN.to_bytes())
    with serving.as_institution(institution("brca-1", 0)) as node:
        node.Enrol(pb.EnrolRequest(run=RUN))
    serving.do(serving.server.stop(0.1))
    again = Serving(tmp_path)
    try:
        with again.as_institution(institution("brca-1", 0)) as node:
            assert invited(node) == PLAN.to_bytes()
        with again.as_operator() as stub:
            standing = stub.ListInstitutions(pb.ListInstitutionsRequest(run=RUN)).institutions
            assert [i.status for i in standing] == ["enrolled"] + ["invited"] * 4
    finally:
        again.close()
