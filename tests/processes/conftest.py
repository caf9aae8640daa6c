"""The federations of this folder's tests: started when the first test needs them, reaped with the last.

Not plain session fixtures: their processes must not idle beside the tests of other folders.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Generic, TypeVar

import pytest

from tests.processes.local import Bench
from tests.processes.trained import Trained, make, train

T = TypeVar("T")
FOLDER = Path(__file__).parent


class Shared(Generic[T]):
    """One federation for many tests, started again should a test come after it was reaped."""

    def __init__(self, start: Callable[[Path], AbstractContextManager[T]]) -> None:
        self._start, self._reaping = start, ExitStack()
        self._made: list[T] = []

    def get(self, folders: pytest.TempPathFactory) -> T:
        if not self._made:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, _reap_and_end)
            self._made.append(self._reaping.enter_context(self._start(folders.mktemp("federation"))))
        return self._made[0]

    def reap(self) -> None:
        self._made.clear()
        self._reaping.close()


@contextmanager
def _bench(root: Path) -> Iterator[Bench]:
    bench = Bench(root)
    with bench.local:
        bench.start_coordinator()
        for name in bench.names:
            bench.start_node(name)
        yield bench


@contextmanager
def _trained(root: Path) -> Iterator[Trained]:
    made = make(root)
    with made.local:
        train(made)
        yield made


def _reap_and_end(number: int, _frame: FrameType | None) -> None:
    """A job that is cancelled is sent SIGTERM, at which pytest ends without tearing anything down."""
    BENCH.reap()
    TRAINED.reap()
    os._exit(128 + number)


BENCH, TRAINED = Shared(_bench), Shared(_trained)


@pytest.hookimpl(trylast=True)  # after the fixtures of the test itself
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """After the last test of this folder."""
    if nextitem is None or FOLDER not in nextitem.path.parents:
        BENCH.reap()
        TRAINED.reap()


def pytest_sessionfinish() -> None:
    """Also where the session was broken off."""
    BENCH.reap()
    TRAINED.reap()


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Nine nodes without training, alive and idle."""
    made = BENCH.get(tmp_path_factory)
    yield made
    made.tidy()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A federation that has trained a model."""
    return TRAINED.get(tmp_path_factory)
