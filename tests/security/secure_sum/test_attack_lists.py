"""Rule 5: one survivor list decides, signed alike by `threshold` shareholders; seed or mask key, never both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from security.errors import ConfigurationError, ConsiliumError
from security.secure_sum import derive
from security.secure_sum.errors import (
    BadShareError,
    ContradictoryListError,
    EquivocationError,
    MissingSignaturesError,
    TooFewMembersError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.messages import (
    Opening,
    Signed,
)
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import NAMES, World, identity, make_attempt
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    reads_only_agreed,
    ready,
    signed,
    spoil,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRule5SurvivorLists:
    def test_an_institution_both_alive_and_gone_opens_nothing(self) -> None:
        world = ready()
        world.upload_all("A")
        for alive, gone in ((SIX, ("south",)), (SIX[:4], SIX[3:]), ((*SIX, "south"), ())):
            payload = world.list_of("A", alive, gone)
            for name in HONEST:
                refuses(ContradictoryListError, world[name].sign, payload)
        assert Adversary(world, {COLLUDER}).reads() == set()

    def test_a_list_that_leaves_somebody_out_or_invents_one_is_not_signed(self) -> None:
        world = ready()
        world.upload_all("A")
        for alive, gone in ((SIX[:4], ()), (SIX, ("nobody",)), ((*SIX[:4], "nobody"), (SIX[4],))):
            payload = world.list_of("A", alive, gone)
            refuses(ContradictoryListError, world["north"].sign, payload)

    def test_a_living_institution_listed_as_gone_keeps_its_self_mask(self) -> None:
        """The coordinator has `south`'s upload and everything that the list of its death opens."""
        world = ready()
        world.upload_all("A")
        lie = world.list_of("A", [n for n in SIX if n != "south"], ["south"])
        signatures = world.sign(lie, SIX)
        openings = [world[n].open(signatures) for n in SIX]
        world.lists["A"] = lie
        adversary = Adversary(world, {COLLUDER}).hear(openings)
        assert "south" in adversary.mask_keys("A", "encoder/mrna")
        assert "south" not in adversary.seeds("A", "encoder/mrna")
        reads_only_agreed(world, adversary, [("A", "encoder/mrna")])

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    def test_seed_or_mask_key_of_a_victim_never_both(self) -> None:
        world = ready()
        world["south"].enter("A", b"A")  # a shareholder still, but it has sent nothing
        world.upload_all("A", [n for n in SIX if n != "south"])
        signatures = world.sign(world.lists["A"], SIX)
        for name in SIX:
            opened = Opening.decode(world[name].open(signatures).payload).shares
            kinds = {s.victim: s.kind for s in opened}
            victims = world[name]._dealers() | {name}
            assert len(opened) == len(kinds)
            assert set(kinds) == victims
            assert {v for v, kind in kinds.items() if kind == "mask-key"} == victims & {"south"}

    def test_two_lists_that_colluders_sign_both_never_reach_the_threshold_twice(self) -> None:
        """Every way to split the honest between two lists, `max_colluders` signing both: at most one list opens."""
        for split in range(2 ** len(HONEST)):
            world = ready(seed=split)
            world.upload_all("A")
            lists = (world.list_of("A", SIX, ()), world.list_of("A", [n for n in SIX if n != "south"], ["south"]))
            colluding = [signed(COLLUDER, derive.TAG_LIST, p) for p in lists]
            shown = {n: (split >> x) & 1 for x, n in enumerate(HONEST)}
            honest = {n: world[n].sign(lists[side]) for n, side in shown.items()}
            openings, opening_sides = [], set()
            for name, side in shown.items():
                # Everything is relayed to everybody: signatures of the other list must not count for this one.
                relayed = [*honest.values(), colluding[side]]
                if list(shown.values()).count(side) >= world.attempt.threshold - 1:
                    openings.append(world[name].open(relayed))
                    opening_sides.add(side)
                else:
                    error = refuses(MissingSignaturesError, world[name].open, relayed)
                    assert set(error.culprits) == {n for n in HONEST if shown[n] != side}
            assert len(opening_sides) <= 1
            adversary = Adversary(world, {COLLUDER}).hear(openings)
            if not opening_sides:
                assert adversary.reads() == set()
            else:
                world.lists["A"] = lists[opening_sides.pop()]
                reads_only_agreed(world, adversary, [("A", "encoder/mrna")] if len(openings) >= 3 else [])

    def test_who_sees_both_lists_holds_the_evidence(self) -> None:
        world = ready()
        world.upload_all("A")
        lists = (world.list_of("A", SIX, ()), world.list_of("A", [n for n in SIX if n != "south"], ["south"]))
        both = [signed(COLLUDER, derive.TAG_LIST, p) for p in lists]
        honest = [world[n].sign(lists[0]) for n in HONEST]
        north = world["north"]
        error = refuses(EquivocationError, north.open, [*honest, *both])
        assert isinstance(error, EquivocationError)
        assert error.culprits == (COLLUDER,)
        assert error.evidence == tuple(s.payload + s.signature for s in both)
        assert north.open([*honest, both[0]])  # and goes on with a clean set

    def test_the_aggregator_holds_the_evidence_too(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        other = world.list_of("A", SIX[:4], SIX[4:])
        world.aggregator.take_signature(signed(COLLUDER, derive.TAG_LIST, payload))
        error = refuses(EquivocationError, world.aggregator.take_signature, signed(COLLUDER, derive.TAG_LIST, other))
        assert error.culprits == (COLLUDER,)

    def test_too_few_signatures_name_whose_are_missing(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        few = world.sign(payload, SIX[:3])
        north = world["north"]
        error = refuses(MissingSignaturesError, north.open, few)
        assert set(error.culprits) == set(SIX[3:])

    def test_one_signature_many_times_is_one(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        few = world.sign(payload, SIX[:3])
        refuses(MissingSignaturesError, world["north"].open, few * 4)

    def test_forged_signatures_do_not_count(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        good = world.sign(payload, SIX[:3])
        forged = [
            Signed("upper", payload, identity("north").sign(derive.TAG_LIST, payload)),
            Signed("upper", payload, identity("upper").sign(derive.TAG_OPENING, payload)),
            Signed("upper", payload, bytes(64)),
            Signed("stranger", payload, good[0].signature),
        ]
        refuses(MissingSignaturesError, world["north"].open, good + forged)
        for envelope in forged:
            refuses(ConsiliumError, world.aggregator.take_signature, envelope)

    def test_only_shareholders_signatures_count(self) -> None:
        """`inner` is in the plan's roster but sent no keys: it holds no shares and decides nothing."""
        world = World(make_attempt(NAMES[:7], max_colluders=0, k_min=2, threshold=4))
        holders = NAMES[:6]
        world.deal(world.send_keys(holders))
        world.accept()
        payload = world.upload_all("A")
        few = [*world.sign(payload, holders[:3]), signed("inner", derive.TAG_LIST, payload)]
        refuses(MissingSignaturesError, world["north"].open, few)
        refuses(UnknownMemberError, world.aggregator.take_signature, few[-1])

    def test_an_institution_that_sent_nothing_does_not_sign_that_it_lives(self) -> None:
        world = ready()
        world.enter("A", SIX)
        for name in HONEST[1:]:
            world.upload("A", name)
        lie = world.list_of("A", SIX, ())
        refuses(ContradictoryListError, world["north"].sign, lie)

    def test_a_shareholder_that_opens_a_wrong_share_is_named_and_the_sum_opens_from_the_rest(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        signatures = list(world.aggregator.current.signatures.values())
        true = Opening.decode(world[COLLUDER].open(signatures).payload)
        for index in range(len(true.shares)):
            if true.shares[index].victim == COLLUDER:
                continue
            wrong = list(true.shares)
            wrong[index] = replace(wrong[index], share=bytes(17))
            lie = signed(COLLUDER, derive.TAG_OPENING, replace(true, shares=tuple(wrong)).encode())
            error = refuses(BadShareError, world.aggregator.take_opening, lie)
            assert error.culprits == (COLLUDER,)
        assert world.aggregator.blamed == {COLLUDER: "bad-share"}
        for name in HONEST:
            world.aggregator.take_opening(world[name].open(signatures))
        assert world.finish_sum("A") == world.expected("A", SIX)

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    def test_shares_of_the_other_kind_or_of_strangers_are_not_taken(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        opening = Opening.decode(world[COLLUDER].open(list(world.aggregator.current.signatures.values())).payload)
        share = opening.shares[0]
        own = next(s for s in opening.shares if s.victim == COLLUDER)  # bound by no commitment
        for wrong in (
            replace(share, kind="mask-key"),
            replace(own, kind="mask-key"),
            replace(share, victim="nobody"),
            replace(share, part="nothing"),
        ):
            lie = signed(COLLUDER, derive.TAG_OPENING, replace(opening, shares=(wrong,)).encode())
            refuses(BadShareError, world.aggregator.take_opening, lie)

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    @pytest.mark.parametrize("gone", [(), (COLLUDER,)])
    def test_wrongly_dealt_shares_are_complained_about_and_the_sum_still_opens(self, gone: tuple[str, ...]) -> None:
        """The colluder seals garbage for one shareholder: t good shares are left, so the sum opens."""
        attempt = make_attempt(NAMES, threshold=6)
        world = World(attempt)
        relayed = world.send_keys()
        spoil(world, relayed, COLLUDER, ["north"])
        world.accept()
        assert [e.culprits for e in world["north"].complaints] == [(COLLUDER,)]
        assert all(not world[n].complaints for n in NAMES if n != "north")
        living = [n for n in NAMES if n not in gone]
        assert world.whole_sum("A", living) == world.expected("A", living)

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    def test_too_many_wrongly_dealt_shares_open_nothing(self) -> None:
        world = World(make_attempt(NAMES, threshold=6))
        spoil(world, world.send_keys(), COLLUDER, NAMES[:4])
        world.accept()
        world.upload_all("A")
        world.sign_and_open("A", NAMES, NAMES)
        refuses(TooFewMembersError, world.aggregator.unmask)
        assert all(world[n].complaints[0].culprits == (COLLUDER,) for n in NAMES[:4])

    @pytest.mark.parametrize("names", [NAMES, tuple(f"clinic {x:02}" for x in range(24))])
    def test_a_dealer_s_own_wrong_share_is_left_out(self, names: tuple[str, ...]) -> None:
        """Its own share is the one that no commitment binds; it is the first in the roster's order, the worst place."""
        world = World(make_attempt(names, threshold=len(names) * 2 // 3))
        world.ready()
        payload = world.upload_all("A")
        for name in names:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        signatures = list(world.aggregator.current.signatures.values())
        for name in names:
            opening = world[name].open(signatures)
            if name == names[0]:
                true = Opening.decode(opening.payload)
                wrong = tuple(replace(s, share=bytes(17)) if s.victim == name else s for s in true.shares)
                opening = signed(name, derive.TAG_OPENING, replace(true, shares=wrong).encode())
            world.aggregator.take_opening(opening)
        assert world.finish_sum("A") == world.expected("A", names)

    def test_a_dealer_whose_shares_do_not_match_its_commitment_is_named(self) -> None:
        """Consistent shares of another seed than the announced one: every share's commitment holds, the seed's not."""
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        secrets = world[COLLUDER]._secrets
        assert secrets is not None
        secrets.parts = {k: replace(v, seed=bytes(16)) for k, v in secrets.parts.items()}
        world.deal(relayed)
        world.accept()
        world.upload_all("A")
        world.sign_and_open("A", SIX, SIX)
        error = refuses(BadShareError, world.aggregator.unmask)
        assert error.culprits == (COLLUDER,)

    def test_a_dealer_whose_mask_key_is_not_the_announced_one_is_named(self) -> None:
        world = World(make_attempt(SIX))
        relayed = world.send_keys()
        secrets = world[COLLUDER]._secrets
        assert secrets is not None
        secrets.parts = {k: replace(v, mask_secret=bytes(16)) for k, v in secrets.parts.items()}
        world.deal(relayed)
        world.accept()
        world.upload_all("A", HONEST)
        world.sign_and_open("A", HONEST, HONEST)
        error = refuses(BadShareError, world.aggregator.unmask)
        assert error.culprits == (COLLUDER,)

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    def test_too_few_openings_blame_nobody(self) -> None:
        world = ready()
        world.upload_all("A")
        world.sign_and_open("A", SIX, SIX[:3])
        error = refuses(TooFewMembersError, world.aggregator.unmask)
        assert error.culprits == ()

    def test_an_opening_for_another_list_is_not_taken(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        opening = Opening.decode(world[COLLUDER].open(list(world.aggregator.current.signatures.values())).payload)
        other = signed(COLLUDER, derive.TAG_OPENING, replace(opening, list_digest=bytes(32)).encode())
        refuses(WrongContextError, world.aggregator.take_opening, other)

    def test_a_second_different_opening_convicts(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        for name in SIX:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        first = world[COLLUDER].open(list(world.aggregator.current.signatures.values()))
        world.aggregator.take_opening(first)
        second = signed(COLLUDER, derive.TAG_OPENING, replace(Opening.decode(first.payload), shares=()).encode())
        error = refuses(EquivocationError, world.aggregator.take_opening, second)
        assert error.culprits == (COLLUDER,)

    @pytest.mark.parametrize("t", [2, 3])
    def test_thresholds_under_which_two_lists_could_be_signed_are_refused(self, t: int) -> None:
        with pytest.raises(ConfigurationError, match="unsafe"):
            make_attempt(SIX, threshold=t)

    def test_negative_colluders_and_one_key_under_two_names_are_refused(self) -> None:
        with pytest.raises(ConfigurationError):
            make_attempt(SIX, max_colluders=-1, k_min=1, threshold=3)
        good = make_attempt(SIX)
        with pytest.raises(ConfigurationError, match="two names"):
            replace(good, roster={**good.roster, "south": good.roster["north"]})
