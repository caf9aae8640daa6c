"""What a lying coordinator and its colluders make: messages signed by whoever has the key."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from security.secure_sum import derive
from security.secure_sum.messages import (
    KeyMessage,
    ShareMessage,
    Signed,
    SurvivorList,
)
from security.secure_sum.spec import Attempt
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import NAMES, World, identity, make_attempt

SIX = NAMES[:6]  # t = 4, k_min = 3, one colluder

COLLUDER = "upper"

HONEST = tuple(n for n in SIX if n != COLLUDER)


def signed(name: str, tag: str, payload: bytes) -> Signed:
    """What an institution (or whoever has its key) signs."""
    return Signed(name, payload, identity(name).sign(tag, payload))


def keys_of(message: Signed) -> KeyMessage:
    return KeyMessage.decode(message.payload)


def with_keys(message: Signed, *, by: str | None = None, **changes: object) -> Signed:
    """A key message changed and signed again by `by`, else by its sender."""
    name = by or message.signer
    return signed(name, derive.TAG_KEYS, replace(keys_of(message), **changes).encode())  # type: ignore[arg-type]  # fields by name


def reads_only_agreed(world: World, adversary: Adversary, agreed: Iterable[tuple[str, str]] = ()) -> None:
    """The adversary reads exactly the honest survivors' sums of `agreed`, (sum, part) each, and nothing else."""
    alive = {s: world.attempt.sum(s) for s, _ in agreed}
    assert set(alive) <= {s.name for s in world.attempt.sums}
    expected = set()
    for sum_name, part_name in agreed:
        listed = SurvivorList.decode(world.lists[sum_name])
        p = world.attempt.sum(sum_name).part(part_name)
        expected.add((sum_name, part_name, p.contributors & set(listed.alive) - adversary.colluders))
    assert adversary.reads() == expected


def ready(attempt: Attempt | None = None, seed: int = 0) -> World:
    return World(attempt or make_attempt(SIX), seed=seed).ready()


def spoil(world: World, relayed: list[Signed], dealer: str, receivers: Iterable[str]) -> None:
    """Everybody deals, and `dealer` seals garbage for `receivers`."""
    world.reveal(relayed)
    for name in world.aggregator.members:
        messages = dict(world.dealt(name, relayed))
        if name == dealer:
            for receiver in receivers:
                true = ShareMessage.decode(messages[receiver].payload)
                bad = replace(true, shares=tuple(replace(s, box=bytes(50)) for s in true.shares))
                messages[receiver] = signed(dealer, derive.TAG_SHARES, bad.encode())
        world.aggregator.take_shares(name, messages.values())
    world.aggregator.close_shares()
