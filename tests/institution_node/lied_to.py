"""A small federation that stops where a test wants to lie to one institution, and what that one says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from consilium.v1 import round_pb2
from consilium.v1 import service_pb2 as pb

from security.errors import ConsiliumError
from tests.coordinator.following import kind
from tests.small_federation import SmallFederation, small_plan

VICTIM = 1


class ReachedError(Exception):
    """The place where a test wants to be."""


def started(folder: Path | None = None, **changes: object) -> SmallFederation:
    federation = SmallFederation(small_plan(7, **{"rounds": 2, **changes}), folder=folder)
    federation.enrol()
    return federation


def until(federation: SmallFederation, round_: int, phase: str, name: str) -> pb.Directive:
    """Drives everybody until `name` is about to act on a directive of this kind in this round; returns it."""
    found: list[pb.Directive] = []

    def acts(who: str, directive: pb.Directive) -> bool:
        if who == name and kind(directive) == phase and federation.run.round == round_:
            found.append(directive)
            raise ReachedError
        return True

    with pytest.raises(ReachedError):
        federation.run_to_end(acts)
    return found[0]


def refusal(federation: SmallFederation, name: str, directive: pb.Directive) -> ConsiliumError:
    """What a node says to a directive that it must not act on: it withdraws, with a code and nothing else."""
    before = len(federation.told[name].refused)
    reply = federation.participants[name].session.handle(directive)
    assert reply.upload is None
    assert reply.message is not None
    assert reply.message.WhichOneof("message") == "withdrawal"
    error = federation.told[name].refused[before]
    withdrawal = reply.message.withdrawal
    assert withdrawal.code == error.code
    assert {f.name for f, _ in withdrawal.ListFields()} <= {"round", "attempt", "code"}
    # Nothing of that attempt is left here: whatever comes next, nothing more is masked, signed or opened.
    again = federation.participants[name].session.handle(directive)
    assert again.upload is None
    assert again.message is None or again.message.WhichOneof("message") == "withdrawal"
    return error


def edited(directive: pb.Directive, change: Callable[[round_pb2.RoundStart], None]) -> pb.Directive:
    start = round_pb2.RoundStart.FromString(directive.make_keys.round_start)
    change(start)
    lie = pb.Directive()
    lie.CopyFrom(directive)
    lie.make_keys.round_start = start.SerializeToString(deterministic=True)
    return lie


def other_weights(federation: SmallFederation) -> Callable[[round_pb2.RoundStart], None]:
    def change(start: round_pb2.RoundStart) -> None:
        size = federation.coordinator.content.size(start.components[0].weights)
        start.components[0].weights = federation.coordinator.content.put(bytes(size))

    return change


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """A byte or two turned, cut off or put in."""
    whole = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(len(whole)))
        match int(rng.integers(3)):
            case 0:
                whole[at] ^= int(rng.integers(1, 256))
            case 1:
                del whole[at : at + int(rng.integers(1, 5))]
            case _:
                whole[at:at] = rng.bytes(int(rng.integers(1, 5)))
    return bytes(whole)
