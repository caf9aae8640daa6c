"""For all tests. Before any test module imports gRPC: no cipher suite of TLS 1.2 (STYLE.md, "Facts found", gRPC)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

from security.tls import require_tls13_environment

require_tls13_environment()

# No test fails because the machine was busy: Hypothesis' 200 ms for one example is a wall time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _log_lines_of_one_test_only() -> Iterator[None]:
    """A command under test sends the process's log lines to its own standard error, which is closed after it."""
    yield
    structlog.reset_defaults()
