"""A real coordinator, and institutions enrolled with it. TLS 1.3 only, said before gRPC is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from security.tls import require_tls13_environment

require_tls13_environment()

from tests.coordinator.parties import NAMES, Connections, Party, start  # noqa: E402 - gRPC is imported here
from tests.coordinator.serving import Serving  # noqa: E402 - and here


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    """A coordinator over mTLS on loopback."""
    coordinator = Serving(tmp_path)
    yield coordinator
    coordinator.close()


@pytest.fixture
def parties(serving: Serving) -> Iterator[list[Party]]:
    """Everybody enrolled in a run, keys not yet sent."""
    start(serving)
    with Connections(serving) as stubs:
        everybody = [Party(stub, name) for stub, name in zip(stubs, NAMES, strict=True)]
        for party in everybody:
            assert party.enrol() == ""
        yield everybody
