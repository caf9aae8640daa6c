"""Tests that ask for `graph` run twice: with everybody tied to everybody, and with a graph that is drawn."""

from __future__ import annotations

import pytest

from tests.security.secure_sum import harness


@pytest.fixture(params=["complete", "drawn"])
def graph(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which graph `make_attempt` takes; drawn: four neighbours each, however small the roster."""
    kind: str = request.param
    monkeypatch.setattr(harness, "DRAWN", kind == "drawn")
    return kind
