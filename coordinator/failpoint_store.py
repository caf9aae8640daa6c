"""The store, with a failpoint before and after each durable point of a round."""

from __future__ import annotations

from datetime import datetime

from coordinator.failpoints import hit
from coordinator.store import Store


class FailpointStore(Store):
    """A `Store`. Its points are named after the kinds: `before-list-signed`, `after-sum-opened` and so on."""

    def begin_attempt(self, run: str, round_number: int, attempt: int, at: datetime) -> None:
        """See `Store`."""
        super().begin_attempt(run, round_number, attempt, at)
        hit("after-attempt-begun", round_number)

    def save_point(
        self, run: str, round_number: int, attempt: int, sum_name: str, kind: str, blob: bytes, at: datetime
    ) -> None:
        """See `Store`."""
        hit(f"before-{kind}", round_number, sum_name)
        super().save_point(run, round_number, attempt, sum_name, kind, blob, at)
        hit(f"after-{kind}", round_number, sum_name)

    def commit_round(self, run: str, round_number: int, record: str, state: str, at: datetime) -> None:
        """See `Store`."""
        hit("before-commit", round_number)
        super().commit_round(run, round_number, record, state, at)
        hit("after-commit", round_number)
