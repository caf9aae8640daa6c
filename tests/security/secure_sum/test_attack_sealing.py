"""Boxes of shares between the wrong ends, in the wrong places, or under one key twice (rule 7)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from security.secure_sum import sealing
from security.secure_sum.messages import ShareMessage
from security.signing import BadSignatureError
from tests.security.secure_sum.harness import World, context, make_attempt
from tests.security.secure_sum.lies import SIX
from tests.security.secure_sum.refusals import refuses

VICTIM = "north"
pytestmark = pytest.mark.usefixtures("graph")


def dealt() -> tuple[World, str]:
    """Everybody has dealt; and one of whom the victim is a shareholder, and the other way round."""
    world = World(make_attempt(SIX))
    world.deal(world.send_keys())
    peer = next(name for name in sorted(world.aggregator.shares[VICTIM]) if name != VICTIM)
    return world, peer


def refused_in_place_of(world: World, peer: str, message: ShareMessage) -> None:
    """The coordinator shows this as what `peer` dealt to the victim; it has nobody's signature."""
    honest = world.aggregator.shares[peer][VICTIM]
    rest = [s for s in world.aggregator.shares_for(VICTIM) if s.signer != peer]
    lie = replace(honest, payload=message.encode())
    refuses(BadSignatureError, world[VICTIM].accept, sorted(world.aggregator.cohort), [*rest, lie])


def test_no_two_boxes_of_an_attempt_share_a_key_and_a_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    used: Counter[tuple[bytes, bytes]] = Counter()
    ends: dict[bytes, int] = {}

    class Watched:
        def __init__(self, key: bytes) -> None:
            self._key, self._real = key, AESGCM(key)

        def encrypt(self, nonce: bytes, data: bytes, info: Any) -> bytes:
            used[self._key, nonce] += 1
            ends[self._key] = ends.get(self._key, 0) + 1
            return self._real.encrypt(nonce, data, info)

    monkeypatch.setattr(sealing, "AESGCM", Watched)
    for number in (1, 2):
        world = World(make_attempt(SIX, at=context(attempt=number)), seed=7)  # the same seed: as if keys came again
        relayed = world.send_keys()
        world.deal(relayed)
        assert all(world[name].deal(relayed) for name in SIX) if world.attempt.sparse is None else True
    boxes = sum(
        len(ShareMessage.decode(s.payload).shares) for d in world.aggregator.shares.values() for s in d.values()
    )
    assert len(used) == sum(used.values()) == 2 * boxes
    assert len(ends) == 2 * sum(len(d) for d in world.aggregator.shares.values())  # one key for each pair and direction


def test_a_box_shown_to_its_own_dealer_as_the_other_s_does_not_open() -> None:
    world, peer = dealt()
    own = ShareMessage.decode(world.aggregator.shares[VICTIM][peer].payload)
    refused_in_place_of(world, peer, replace(own, sender=peer, receiver=VICTIM))


def test_a_box_for_another_shareholder_does_not_open() -> None:
    world, peer = dealt()
    other = next(n for n in sorted(world.aggregator.shares[peer]) if n not in (peer, VICTIM))
    theirs = ShareMessage.decode(world.aggregator.shares[peer][other].payload)
    refused_in_place_of(world, peer, replace(theirs, receiver=VICTIM))


@pytest.mark.parametrize("whole", [False, True])
def test_boxes_in_each_other_s_places_do_not_open(whole: bool) -> None:
    world, peer = dealt()
    true = ShareMessage.decode(world.aggregator.shares[peer][VICTIM].payload)
    first, second = true.shares
    crossed = (
        (replace(second, sum=first.sum, part=first.part), replace(first, sum=second.sum, part=second.part))
        if whole
        else (replace(first, box=second.box), replace(second, box=first.box))
    )
    refused_in_place_of(world, peer, replace(true, shares=crossed))


def test_a_box_of_an_earlier_attempt_under_the_same_keys_does_not_open() -> None:
    """As if an institution's generator gave the same keys twice."""
    world, _ = dealt()
    later = World(make_attempt(SIX, at=context(attempt=2)), seed=world.seed)
    for name, again in World(world.attempt, seed=world.seed).members.items():
        later[name]._randomness = again._randomness
    later.deal(later.send_keys())
    before, now = ({n for n, d in w.aggregator.shares.items() if VICTIM in d} for w in (world, later))
    peer = min(before & now)  # circles differ, but of five others each time four are neighbours
    old = ShareMessage.decode(world.aggregator.shares[peer][VICTIM].payload)
    new = ShareMessage.decode(later.aggregator.shares[peer][VICTIM].payload)
    refused_in_place_of(later, peer, replace(new, shares=old.shares))
