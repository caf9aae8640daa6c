"""One federation for all tests of this folder that need no training; every test finds it alive and idle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.processes.local import Bench


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("processes"))
    with bench.local:
        bench.start_coordinator()
        for name in bench.names:
            bench.start_node(name)
        yield bench


@pytest.fixture
def bench(processes: Bench) -> Iterator[Bench]:
    yield processes
    processes.tidy()
