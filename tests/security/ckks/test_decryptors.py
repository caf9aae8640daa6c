"""Two holders decrypt each by itself: who lies alone is found out, and what nobody could check is not decrypted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.ckks.aggregator import make_aggregator
from security.ckks.decryptors import DecryptionsDifferError, to_ask
from security.secure_sum.errors import EquivocationError, OutOfPhaseError, TooFewMembersError, UnknownMemberError
from security.secure_sum.journal import JournalledAggregator, restore
from tests.security.ckks.harness import FIVE, EncryptedWorld, encrypted_attempt, uploaded
from tests.security.secure_sum.harness import NAMES, World, make_attempt
from tests.security.secure_sum.refusals import aggregator_state, refuses

ATTEMPT = encrypted_attempt()
HELD = FIVE[:3]  # of five institutions with threshold 4


def decided() -> tuple[EncryptedWorld, str, str, str]:
    """A world whose sum A is to be decrypted; who is asked first, who is drawn, and the holder that is not asked."""
    world = uploaded().decide()
    (drawn,) = world.aggregator.asked() - {"north"}
    (other,) = set(HELD) - {"north", drawn}
    return world, "north", drawn, other


def restarted(world: EncryptedWorld) -> JournalledAggregator:
    return restore(make_aggregator(world.attempt), world.machine.journal())


class TestDraw:
    @settings(deadline=None)
    @given(digest=st.binary(min_size=32, max_size=32), living=st.permutations(NAMES), data=st.data())
    def test_who_was_asked_stays_asked_whatever_the_other_does(
        self, digest: bytes, living: list[str], data: st.DataObject
    ) -> None:
        living = living[: data.draw(st.integers(2, 9))]
        asked = to_ask(ATTEMPT, digest, living, ())
        assert len(asked) == 2
        assert living[0] in asked <= set(living)
        for one in asked:
            (other,) = asked - {one}
            assert to_ask(ATTEMPT, digest, living, (one,)) == {other}
            rest = [name for name in living if name != one]
            assert len(rest) < 2 or other in to_ask(ATTEMPT, digest, rest, ())

    def test_every_other_holder_is_drawn_by_some_list_and_one_list_draws_one(self) -> None:
        draws = [to_ask(ATTEMPT, bytes([k]) * 32, NAMES, ()) for k in range(100)]
        assert set().union(*draws) == set(NAMES)
        assert draws == [to_ask(ATTEMPT, bytes([k]) * 32, NAMES, ()) for k in range(100)]

    def test_nobody_is_asked_where_nobody_is_left_to_check_it(self) -> None:
        assert to_ask(ATTEMPT, bytes(32), ("north",), ()) == frozenset()
        assert to_ask(ATTEMPT, bytes(32), ("north",), ("north",)) == frozenset()
        assert to_ask(ATTEMPT, bytes(32), NAMES, NAMES[:2]) == frozenset()


class TestLyingDecryptor:
    def test_a_lie_of_either_is_found_and_the_sum_never_counts(self) -> None:
        for liar in (0, 1):
            for lies_first in (True, False):
                world, *pair, other = decided()
                false, honest = pair[liar], pair[1 - liar]
                if lies_first:
                    world.aggregator.take_opening(world.lie(false))
                world.open("A", honest)
                if not lies_first:
                    world.aggregator.take_opening(world.lie(false))
                assert not world.aggregator.openable
                error = refuses(DecryptionsDifferError, world.aggregator.unmask)
                assert set(getattr(error, "culprits", ())) == set(pair)
                third = world.decryption(other)
                refuses(OutOfPhaseError, world.aggregator.take_opening, third)  # no majority is sought
                assert world.aggregator.asked() == frozenset()
                again = restarted(world)
                assert not again.openable
                assert getattr(again.contradiction, "culprits", ()) == getattr(error, "culprits", ())

    def test_one_decryption_opens_nothing(self) -> None:
        world, first, drawn, _ = decided()
        world.open("A", first)
        assert not world.aggregator.openable
        refuses(TooFewMembersError, world.aggregator.unmask)
        world.open("A", drawn)
        assert world.aggregator.openable
        assert world.machine.contradiction is None
        assert world.finish_sum("A") == world.expected("A", FIVE)

    def test_where_one_holder_is_left_nothing_is_decrypted(self) -> None:
        world, first, *others = decided()
        assert world.aggregator.asked(set(others)) == frozenset()
        assert not world.aggregator.pass_on(set(others))
        alone = world.decryption(first)
        refuses(OutOfPhaseError, world.aggregator.take_opening, alone, set(others))

    def test_who_said_one_thing_cannot_say_another_or_be_both_of_the_two(self) -> None:
        world, first, *_ = decided()
        world.aggregator.take_opening(said := world.lie(first))
        world.aggregator.take_opening(said)
        honest = world.decryption(first)
        refuses(EquivocationError, world.aggregator.take_opening, honest)
        assert not world.aggregator.openable


class TestAsked:
    def test_a_holder_that_was_not_asked_does_not_decide_the_sum(self) -> None:
        world, first, drawn, other = decided()
        early = world.decryption(other)
        refuses(OutOfPhaseError, world.aggregator.take_opening, early)
        assert world.aggregator.asked() == {first, drawn}
        world.aggregator.take_opening(early, {first})  # it has left, so the other one is asked
        world.aggregator.take_opening(world.decryption(drawn), {first})
        assert world.finish_sum("A") == world.expected("A", FIVE)

    @pytest.mark.parametrize("late", [0, 1])
    @pytest.mark.parametrize("answers", [True, False], ids=["in-time", "too-late"])
    def test_who_was_passed_over_may_still_answer_until_two_have(self, late: int, answers: bool) -> None:
        world, *pair, other = decided()
        world.open("A", pair[1 - late])
        assert world.aggregator.pass_on()
        assert world.machine.passed_over == {"A": (pair[late],)}
        assert world.aggregator.asked() == {other}
        in_time, third = (pair[late], other) if answers else (other, pair[late])
        world.open("A", in_time)
        assert world.aggregator.openable
        assert world.aggregator.asked() == frozenset()
        refuses(OutOfPhaseError, world.aggregator.take_opening, world.decryption(third))

    @pytest.mark.parametrize("gone", [False, True], ids=["passed-over", "left"])
    def test_a_restart_knows_who_was_passed_over_and_who_had_left(self, gone: bool) -> None:
        world, first, drawn, other = decided()
        left = {first} if gone else set[str]()
        if not gone:
            world.open("A", drawn)
            assert world.aggregator.pass_on()
        third = world.decryption(other)
        world.aggregator.take_opening(third, left)
        again = restarted(world)
        assert aggregator_state(again) == aggregator_state(world.aggregator)
        assert again.passed_over == world.machine.passed_over == ({} if gone else {"A": (first,)})
        assert again.asked() == world.aggregator.asked()
        assert again.openable == world.aggregator.openable is not gone
        assert again.journal() == world.machine.journal()

    def test_only_holders_are_passed_over_and_only_while_a_sum_is_decrypted(self) -> None:
        world = uploaded()
        refuses(OutOfPhaseError, world.machine.pass_over, ["north"])
        world.decide()
        refuses(UnknownMemberError, world.machine.pass_over, ["west"])
        masked = World(make_attempt())
        refuses(OutOfPhaseError, JournalledAggregator(masked.attempt).pass_over, ["north"])
