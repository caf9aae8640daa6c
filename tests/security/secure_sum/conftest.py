"""Tests that ask for `graph` run twice: with everybody tied to everybody, and with a graph that is drawn."""

from __future__ import annotations

import pytest

from security.secure_sum.graph import Circle
from tests.security.secure_sum import harness


@pytest.fixture(params=["complete", "drawn"])
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which graph `make_attempt` takes; drawn: four neighbours each, of five or more others."""
    kind: str = request.param
    monkeypatch.setattr(harness, "DRAWN", kind == "drawn")
    sparse = (attempt := harness.make_attempt()).sparse
    if sparse is not None:
        circle = Circle(tuple(attempt.roster), sparse.neighbours // 2)
        assert circle.reach is not None, "everybody is tied to everybody: nothing is drawn"
    assert (sparse is not None) == (kind == "drawn")
    return kind
