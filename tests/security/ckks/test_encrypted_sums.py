"""Encrypted sums from keys to words: exact for any dropouts, or nothing opens; the coordinator never reads any."""

from __future__ import annotations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from security.ckks.aggregator import make_aggregator
from security.ckks.encoding import FRAME_BYTES
from security.ckks.keys import holders
from security.ckks.messages import Decryption
from security.ckks.packing import encrypted
from security.secure_sum.errors import TooFewMembersError
from security.secure_sum.journal import restore
from security.secure_sum.messages import KeyMessage
from security.secure_sum.spec import Attempt, Sum
from tests.security.ckks.harness import EncryptedWorld, encrypted_attempt
from tests.security.secure_sum.harness import NAMES, context, part, safe_threshold
from tests.security.secure_sum.refusals import aggregator_state
from tests.security.secure_sum.schedules import predicted, run

STEPS = ("keys", "shares", "accept", "A/upload", "A/sign", "A/open", "B/upload", "B/sign", "B/open")


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """3 to 6 institutions; sum B is encrypted, and sum A perhaps."""
    n = draw(st.integers(3, 6))
    names = draw(st.permutations(NAMES))[:n]
    max_colluders = draw(st.integers(0, min(1, n - 2)))
    lowest = safe_threshold(n, max_colluders)
    threshold = draw(st.integers(lowest, max(lowest, n - 1)))
    owners = st.sets(st.sampled_from(names), min_size=1)
    sums = [
        Sum(
            s,
            (
                part("some", draw(owners), ring=draw(st.sampled_from((16, 32, 64))), length=draw(st.integers(1, 2100))),
                part("everybody", names, ring=64, length=3),
                part("everybody too", names, ring=64, length=draw(st.integers(1, 1100))),
            ),
        )
        for s in ("A", "B")
    ]
    chosen = [sums[0] if draw(st.booleans()) else encrypted(sums[0]), encrypted(sums[1])]
    return encrypted_attempt(names, sums=chosen, max_colluders=max_colluders, threshold=threshold)


def foreseen(world: EncryptedWorld, absent: set[tuple[str, str]]) -> tuple[dict[str, frozenset[str]], str]:
    """`predicted`, but an encrypted sum opens if two holders of the key are there, and none without the key's maker."""
    attempt = world.attempt
    keyed = [n for n in attempt.roster if (n, "keys") not in absent]
    if len(keyed) >= attempt.threshold:
        held = holders(attempt, keyed)
        if (held[0], "shares") in absent:
            return {}, "shares"
        there = [n for n in keyed if not {(n, "shares"), (n, "accept")} & absent]
        for s in attempt.sums:
            able = [n for n in held if n in there and not {(n, f"{s.name}/sign"), (n, f"{s.name}/open")} & absent]
            if s.encrypted and len(able) >= 2:
                absent = absent - {(n, f"{s.name}/open") for n in attempt.roster}
            elif s.encrypted:
                absent = absent | {(n, f"{s.name}/open") for n in attempt.roster}
    return predicted(world, absent)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_any_dropouts_at_any_phase_open_the_exact_sum_or_nothing(data: st.DataObject) -> None:
    attempt = data.draw(attempts())
    absent = data.draw(st.sets(st.tuples(st.sampled_from(list(attempt.roster)), st.sampled_from(STEPS)), max_size=4))
    world = EncryptedWorld(attempt, seed=data.draw(st.integers(0, 2**32)), shuffle=data.draw(st.booleans()))
    outcome = run(world, absent)
    alive, stopped_at = foreseen(world, absent)
    assert outcome.stopped_at == stopped_at, outcome.error
    assert outcome.opened == {s: world.expected(s, who) for s, who in alive.items()}


def test_as_few_hold_the_key_as_dropouts_allow_in_the_roster_s_order() -> None:
    attempt = encrypted_attempt(NAMES, threshold=6)
    assert holders(attempt, NAMES) == NAMES[:5]  # three may drop out, and two are left
    assert holders(attempt, NAMES[2:]) == NAMES[2:7]
    again = encrypted_attempt(NAMES, threshold=6, at=context(attempt=9))
    assert holders(again, NAMES) == (NAMES[8], *NAMES[:4])
    world = EncryptedWorld(attempt)
    world.ready()
    assert {n for n in NAMES if world.member(n)._secret is not None} == set(NAMES[:5])


