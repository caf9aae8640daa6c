"""Whole runs whose mask graph is drawn: the node's session, the coordinator's run and its restarts, as above 100."""

from __future__ import annotations

import pytest
from consilium.v1 import service_pb2 as pb

from federation.plan import Plan
from federation.settings import mask_graph
from security.secure_sum.graph import SparseGraph
from tests.small_federation import SmallFederation, small_plan


@pytest.fixture
def plan() -> Plan:
    """Seven institutions, four neighbours each."""
    made = small_plan(rounds=1, secure_sum={"complete_graph_up_to": 5, "graph_dropout": 0.14})
    assert mask_graph(made) == SparseGraph(4, 3, complete_up_to=5)
    return made


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
def test_a_run_over_a_drawn_graph_ends_with_the_model_of_a_complete_one(plan: Plan, restart_at: str) -> None:
    federation = SmallFederation(plan)
    federation.enrol()
    seen: list[str] = []
    assert federation.run_to_end(phases(federation, seen, restart_at)) == "finished"  # type: ignore[arg-type]
    assert "reveal_value" in seen
    assert (federation.coordinator.starts > 1) == bool(restart_at)
    if restart_at:
        return
    complete = SmallFederation(small_plan(rounds=1))
    complete.enrol()
    assert complete.run_to_end() == "finished"
    for component in complete.run.state.components:
        assert federation.weights(component).tobytes() == complete.weights(component).tobytes()


def test_who_keeps_its_value_is_left_behind_and_comes_back(plan: Plan) -> None:
    federation = SmallFederation(plan)
    federation.enrol()
    silent = federation.plan.roster[-1]

    def acts(name: str, directive: pb.Directive) -> bool:
        return not (name == silent and directive.HasField("reveal_value") and federation.run.round == 1)

    assert federation.run_to_end(acts) == "finished"
    assert federation.run.status == "finished"
