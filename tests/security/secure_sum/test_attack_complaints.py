"""Who deals shares that do not open is convicted by its shareholders' complaints, and nobody is convicted by liars."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from security.errors import ProtocolError
from security.secure_sum import derive
from security.secure_sum.complaints import BAD_SHARES, FALSE_COMPLAINTS, Complaint, check_complaint, convicted
from security.secure_sum.errors import (
    EquivocationError,
    MalformedMessageError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.messages import Signed
from security.signing import BadSignatureError
from tests.security.secure_sum.harness import World, context, make_attempt
from tests.security.secure_sum.lies import COLLUDER, SIX, signed, spoil
from tests.security.secure_sum.refusals import refuses_call

EIGHT = tuple(f"clinic {x}" for x in range(8))


def spoilt() -> World:
    """The colluder has sealed garbage for `north`, and everybody has looked."""
    world = World(make_attempt(SIX))
    spoil(world, world.send_keys(), COLLUDER, ["north"])
    world.accept()
    return world


def relayed(world: World) -> Mapping[str, Mapping[str, Signed]]:
    return {dealer: world.aggregator.shares[dealer] for dealer in world.aggregator.cohort}


def refused(kind: type[ProtocolError], world: World, lie: Signed, known: Signed | None = None) -> ProtocolError:
    error = refuses_call(kind, lambda: check_complaint(world.attempt, lie, relayed(world), known), tuple)
    assert isinstance(error, ProtocolError)
    return error


class TestComplaints:
    def test_who_cannot_open_a_share_says_whose_and_which(self) -> None:
        world = spoilt()
        complaint = world["north"].complaint
        assert complaint is not None
        assert [n for n in SIX if world[n].complaint is not None] == ["north"]
        said = check_complaint(world.attempt, complaint, relayed(world), None)
        assert dict(said.refused) == {COLLUDER: relayed(world)[COLLUDER]["north"].digest}
        assert check_complaint(world.attempt, complaint, relayed(world), complaint) == said  # repeated: the same

    def test_a_complaint_of_another_attempt_convicts_nobody(self) -> None:
        before, after = spoilt(), World(make_attempt(SIX, at=context(attempt=2)))
        after.deal(after.send_keys())
        old = before["north"].complaint
        assert old is not None
        refused(WrongContextError, after, old)

    def test_a_complaint_about_another_message_than_was_relayed_convicts_nobody(self) -> None:
        world = spoilt()
        honest = world.aggregator.shares["south"]["north"]
        other = Complaint(world.attempt.context, "north", {"south": bytes([honest.digest[0] ^ 1]) + honest.digest[1:]})
        refused(WrongContextError, world, signed("north", derive.TAG_COMPLAINT, other.encode()))
        nobody = Complaint(world.attempt.context, "north", {"nobody": honest.digest})
        error = refused(MalformedMessageError, world, signed("north", derive.TAG_COMPLAINT, nobody.encode()))
        assert error.culprits == ("north",)

    def test_a_complaint_is_its_signer_s_own(self) -> None:
        """Else one colluder would speak for everybody."""
        world = spoilt()
        honest = world.aggregator.shares["south"]["north"]
        said = Complaint(world.attempt.context, "north", {"south": honest.digest}).encode()
        refused(MalformedMessageError, world, signed(COLLUDER, derive.TAG_COMPLAINT, said))
        by_another = signed(COLLUDER, derive.TAG_COMPLAINT, said)
        refused(BadSignatureError, world, Signed("north", said, by_another.signature))
        refused(BadSignatureError, world, signed("north", derive.TAG_UPLOAD, said))

    def test_a_second_other_complaint_convicts_its_signer(self) -> None:
        world = spoilt()
        first = world["north"].complaint
        assert first is not None
        honest = world.aggregator.shares["south"]["north"]
        more = Complaint(world.attempt.context, "north", {"south": honest.digest})
        error = refused(EquivocationError, world, signed("north", derive.TAG_COMPLAINT, more.encode()), first)
        assert error.culprits == ("north",)

    def test_nobody_complains_who_was_dealt_nothing(self) -> None:
        world = spoilt()
        said = Complaint(world.attempt.context, "north", {"south": bytes(32)})
        empty = {dealer: {r: m for r, m in to.items() if r != "north"} for dealer, to in relayed(world).items()}
        lie = signed("north", derive.TAG_COMPLAINT, said.encode())
        refuses_call(UnknownMemberError, lambda: check_complaint(world.attempt, lie, empty, None), tuple)


class TestWhomComplaintsConvict:
    def test_more_complainers_than_may_lie_convict_the_dealer(self) -> None:
        assert convicted({("a", "x")}, 1) == {}
        assert convicted({("a", "x"), ("b", "x")}, 1) == {"x": BAD_SHARES}
        assert convicted({("a", "x"), ("b", "x")}, 2) == {}

    def test_who_complains_of_more_than_may_lie_is_convicted(self) -> None:
        assert convicted({("x", "a"), ("x", "b")}, 1) == {"x": FALSE_COMPLAINTS}

    def test_a_pair_that_accuses_each_other_is_one_pair(self) -> None:
        assert convicted({("a", "x"), ("x", "a")}, 1) == {}

    def test_where_nobody_may_lie_the_dealer_is_believed_last(self) -> None:
        assert convicted({("a", "x")}, 0) == {"x": BAD_SHARES}

    @given(st.data(), st.integers(1, 3))
    def test_no_honest_institution_is_ever_convicted(self, data: st.DataObject, max_colluders: int) -> None:
        """Of a complainer and its dealer at least one lies: whatever liars say, and whomever they deal garbage to."""
        liars = data.draw(st.sets(st.sampled_from(EIGHT), max_size=max_colluders))
        possible = [(a, b) for a, b in product(EIGHT, EIGHT) if a != b and {a, b} & liars]
        pairs = data.draw(st.sets(st.sampled_from(possible))) if possible else set()
        found = convicted(pairs, max_colluders)
        assert found.keys() <= liars
        partners = {name: {one for pair in pairs if name in pair for one in pair} - {name} for name in liars}
        assert found.keys() >= {x for x in liars if len(partners[x] - liars) > max_colluders}
