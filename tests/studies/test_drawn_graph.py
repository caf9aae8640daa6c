"""Whole runs whose mask graph is drawn: the node's session, the coordinator's run and its restarts, as above 100."""

from __future__ import annotations

import pytest
from consilium.v1 import service_pb2 as pb

from federation import rounds
from security.secure_sum.graph import SparseGraph
from tests.small_federation import SmallFederation, small_plan


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> object:
    """Seven institutions, four neighbours each."""
    monkeypatch.setattr(rounds, "MAX_COMPLETE_GRAPH", 3)
    monkeypatch.setattr(rounds, "neighbours_for", lambda n, c: SparseGraph(4, c + 1, complete_up_to=3))
    return small_plan(rounds=1)


def phases(federation: SmallFederation, seen: list[str], restart_at: str = "") -> object:
    def acts(name: str, directive: pb.Directive) -> bool:
        kind = directive.WhichOneof("kind") or ""
        seen.append(kind)
        if kind == restart_at and federation.coordinator.starts == 1:
            federation.coordinator.restart()
            return False
        return True

    return acts


@pytest.mark.parametrize("restart_at", ["", "reveal_value", "open_shares"])
def test_a_run_over_a_drawn_graph_ends_with_the_model_of_a_complete_one(
    plan: object, restart_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = SmallFederation(plan)  # type: ignore[arg-type]  # of the fixture
    federation.enrol()
    seen: list[str] = []
    assert federation.run_to_end(phases(federation, seen, restart_at)) == "finished"  # type: ignore[arg-type]
    assert "reveal_value" in seen
    assert (federation.coordinator.starts > 1) == bool(restart_at)
    if restart_at:
        return
    monkeypatch.setattr(rounds, "MAX_COMPLETE_GRAPH", 100)
    complete = SmallFederation(small_plan(rounds=1))
    complete.enrol()
    assert complete.run_to_end() == "finished"
    for component in complete.run.state.components:
        assert federation.weights(component).tobytes() == complete.weights(component).tobytes()


def test_who_keeps_its_value_is_left_behind_and_comes_back(plan: object) -> None:
    federation = SmallFederation(plan)  # type: ignore[arg-type]  # of the fixture
    federation.enrol()
    silent = federation.plan.roster[-1]

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name == silent and directive.HasField("reveal_value") and federation.run.round == 1)

    assert federation.run_to_end(acts) == "finished"
    assert federation.run.status == "finished"
