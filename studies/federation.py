"""Whole federations in one process, in order, on the same sessions, runs and sums as the service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from institution_node.link import CoordinatorLink
from institution_node.session import Session
from security.errors import ConsiliumError
from studies.memory_coordinator import MemoryCoordinator

IDLE_SECONDS = 5.0


class StudyError(ConsiliumError):
    """A federation in memory came to a standstill, or its run failed."""

    code = "study"


@dataclass
class Participant:
    """One institution: its session, its way to the coordinator, and what it acted on last."""

    session: Session
    link: CoordinatorLink
    known: int = 0

    def step(self) -> bool:
        """Acts on the current directive, if it is a new one; whether it was."""
        directive = self.link.next_directive(self.session.run, self.known, 0.0)
        if directive.serial == self.known:
            return False
        reply = self.session.handle(directive)
        if reply.message is not None:
            self.link.submit(reply.message)
        if reply.upload is not None:
            self.link.upload(self.session.run, reply.upload)
        self.known = directive.serial
        return True


def run_to_end(coordinator: MemoryCoordinator, participants: Mapping[str, Participant], *, patience: int = 500) -> None:
    """Drives everybody in turn until the run is over.

    Args:
        coordinator: holds the run.
        participants: by name; those that are left out never show up.
        patience: how many times in a row time may pass without anything else happening.

    Raises:
        StudyError: the run failed, or nothing happens any more.
    """
    run = coordinator.run
    for participant in participants.values():
        participant.link.enrol(run.id, "")
    idle = 0
    while not run.ended:
        moved = [p.step() for p in participants.values()]
        if coordinator.work() or any(moved):
            idle = 0
            continue
        idle += 1
        if idle > patience:
            raise StudyError(f"the federation stands still in phase {run.phase!r}.")
        coordinator.pass_time(IDLE_SECONDS)
    if run.status != "finished":
        raise StudyError(f"the run ended as {run.status}: {run.reason}.")
