"""What a service manager sends to a node: stop, and reload."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from structlog.testing import capture_logs

from institution_node.service import stopping


def test_reload_is_told_and_stops_nothing() -> None:
    stop, before = threading.Event(), signal.getsignal(signal.SIGHUP)
    with stopping(stop), capture_logs() as said:
        os.kill(os.getpid(), signal.SIGHUP)
        assert "read anew" in said[0]["event"]
        assert not stop.is_set()
    assert signal.getsignal(signal.SIGHUP) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_stops(number: signal.Signals) -> None:
    stop, before = threading.Event(), signal.getsignal(number)
    with stopping(stop):
        os.kill(os.getpid(), number)
        assert stop.wait(5)
    assert signal.getsignal(number) == before
