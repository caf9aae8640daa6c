"""What a run tells of itself, to metrics and logs: names, sizes and codes of the protocol, and opened aggregates."""

from __future__ import annotations

from collections.abc import Mapping

from coordinator.folding import FoldJob
from coordinator.results import RoundStatistics


class Observer:
    """Hears everything and keeps nothing. The service's own one counts and logs."""

    def event(self, kind: str, **fields: int | str) -> None:
        """Something worth a line in the log."""

    def enrolled(self, institution: str, refusal: str) -> None:
        """An institution joined, or its local policy refused by a rule."""

    def withdrew(self, institution: str, code: str) -> None:
        """An institution left an attempt."""

    def dropped(self, institution: str, phase: str, reason: str) -> None:
        """A phase went on without an institution."""

    def phase(self, round_: int, phase: str) -> None:
        """A phase began."""

    def phase_took(self, phase: str, seconds: float) -> None:
        """A phase ended."""

    def attempt_failed(self, round_: int, attempt: int, code: str) -> None:
        """An attempt cannot go on."""

    def burnt(self, round_: int, code: str) -> None:
        """A round number will never be used again."""

    def blamed(self, culprits: tuple[str, ...], code: str) -> None:
        """Shares or messages convict somebody."""

    def complained(self, institution: str, dealer: str) -> None:
        """An institution says that the shares that another dealt it do not open: one of the two lies."""

    def expelled(self, institution: str, code: str) -> None:
        """An institution is proven to have lied, and takes no further part in the run."""

    def opened(self, job: FoldJob, masked_words: int) -> None:
        """A sum was opened."""

    def moved(self, norms: Mapping[str, float]) -> None:
        """Mean trajectories were added to the global model; their L2 norms by component."""

    def committed(self, record: str, result: RoundStatistics | None) -> None:
        """A round was committed."""

    def run_ended(self, status: str, reason: str) -> None:
        """The run is over."""