def test_where_its_maker_vanished_the_next_attempt_has_a_key_of_the_next_one() -> None:
    first = EncryptedWorld(encrypted_attempt(threshold=4))
    outcome = run(first, {(NAMES[0], "shares")})
    assert isinstance(outcome.error, TooFewMembersError)
    assert outcome.stopped_at == "shares"
    second = EncryptedWorld(encrypted_attempt(threshold=4, at=context(attempt=2)))
    assert run(second, {(NAMES[0], "shares")}).error is None
    assert second.holders[0] == NAMES[1]


def test_other_holders_take_over_where_all_vanish_that_may() -> None:
    for gone in (NAMES[:3], NAMES[2:5], (NAMES[0], NAMES[2], NAMES[4])):
        world = EncryptedWorld(encrypted_attempt(NAMES, threshold=6)).ready()
        world.upload_all("A")
        world.sign_and_open("A", NAMES, set(NAMES) - set(gone))
        assert {o.signer for o in world.openings["A"]} == set(NAMES[:5]) - set(gone)
        assert world.finish_sum("A") == world.expected("A", NAMES)


def test_holders_who_left_are_not_waited_for() -> None:
    world = EncryptedWorld(encrypted_attempt(NAMES, threshold=6))
    world.ready()
    world.upload_all("A")
    world.decide()
    machine, held = world.aggregator, set(NAMES[:5])
    first, second = machine.asked(), machine.asked(set(NAMES[:2]))
    assert NAMES[0] in first <= held
    assert len(first) == 2
    assert NAMES[2] in second <= set(NAMES[2:5])
    assert len(second) == 2
    assert machine.pass_on(set(NAMES[:2])) is False  # of the other three one is left
    assert machine.asked(set(NAMES[:2])) == frozenset()
    assert NAMES[0] in machine.asked({NAMES[3]})  # back again, who had only left


def test_beside_masked_sums_only_those_have_masks() -> None:
    world = EncryptedWorld(encrypted_attempt(masked_too=True))
    relayed = world.send_keys()
    assert {k.sum for k in KeyMessage.decode(relayed[0].payload).parts} == {"A"}
    world.deal(relayed)
    world.accept()
    for s in ("A", "B"):
        assert world.whole_sum(s) == world.expected(s, NAMES[:5])


def test_a_part_below_the_floor_is_not_decrypted_though_others_are() -> None:
    world = EncryptedWorld(encrypted_attempt(threshold=4)).ready()
    world.whole_sum("A")
    alive = NAMES[2:5]  # of "loss/image" only two are left
    world.enter("B", NAMES[:5])
    for name in alive:
        world.upload("B", name)
    world.lists["B"] = world.aggregator.close_uploads()
    world.sign_and_open("B", NAMES[:5], NAMES[:5])
    opening, _ = world.openings["B"]
    assert [p.part for p in Decryption.decode(opening.payload).parts] == ["loss/mrna"]
    assert world.finish_sum("B") == world.expected("B", alive)


def test_an_upload_has_the_plan_s_length_and_resumes_at_any_byte() -> None:
    world = EncryptedWorld(encrypted_attempt()).ready()
    world.enter("A", NAMES[:5])
    upload = world.mask("A", "north")
    whole = b"".join(upload.chunks())
    assert len(whole) == upload.length == world.aggregator.upload_length("north") == FRAME_BYTES
    for offset in (0, 1, FRAME_BYTES - 1, FRAME_BYTES):
        assert b"".join(upload.chunks(offset)) == whole[offset:]
    assert world.mask("A", "north") is upload


@pytest.mark.parametrize("phase", ["shares", "uploads", "signatures", "openings", "opened"])
def test_a_restarted_coordinator_is_where_it_was(phase: str) -> None:
    world = EncryptedWorld(encrypted_attempt())
    world.deal(world.send_keys())
    if phase != "shares":
        world.accept()
        world.upload_all("A")
        if phase != "uploads":
            for name in NAMES[:5]:
                world.aggregator.take_signature(world[name].sign(world.aggregator.current.payload))
            if phase != "signatures":
                world.aggregator.decide()
                if phase == "opened":
                    for name in world.aggregator.asked():
                        world.open("A", name)
    again = restore(make_aggregator(world.attempt), world.machine.journal())
    assert aggregator_state(again) == aggregator_state(world.aggregator)
    assert again.encryption_key == world.aggregator.encryption_key
    assert again.journal() == world.machine.journal()
    assert again.openable == world.aggregator.openable
