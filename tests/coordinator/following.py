"""Follows a small run from outside: where a directive belongs, what the observer heard, when it is killed."""

from __future__ import annotations

from collections.abc import Callable

from consilium.v1 import service_pb2 as pb

from coordinator.observer import Observer
from tests.small_federation import SmallFederation, small_plan

SETUP = ("holders", "counts", "means", "squares", "weights")
PHASES = ("make_keys", "deal_shares", "contribute", "sign_list", "open_shares")


def kind(directive: pb.Directive) -> str:
    return str(directive.WhichOneof("kind"))


def place(federation: SmallFederation, directive: pb.Directive) -> tuple[int, str, str]:
    """(round, sum, kind) that a directive belongs to; keys and shares belong to no sum."""
    run, what = federation.run, kind(directive)
    if run.attempt is None:
        return run.round, "", what
    return run.round, "" if what in PHASES[:2] else run.attempt.machine.current.name, what


def started(**changes: object) -> SmallFederation:
    federation = SmallFederation(small_plan(7, **{"rounds": 2, **changes}))
    federation.enrol()
    return federation


class Heard(Observer):
    """Writes down what the coordinator's observer hears."""

    def __init__(self) -> None:
        self.burnt_rounds: list[tuple[int, str]] = []
        self.drops: list[tuple[str, str, str]] = []
        self.failures: list[tuple[int, int, str]] = []

    def burnt(self, round_: int, code: str) -> None:
        self.burnt_rounds.append((round_, code))

    def dropped(self, institution: str, phase: str, reason: str) -> None:
        self.drops.append((institution, phase, reason))

    def attempt_failed(self, round_: int, attempt: int, code: str) -> None:
        self.failures.append((round_, attempt, code))


def restarting(federation: SmallFederation, when: Callable[[], bool]) -> Callable[[], None]:
    """Restarts the coordinator the first time that `when` holds."""
    done: list[bool] = []

    def after() -> None:
        if not done and when():
            done.append(True)
            federation.coordinator.restart()

    return after
