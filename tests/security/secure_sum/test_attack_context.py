"""Rule 7: every message belongs to one place, every attempt happens once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from security.errors import ConsiliumError
from security.secure_sum import derive
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.errors import (
    ContradictoryListError,
    EquivocationError,
    MalformedMessageError,
    MemberMisuseError,
    MissingSignaturesError,
    OutOfPhaseError,
    StaleAttemptError,
    TamperedKeysError,
    TooFewMembersError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.high_water import HighWaterMark
from security.secure_sum.member import Member
from security.secure_sum.messages import (
    ShareMessage,
    SurvivorList,
)
from security.signing import BadSignatureError
from tests.security.secure_sum.harness import NAMES, World, context, identity, make_attempt
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    keys_of,
    ready,
    signed,
    with_keys,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRule7BoundAndOnce:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("federation", "other"), ("run", b"\7" * 32), ("round", 2), ("attempt", 2), ("opening", b"\7" * 32)],
    )
    def test_messages_of_another_context_are_refused_by_both_machines(self, field: str, value: object) -> None:
        """Every kind of message, honestly made and signed in another attempt of the same institutions."""
        here = ready()
        there = ready(make_attempt(SIX, at=replace(context(), **{field: value})), seed=1)  # type: ignore[arg-type]  # fields by name
        payload = here.upload_all("A")
        there.upload_all("A")
        foreign = there.list_of("A", SIX, ())
        mixed = replace(SurvivorList.decode(payload), context=there.attempt.context).encode()
        north = here["north"]
        refuses(WrongContextError, north.sign, mixed)
        good = here.sign(payload, SIX[:3])
        replayed = there["upper"].sign(foreign)
        refuses(MissingSignaturesError, north.open, [*good, replayed])
        for name in SIX[:4]:
            here.aggregator.take_signature(here[name].sign(payload))
        machine = here.aggregator
        refuses(WrongContextError, machine.take_signature, replayed)
        machine.decide()
        opening = there["upper"].open([there[n].sign(foreign) for n in SIX])
        refuses(WrongContextError, machine.take_opening, opening)
        fresh = Aggregator(here.attempt)
        refuses(WrongContextError, fresh.take_keys, there["north"].make_keys())
        newcomer = World(here.attempt, seed=3)
        relayed = [newcomer[n].make_keys() for n in HONEST] + [there[COLLUDER].make_keys()]
        refuses(WrongContextError, newcomer.meets("north"), relayed)

    def test_shares_replayed_from_another_attempt_are_refused(self) -> None:
        here, there = World(make_attempt(SIX)), ready(make_attempt(SIX, at=context(attempt=2)), seed=1)
        here.deal(here.send_keys())
        shares = [s for s in here.aggregator.shares_for("north") if s.signer != "south"]
        stale = there.aggregator.shares["south"]["north"]
        refuses(WrongContextError, here["north"].accept, SIX, [*shares, stale])
        refuses(OutOfPhaseError, World(here.attempt).aggregator.take_shares, "south", [stale])

    def test_shares_for_somebody_else_or_for_other_keys_are_refused(self) -> None:
        world = World(make_attempt(SIX))
        world.deal(world.send_keys())
        rest = [s for s in world.aggregator.shares_for("north") if s.signer != "south"]
        misrouted = next(s for n, s in world.aggregator.shares["south"].items() if n not in ("north", "south"))
        refuses(WrongContextError, world["north"].accept, SIX, [*rest, misrouted])
        true = ShareMessage.decode(world.aggregator.shares["south"]["north"].payload)
        other = signed("south", derive.TAG_SHARES, replace(true, keys_digest=bytes(32)).encode())
        refuses(WrongContextError, world["north"].accept, SIX, [*rest, other])

    def test_a_key_message_in_other_bytes_is_refused(self) -> None:
        """Same fields, another encoding: bytes beyond what any machine reads would be relayed to everybody."""
        world = World(make_attempt(SIX))
        payload = world[COLLUDER].make_keys().payload
        odd = signed(COLLUDER, derive.TAG_KEYS, payload + b"\xf8\x07\x01")
        error = refuses(MalformedMessageError, world.aggregator.take_keys, odd)
        assert error.culprits == (COLLUDER,)

    def test_nobody_is_named_for_a_share_that_it_did_not_sign(self) -> None:
        """The coordinator spoils a box on the way: it opens for nobody, and its dealer never signed it."""
        world = World(make_attempt(SIX))
        world.deal(world.send_keys())
        rest = [s for s in world.aggregator.shares_for("north") if s.signer != "south"]
        honest = world.aggregator.shares["south"]["north"]
        true = ShareMessage.decode(honest.payload)
        first, *others = true.shares
        for spoilt in (replace(first, box=bytes(50)), replace(first, seed_share_commitment=bytes(32))):
            payload = replace(true, shares=(spoilt, *others)).encode()
            refuses(BadSignatureError, world["north"].accept, SIX, [*rest, replace(honest, payload=payload)])
        unsigned = replace(honest, signature=bytes(64))  # what opens is its dealer's, whoever carried it
        world["north"].accept(SIX, [*rest, unsigned])
        assert world["north"].complaints == ()

    def test_a_list_or_signature_of_another_sum_is_refused_and_convicts_nobody(self) -> None:
        world = ready()
        world.whole_sum("A")
        old_list = world.aggregator.finished["A"].payload
        old_signature = world.aggregator.finished["A"].signatures["north"]
        payload = world.upload_all("B")
        crossed = replace(SurvivorList.decode(payload), sum="A").encode()
        for stale in (old_list, crossed):
            refuses(WrongContextError, world["north"].sign, stale)
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        refuses(WrongContextError, world.aggregator.take_signature, old_signature)
        few = [old_signature, *(world[n].sign(payload) for n in SIX[1:4])]
        refuses(MissingSignaturesError, world["east"].open, few)

    def test_uploads_and_openings_of_another_sum_are_refused(self) -> None:
        world = ready()
        world.whole_sum("A")
        header, opening = world.aggregator.finished["A"].headers["north"], world.openings["A"][0]
        world.enter("B", SIX)
        refuses(OutOfPhaseError, world.aggregator.take_header, header)
        for name in SIX:
            world.upload("B", name)
        payload = world.aggregator.close_uploads()
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        refuses(WrongContextError, world.aggregator.take_opening, opening)

    def test_swapped_keys_are_refused(self) -> None:
        """The coordinator has no identity key of an honest institution: it can only swap in what it signs itself."""
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        own = X25519PrivateKey.generate().public_key().public_bytes_raw()
        others = [s for s in relayed if s.signer != "south"]
        south = world["south"].make_keys()
        north = world["north"]
        swapped = replace(south, payload=replace(keys_of(south), share_key=own).encode())
        by_colluder = replace(with_keys(south, by=COLLUDER, share_key=own), signer="south")
        for lie in (swapped, by_colluder):
            if world.attempt.sparse is None:
                refuses(BadSignatureError, north.deal, [*others, lie])
                continue
            twin = World(world.attempt)  # a neighbour's signature is looked at before anything is dealt to it
            twin.send_keys()
            refused = 0
            for name in {*SIX} - {"south"}:
                twin[name].reveal([*others, lie])
                try:
                    twin[name].deal_around(twin.own_values(SIX))
                except BadSignatureError:
                    refused += 1
            assert refused == 4  # all of south's neighbours
        disguised = with_keys(south, by=COLLUDER)
        without = [s for s in others if s.signer != COLLUDER]
        error = refuses(MalformedMessageError, world.meets("north"), [*without, disguised])
        assert error.culprits == (COLLUDER,)
        stranger = replace(south, signer="stranger")
        refuses(UnknownMemberError, world.meets("north"), [*others, stranger])

    def test_the_victim_s_own_key_left_out_or_changed_is_refused(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        north = world["north"]
        without = [s for s in relayed if s.signer != "north"]
        resigned = with_keys(north.make_keys(), share_key=X25519PrivateKey.generate().public_key().public_bytes_raw())
        for shown in (without, [*without, resigned], [*relayed, relayed[0]]):
            refuses(TamperedKeysError, world.meets("north"), shown)

    def test_a_copied_public_key_is_refused(self) -> None:
        world = World(make_attempt(SIX))
        victim = keys_of(world["south"].make_keys())
        copied = with_keys(world[COLLUDER].make_keys(), share_key=victim.share_key)
        relayed = [*(world[n].make_keys() for n in HONEST), copied]
        refuses(TamperedKeysError, world.meets("north"), relayed)

    def test_different_keys_shown_to_two_halves_come_out_in_the_shares(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        second = with_keys(
            world[COLLUDER].make_keys(), share_key=X25519PrivateKey.generate().public_key().public_bytes_raw()
        )
        dealt = {"south": world.dealt("south", [s if s.signer != COLLUDER else second for s in relayed])}
        world.reveal(relayed)
        dealt |= {n: world.dealt(n, relayed) for n in SIX if n != "south"}
        # South's graph is another one where it is drawn: somebody is its neighbour in both.
        both = next(n for n in dealt["south"] if n in dealt and n != "south" and "south" in world[n]._dealers())
        shares = [dealt[n][both] for n in SIX if both in dealt[n] and n != both and n in world[both]._dealers()]
        refuses(WrongContextError, world[both].accept, SIX, shares)
        refuses(WrongContextError, world.aggregator.take_shares, "south", dealt["south"].values())

    def test_fewer_than_threshold_members_deal_to_nobody(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        three = [s for s in relayed if s.signer in ("north", "south", COLLUDER)]
        refuses(TooFewMembersError, world.meets("north"), three)
        world.deal(relayed)
        shares = [s for s in world.aggregator.shares_for("north") if s.signer in ("south", COLLUDER)]
        refuses(TooFewMembersError, world["north"].accept, ("north", "south", COLLUDER), shares)

    def test_a_cohort_of_strangers_or_with_missing_shares_is_refused(self) -> None:
        world = World(make_attempt(NAMES[:7]))
        world.deal(world.send_keys(SIX))
        shares = list(world.aggregator.shares_for("north"))
        north = world["north"]
        for cohort, messages in (
            ((*SIX, "inner"), [*shares, replace(shares[0], signer="inner")]),
            ((*SIX, "inner"), shares),
            (SIX, shares[1:]),
            (SIX, [*shares[1:], shares[1]]),
        ):
            refuses(UnknownMemberError, north.accept, cohort, messages)

    def test_a_round_replayed_redone_or_restored_is_refused(self) -> None:
        mark = HighWaterMark().join(0, 1).join(1, 1)
        for round_, attempt in ((1, 1), (0, 1), (0, 9)):
            with pytest.raises(StaleAttemptError):
                mark.join(round_, attempt)
        assert mark.join(1, 2) == HighWaterMark(1, 2)
        signed_once = mark.sign(1, 1, "A", b"list")
        with pytest.raises(StaleAttemptError, match="no other attempt"):
            signed_once.join(1, 2)
        assert signed_once.join(2, 1) == HighWaterMark(2, 1)

    def test_the_mark_holds_one_list_per_sum(self) -> None:
        mark = HighWaterMark().join(1, 1).sign(1, 1, "A", b"list")
        assert mark.sign(1, 1, "A", b"list") == mark
        assert mark.sign(1, 1, "B", b"other").signed == {"A": b"list", "B": b"other"}
        with pytest.raises(ContradictoryListError):
            mark.sign(1, 1, "A", b"other")
        for place in ((0, 1), (1, 2), (2, 1)):
            with pytest.raises(StaleAttemptError):
                mark.sign(*place, "B", b"other")

    def test_after_a_signed_list_no_second_attempt_of_the_round_finds_enough_members(self) -> None:
        """The coordinator hides the decided list from as many honest as it can and tries again with the rest."""
        world = ready()
        payload = world.upload_all("A")
        t, c = world.attempt.threshold, world.attempt.max_colluders
        signers = HONEST[: t - c]
        signatures = [*world.sign(payload, signers), signed(COLLUDER, derive.TAG_LIST, payload)]
        assert world[signers[0]].open(signatures)
        marks = {n: HighWaterMark().join(1, 1) for n in HONEST}
        marks |= {n: marks[n].sign(1, 1, "A", derive.digest_of("x", [payload])) for n in signers}
        willing = [COLLUDER]
        for name in HONEST:
            try:
                marks[name].join(1, 2)
                willing.append(name)
            except StaleAttemptError:
                pass
        again = World(make_attempt(SIX, at=context(attempt=2)), seed=2)
        relayed = [again[n].make_keys() for n in willing]
        honest = next(n for n in willing if n != COLLUDER)
        refuses(TooFewMembersError, again.meets(honest), relayed)

    def test_a_second_list_is_not_signed_when_asked_twice(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        first = world["north"].sign(payload)
        other = world.list_of("A", SIX[:4], SIX[4:])
        refuses(ContradictoryListError, world["north"].sign, other)
        assert world["north"].sign(payload) == first

    def test_asked_twice_a_member_deals_and_opens_the_same_bytes(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        first = dict(world.dealt("north", relayed))
        assert dict(world.dealt("north", relayed)) == first
        fewer = [s for s in relayed if s.signer != COLLUDER]
        refuses(MemberMisuseError, world.meets("north"), fewer)

    def test_a_withdrawn_attempt_keeps_no_secret(self) -> None:
        world = ready()
        world.upload_all("A")
        north = world["north"]
        secrets = north._secrets
        assert secrets is not None
        north.withdraw()
        assert north._secrets is None
        assert north._current is None
        for call in (
            north.make_keys,
            lambda: north.open([]),
            lambda: north.sign(b""),
            lambda: world.mask("A", "north"),
        ):
            refuses(ConsiliumError, call)

    def test_another_s_key_does_not_make_a_member(self) -> None:
        world = World(make_attempt(SIX))
        with pytest.raises(MemberMisuseError):
            Member(world.attempt, "north", identity("south"), world["north"]._randomness)

    def test_a_second_key_message_convicts_and_a_second_signature_does_not(self) -> None:
        world = World(make_attempt(SIX))
        first = world[COLLUDER].make_keys()
        world.aggregator.take_keys(first)
        other = with_keys(first, share_key=X25519PrivateKey.generate().public_key().public_bytes_raw())
        error = refuses(EquivocationError, world.aggregator.take_keys, other)
        assert isinstance(error, EquivocationError)
        assert error.evidence == (first.payload + first.signature, other.payload + other.signature)

    def test_shares_dealt_twice_convict(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        world.reveal(relayed)
        dealt = world.dealt(COLLUDER, relayed)
        world.aggregator.take_shares(COLLUDER, dealt.values())
        true = ShareMessage.decode(dealt["north"].payload)
        bad = replace(true, shares=tuple(replace(s, box=bytes(50)) for s in true.shares))
        again = {**dealt, "north": signed(COLLUDER, derive.TAG_SHARES, bad.encode())}
        error = refuses(EquivocationError, world.aggregator.take_shares, COLLUDER, again.values())
        assert error.culprits == (COLLUDER,)
        for wrong in (list(dealt.values())[1:], [*dealt.values(), dealt["north"]]):
            fresh = World(world.attempt, seed=0)
            fresh.send_keys()
            with pytest.raises(ConsiliumError):
                fresh.aggregator.take_shares(COLLUDER, wrong)

    def test_shares_under_another_s_name_are_refused(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        world.reveal(relayed)
        refuses(MalformedMessageError, world.aggregator.take_shares, "south", world.dealt(COLLUDER, relayed).values())
