"""A run that cannot be restored ends, typed; the coordinator starts, and the other runs go on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from consilium.v1 import service_pb2 as pb

from coordinator.restart import RunDamagedError, committed_state, restoring
from coordinator.store import LIST_SHOWN, StoreError
from federation.plan import digest
from federation.vectors import StorageError
from tests.coordinator.serving import SECONDS, Serving, code_of, institution, invited, start_run
from tests.plans import example_institutions, example_plan

DAMAGED = example_plan(5)
OTHER = DAMAGED.model_copy(update={"run": "other", "institutions": example_institutions(10)[5:]})
RUN, OTHER_RUN = digest(DAMAGED.to_bytes()), digest(OTHER.to_bytes())


def journal(serving: Serving, folder: Path) -> None:
    serving.hub.store.save_point(RUN.hex(), 0, 1, "counts", LIST_SHOWN, b"no journal", datetime.now(UTC))


def half_a_journal(serving: Serving, folder: Path) -> None:
    run = serving.do(serving.hub.live(RUN)).run
    whole: bytes = run.attempt.checkpoint() if run.attempt else b""
    assert len(whole) > 30
    serving.hub.store.save_point(RUN.hex(), 0, 1, "counts", LIST_SHOWN, whole[:-1], datetime.now(UTC))


def plan(serving: Serving, folder: Path) -> None:
    with sqlite3.connect(folder / "state" / "state.sqlite") as database:
        database.execute("UPDATE runs SET plan = ? WHERE run = ?", (DAMAGED.to_bytes()[:-3], RUN.hex()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (journal, "the record of round 0 cannot be restored"),
        (half_a_journal, "the record of round 0 cannot be restored"),
        (plan, "its plan cannot be restored"),
    ],
)
def test_a_run_that_cannot_be_restored_fails_alone(
    tmp_path: Path, damage: Callable[[Serving, Path], None], said: str
) -> None:
    first = Serving(tmp_path)
    try:
        with first.as_operator() as operator:
            start_run(operator, DAMAGED.to_bytes())
            start_run(operator, OTHER.to_bytes())
        for index, name in enumerate(DAMAGED.roster):
            with first.as_institution(institution(name, index)) as node:
                node.Enrol(pb.EnrolRequest(run=RUN), timeout=SECONDS)
        damage(first, tmp_path)
    finally:
        first.close()
    content = sorted((tmp_path / "state" / "content").rglob("*"))
    again = Serving(tmp_path)
    try:
        with again.as_operator() as operator:
            shown = {run.run: (run.status, run.reason) for run in operator.ListRuns(pb.ListRunsRequest()).runs}
            assert shown[RUN][0] == "failed"
            assert shown[RUN][1].startswith(said)
            assert shown[OTHER_RUN] == ("enrolling", "")
            if damage is plan:
                with pytest.raises(grpc.RpcError) as refused:
                    operator.GetRun(pb.GetRunRequest(run=RUN), timeout=SECONDS)
                assert code_of(refused.value)[1] == "run-damaged"
            else:
                status = operator.GetRun(pb.GetRunRequest(run=RUN), timeout=SECONDS).status
                assert status.summary.reason.startswith(said)
        assert again.refusals("run-damaged") >= 1
        with again.as_institution(institution(DAMAGED.roster[0], 0)) as node:
            assert invited(node) == b""
        with again.as_institution(institution(OTHER.roster[0], 5)) as node:
            assert invited(node) == OTHER.to_bytes()
        assert sorted((tmp_path / "state" / "content").rglob("*")) == content
        assert len(again.hub.store.enrolments(RUN.hex())) == 5
        if damage is not plan:
            assert again.hub.store.points(RUN.hex(), 0)
    finally:
        again.close()


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "{}", '{"setup": 1}'])
def test_a_state_that_cannot_be_read_is_a_typed_error(text: str) -> None:
    with pytest.raises(RunDamagedError, match="state of its last round"):
        committed_state(text)


def test_a_database_that_cannot_be_used_is_not_the_runs_damage() -> None:
    for error in (StoreError("no database."), StorageError("no disk.")):
        with pytest.raises(type(error)), restoring("anything"):
            raise error
