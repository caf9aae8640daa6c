"""Rule 10 on a drawn graph: exact or shut for any dropouts; nobody chooses the graph, nobody is cut off from it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from security.errors import ConfigurationError, ConsiliumError
from security.secure_sum import derive
from security.secure_sum.errors import (
    BadShareError,
    BelowFloorError,
    MalformedMessageError,
    MemberMisuseError,
    MissingSignaturesError,
    OutOfPhaseError,
    RevealError,
    TooFewMembersError,
    TranscriptError,
    UnknownMemberError,
    WrongContextError,
)
from security.secure_sum.graph import MAX_ROSTER, SparseGraph
from security.secure_sum.journal import JournalledAggregator, restore
from security.secure_sum.messages import Opening, ShareMessage, Signed, SurvivorList
from security.secure_sum.reveals import REVEAL_BYTES, check_reveal, reveal_commitment
from security.secure_sum.spec import Attempt, Sum
from security.secure_sum.upload import ArrayWords
from security.signing import BadSignatureError
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import NAMES, World, context, make_attempt, part
from tests.security.secure_sum.lies import keys_of, reads_only_agreed, signed
from tests.security.secure_sum.refusals import refuses
from tests.security.secure_sum.schedules import predicted, run

TEN = (*NAMES, "northern")
MANY = (*TEN, "southern", "eastern", "western", "remote")
COLLUDER = "upper"
GRAPH = SparseGraph(4, 2, complete_up_to=4)
STEPS = ("keys", "reveals", "shares", "accept", "A/upload", "A/sign", "A/open", "B/upload", "B/sign", "B/open")


def make(names: Sequence[str] = TEN, **changes: object) -> Attempt:
    return make_attempt(names, sparse=GRAPH, **changes)  # type: ignore[arg-type]  # fields by name


def ready(names: Sequence[str] = TEN, seed: int = 0) -> World:
    return World(make(names), seed=seed).ready()


def circle(world: World) -> tuple[str, ...]:
    """The cohort in its order, from the colluder on."""
    assert world.aggregator.graph is not None
    order = world.aggregator.graph.circle(world.aggregator.cohort).order
    at = order.index(COLLUDER)
    return order[at:] + order[:at]


@st.composite
def attempts(draw: st.DrawFn) -> Attempt:
    """6 to 14 institutions, in circles of 4 or 6 neighbours, with any parts, owners and thresholds."""
    n = draw(st.integers(6, len(MANY)))
    names = draw(st.permutations(MANY))[:n]
    max_colluders = draw(st.integers(0, 2))
    lowest = max(2, (n + max_colluders + 2) // 2)
    threshold = draw(st.integers(lowest, max(lowest, n - 2)))
    neighbours = draw(st.sampled_from((4, 6)))
    shares = draw(st.integers(max(2, max_colluders + 1), neighbours))
    owners = st.sets(st.sampled_from(names), min_size=3)
    sums = [
        Sum(
            s, (part("some", draw(owners), length=draw(st.integers(1, 9))), part("everybody", names, ring=64, length=3))
        )
        for s in ("A", "B")
    ]
    graph = SparseGraph(neighbours, shares, complete_up_to=draw(st.integers(3, 8)))
    return make_attempt(names, sums=sums, max_colluders=max_colluders, threshold=threshold, sparse=graph)


@settings(max_examples=40, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(data=st.data())
def test_any_dropouts_on_a_drawn_graph_open_the_exact_sum_or_nothing(data: st.DataObject) -> None:
    attempt = data.draw(attempts())
    absent = data.draw(st.sets(st.tuples(st.sampled_from(list(attempt.roster)), st.sampled_from(STEPS)), max_size=5))
    world = World(attempt, seed=data.draw(st.integers(0, 2**32)), shuffle=data.draw(st.booleans()))
    outcome = run(world, absent)
    alive, stopped_at = predicted(world, absent)
    assert outcome.stopped_at == stopped_at, outcome.error
    assert outcome.opened == {s: world.expected(s, who) for s, who in alive.items()}
    if stopped_at == "done":
        assert outcome.error is None
    else:
        kind = MissingSignaturesError if stopped_at.endswith("/sign") else TooFewMembersError
        assert isinstance(outcome.error, kind)


class TestRule10WhoDrawsTheGraph:
    def test_a_revealed_value_that_does_not_match_its_commitment_is_refused(self) -> None:
        world = World(make())
        relayed = world.send_keys()
        machine = world.aggregator
        for wrong in (bytes(32), b"", bytes(31)):
            refuses(RevealError, machine.take_reveal, "south", wrong)
        for name in TEN:
            world[name].reveal(relayed)
        values = world.own_values(TEN)
        north = world["north"]
        for lie in ({"south": bytes(32)}, {"south": values["east"]}, {COLLUDER: values[COLLUDER][:31]}):
            refuses(RevealError, north.deal_around, {**values, **lie})
        refuses(UnknownMemberError, north.deal_around, {**values, "stranger": bytes(32)})
        assert north.deal_around(values)

    def test_a_copied_commitment_is_not_opened_with_the_copied_value(self) -> None:
        """Who commits last could repeat somebody's commitment, of this attempt or an earlier one, and its value."""
        world = World(make())
        south = keys_of(world["south"].make_keys())
        value = world.own_values(["south"])["south"]
        check_reveal(world.attempt, south, value)
        with pytest.raises(RevealError):
            check_reveal(world.attempt, replace(south, sender=COLLUDER), value)
        with pytest.raises(RevealError):
            check_reveal(make(at=context(7)), south, value)

    def test_an_institution_s_own_value_is_not_left_out(self) -> None:
        world = World(make())
        relayed = world.send_keys()
        for name in TEN:
            world[name].reveal(relayed)
        values = world.own_values(TEN)
        refuses(RevealError, world["north"].deal_around, {n: v for n, v in values.items() if n != "north"})
        few = dict(list({"north": values["north"], **values}.items())[: world.attempt.threshold - 1])
        refuses(TooFewMembersError, world["north"].deal_around, few)

    def test_nobody_reveals_before_every_commitment_is_fixed(self) -> None:
        """Asked for its value, an institution has seen the keys; it deals for no others than those."""
        world = World(make())
        keys = {n: world[n].make_keys() for n in TEN}
        north = world["north"]
        refuses(MemberMisuseError, north.deal_around, {})
        refuses(MemberMisuseError, north.deal, list(keys.values()))
        north.reveal(list(keys.values()))
        refuses(MemberMisuseError, north.reveal, [s for n, s in keys.items() if n != COLLUDER])
        refuses(OutOfPhaseError, world.aggregator.take_reveal, "south", world.own_values(["south"])["south"])

    def test_who_keeps_its_value_is_left_out_and_the_others_go_on(self) -> None:
        outcome = run(world := World(make()), {("south", "reveals")})
        assert outcome.error is None
        assert outcome.opened["A"] == world.expected("A", set(TEN) - {"south"})
        assert "south" not in world.aggregator.members
        refuses(OutOfPhaseError, world.aggregator.take_reveal, "south", world.own_values(["south"])["south"])

    def test_a_complete_graph_has_nothing_to_reveal(self) -> None:
        world = World(make_attempt(TEN))
        relayed = world.send_keys()
        refuses(MemberMisuseError, world["north"].reveal, relayed)
        refuses(OutOfPhaseError, world.aggregator.take_reveal, "north", bytes(32))
        world.deal(relayed)

    @pytest.mark.parametrize("drawn", [True, False])
    def test_keys_commit_to_a_value_exactly_where_the_graph_is_drawn(self, drawn: bool) -> None:
        here, there = (GRAPH, None) if drawn else (None, GRAPH)
        world, other = World(make_attempt(TEN, sparse=here)), World(make_attempt(TEN, sparse=there))
        error = refuses(MalformedMessageError, world.aggregator.take_keys, other[COLLUDER].make_keys())
        assert error.culprits == (COLLUDER,)

    def test_institutions_given_different_graphs_deal_each_other_nothing(self) -> None:
        """The coordinator leaves a value out for `south`: another circle, with whom it likes beside whom."""
        world = World(make())
        relayed = world.send_keys()
        world.reveal(relayed)
        fewer = {n: v for n, v in world.aggregator.reveals.items() if n != "east"}
        dealt = {n: world.dealt(n, relayed) for n in TEN if n != "south"}
        dealt["south"] = world["south"].deal_around(fewer)
        graph = world.aggregator.graph
        assert graph is not None
        refuses(WrongContextError, world.aggregator.take_shares, "south", dealt["south"].values())
        for name in dealt["south"]:
            senders = [n for n in TEN if name in dealt[n]]
            with pytest.raises(ConsiliumError):
                world[name].accept(TEN, [dealt[n][name] for n in senders])

    def test_institutions_given_different_graphs_sign_no_common_list(self) -> None:
        """`south` drops out of the others' attempt: its masks, its shares and its list are of another transcript."""
        world = World(make())
        relayed = world.send_keys()
        rest = [n for n in TEN if n != "south"]
        world.reveal(relayed)
        world.deal(relayed, rest)
        fewer = {n: v for n, v in world.aggregator.reveals.items() if n != "east"}
        world["south"].deal_around(fewer)
        world.accept(rest)
        payload = world.upload_all("A", rest)
        refuses(UnknownMemberError, world["south"].accept, rest, list(world.aggregator.shares_for("south")))
        alone = [s for n in rest for r, s in world.aggregator.shares[n].items() if r == "south"]
        refuses(ConsiliumError, world["south"].accept, [*rest, "south"], alone)
        world.sign_and_open("A", rest, rest)
        assert world.finish_sum("A") == world.expected("A", rest)
        assert SurvivorList.decode(payload).gone == ()


class TestRule10NobodyIsCutOff:
    def lie(self, world: World, gone: Sequence[str]) -> tuple[bytes, list[Signed]]:
        """The coordinator lists `gone` as gone though everybody uploaded; what the honest let themselves be led to."""
        payload = world.list_of("A", [n for n in TEN if n not in gone], gone)
        signatures = [signed(COLLUDER, derive.TAG_LIST, payload)]
        for name in TEN:
            with suppress(ConsiliumError):
                signatures.append(world[name].sign(payload))
        openings = []
        for name in TEN:
            with suppress(ConsiliumError):
                openings.append(world[name].open(signatures))
        world.lists["A"] = payload
        return payload, openings

    def test_a_victim_whose_honest_neighbours_are_all_declared_gone_stays_masked(self) -> None:
        world = ready()
        world.upload_all("A")
        order = circle(world)
        victim = order[2]  # one of its neighbours is the colluder
        gone = [order[1], order[3], order[4]]
        payload = world.list_of("A", [n for n in TEN if n not in gone], gone)
        for name in TEN:
            refuses(BelowFloorError, world[name].sign, payload)
        adversary = Adversary(world, {COLLUDER}).hear(self.lie(world, gone)[1])
        assert victim not in adversary.seeds("A", "encoder/mrna")
        assert adversary.reads() == set()

    def test_two_arcs_that_only_colluders_tie_stay_shut(self) -> None:
        """Two gaps, one of them closed by the colluder alone: either arc would open by itself."""
        world = ready()
        world.upload_all("A")
        order = circle(world)
        gone = [order[1], order[5], order[6]]
        _, openings = self.lie(world, gone)
        assert openings == []
        assert Adversary(world, {COLLUDER}).reads() == set()

    def test_the_coordinator_s_machine_does_not_ask_for_what_nobody_would_sign(self) -> None:
        world = ready()
        world.enter("A", TEN)
        order = circle(world)
        for name in TEN:
            if name not in (order[1], order[5], order[6]):
                world.upload("A", name)
        refuses(TooFewMembersError, world.aggregator.close_uploads)

    def test_a_part_that_falls_apart_stays_shut_though_others_open(self) -> None:
        names = MANY
        attempt = make_attempt(
            names, sparse=SparseGraph(6, 2, complete_up_to=4), sums=[Sum("A", (part("wide", names), part("few", TEN)))]
        )
        for seed in range(40):
            world = World(attempt, seed=seed).ready()
            graph = world.aggregator.graph
            assert graph is not None
            wide = graph.circle(frozenset(names))
            order = graph.circle(frozenset(TEN)).order
            gone = {*order[:3], *order[5:7]}
            lives = set(names) - gone
            if not wide.holds(lives, 1):
                continue
            world.upload_all("A", sorted(lives))
            world.sign_and_open("A", sorted(lives), sorted(lives))
            assert world.finish_sum("A") == {"wide": world.plain("A", "wide", lives)}
            assert {s.part for o in world.openings["A"] for s in Opening.decode(o.payload).shares} == {"wide"}
            return
        raise AssertionError("no seed keeps the wide circle whole")

    @pytest.mark.parametrize("gone", [(), (3,), (3, 7)])
    def test_what_reaches_coordinator_and_colluder_opens_the_agreed_sum_only(self, gone: tuple[int, ...]) -> None:
        world = ready(seed=len(gone))
        order = circle(world)
        lives = sorted(set(TEN) - {order[x] for x in gone})
        world.upload_all("A", lives)
        world.sign_and_open("A", lives, lives)
        assert world.finish_sum("A") == world.expected("A", lives)
        reads_only_agreed(world, Adversary(world, {COLLUDER}).hear(world.openings["A"]), [("A", "encoder/mrna")])

    def test_shares_that_colluders_can_gather_open_nothing(self) -> None:
        with pytest.raises(ConfigurationError, match="may collude"):
            make_attempt(TEN, max_colluders=2, sparse=SparseGraph(4, 2))

    def test_rosters_are_bounded(self) -> None:
        names = [f"n{x}" for x in range(MAX_ROSTER + 1)]
        with pytest.raises(ConfigurationError, match="1001 institutions"):
            Attempt(
                context(), {n: n.encode() for n in names}, 502, 1, 3, (Sum("A", (part("x", names),)),), sparse=GRAPH
            )


class TestRule7MaskPeersBeyondTheNeighbours:
    def test_nobody_masks_with_a_key_that_its_owner_did_not_sign(self) -> None:
        """`few` = {north, south, colluder} masks over its complete graph, also with who is no neighbour.

        The coordinator relays a key message of its own making as south's. South and its neighbours drop out, the list
        has south alive with junk for an upload, which only they would look at: north's seed would be opened, and the
        coordinator has both keys that north masked with.
        """
        few = frozenset({"north", "south", COLLUDER})
        attempt = make_attempt(MANY, sparse=GRAPH, sums=[Sum("A", (part("few", few),))])
        honest = [n for n in MANY if n != "south"]
        value = b"\7" * REVEAL_BYTES
        for seed in range(60):
            world = World(attempt, seed=seed)
            keys = {n: world[n].make_keys() for n in MANY}
            other = keys_of(World(attempt, seed=seed + 1)["south"].make_keys())
            forged = replace(other, graph_commitment=reveal_commitment(attempt.context, "south", value))
            keys["south"] = Signed("south", forged.encode(), bytes(64))
            values = {n: world[n].reveal(list(keys.values())) for n in honest} | {"south": value}
            dealt = {}
            for name in honest:
                with suppress(BadSignatureError):  # south's neighbours
                    dealt[name] = world[name].deal_around(values)
            assert len(dealt) == len(honest) - 4 >= attempt.threshold
            if {"north", COLLUDER} <= set(dealt):
                break
        cohort = sorted([*dealt, "south"])
        for name in dealt:
            world[name].accept(cohort, [dealt[n][name] for n in dealt if name in dealt[n]])
        world["north"].enter("A", b"A")
        words = {"few": ArrayWords(world.values["north", "A", "few"].copy())}
        refuses(BadSignatureError, world["north"].mask, words)


class TestRule5SharesOfADrawnGraph:
    def test_a_secret_is_shared_among_the_neighbours_alone(self) -> None:
        world = ready()
        graph = world.aggregator.graph
        assert graph is not None
        for name in TEN:
            holders = set(graph.shareholders(name))
            assert name not in holders
            assert set(world.aggregator.shares[name]) == holders
            assert len(holders) == 4
            assert all(name in graph.shareholders(other) for other in holders)

    def test_a_dealer_that_deals_to_more_than_its_neighbours_is_refused(self) -> None:
        world = World(make())
        relayed = world.send_keys()
        world.reveal(relayed)
        honest = dict(world.dealt(COLLUDER, relayed))
        stranger = next(n for n in TEN if n not in honest and n != COLLUDER)
        one = ShareMessage.decode(next(iter(honest.values())).payload)
        more = signed(COLLUDER, derive.TAG_SHARES, replace(one, receiver=stranger).encode())
        error = refuses(MalformedMessageError, world.aggregator.take_shares, COLLUDER, [*honest.values(), more])
        assert error.culprits == (COLLUDER,)
        world.deal(relayed)
        relayed_shares = list(world.aggregator.shares_for(stranger))
        refuses(UnknownMemberError, world[stranger].accept, TEN, [*relayed_shares, more])
        refuses(UnknownMemberError, world[stranger].accept, TEN, relayed_shares[1:])

    def test_who_claims_to_hold_a_share_that_nobody_dealt_to_it_is_named(self) -> None:
        """An institution inflating its share: it opens, for a victim far away, whatever it likes."""
        world = ready()
        payload = world.upload_all("A")
        for name in TEN:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        signatures = list(world.aggregator.current.signatures.values())
        true = Opening.decode(world[COLLUDER].open(signatures).payload)
        known = {s.victim for s in true.shares}
        own = replace(true.shares[0], victim=COLLUDER)
        far = replace(true.shares[0], victim=next(n for n in TEN if n not in known and n != COLLUDER))
        for extra in (own, far):
            inflated = signed(COLLUDER, derive.TAG_OPENING, replace(true, shares=(*true.shares, extra)).encode())
            error = refuses(BadShareError, world.aggregator.take_opening, inflated)
            assert error.culprits == (COLLUDER,)

    def test_a_neighbour_that_opens_a_tampered_share_is_named_and_the_sum_opens_from_the_rest(self) -> None:
        world = ready()
        payload = world.upload_all("A")
        for name in TEN:
            world.aggregator.take_signature(world[name].sign(payload))
        world.aggregator.decide()
        signatures = list(world.aggregator.current.signatures.values())
        true = Opening.decode(world[COLLUDER].open(signatures).payload)
        for x, share in enumerate(true.shares):
            wrong = [*true.shares[:x], replace(share, share=bytes(17)), *true.shares[x + 1 :]]
            lie = signed(COLLUDER, derive.TAG_OPENING, replace(true, shares=tuple(wrong)).encode())
            assert refuses(BadShareError, world.aggregator.take_opening, lie).culprits == (COLLUDER,)
        for name in TEN:
            if name != COLLUDER:
                assert not world.aggregator.openable
                world.aggregator.take_opening(world[name].open(signatures))
            if world.aggregator.openable:
                break
        assert world.finish_sum("A") == world.expected("A", TEN)

    def test_too_few_openings_of_one_victim_s_neighbours_open_nothing(self) -> None:
        world = ready()
        world.upload_all("A")
        order = circle(world)
        world.sign_and_open("A", TEN, [n for n in TEN if n not in (order[1], *order[3:5])])  # of order[2]'s one is left
        assert not world.aggregator.openable
        assert refuses(TooFewMembersError, world.aggregator.unmask).culprits == ()

    def test_seed_or_mask_key_of_a_neighbour_never_both(self) -> None:
        world = ready()
        gone = circle(world)[4]
        lives = [n for n in TEN if n != gone]
        world[gone].enter("A", b"A")
        world.upload_all("A", lives)
        signatures = world.sign(world.lists["A"], lives)
        for name in lives:
            opened = Opening.decode(world[name].open(signatures).payload).shares
            assert {s.victim for s in opened if s.kind == "mask-key"} <= {gone}
            assert len({s.victim for s in opened}) == len(opened) == 4

    def test_a_neighbour_that_was_shown_another_model_signs_nothing(self) -> None:
        world = ready()
        world.aggregator.begin_sum(b"A")
        for name in TEN:
            world[name].enter("A", b"A" if name != "south" else b"another")
            world.uploads["A", name] = b"".join(world.mask("A", name).chunks())
        refuses(TranscriptError, world["south"].sign, world.list_of("A", TEN, ()))
        for name in TEN:
            if name in world.aggregator.shares["south"]:
                refuses(ConsiliumError, world[name].sign, world.list_of("A", TEN, ()))


def test_a_restarted_coordinator_has_the_same_graph() -> None:
    world = World(make())
    machine = world.aggregator = JournalledAggregator(world.attempt)
    world.deal(world.send_keys(), [n for n in TEN if n != "south"])
    world.accept()
    again = restore(JournalledAggregator(world.attempt), machine.journal())
    assert again.graph is not None
    assert machine.graph is not None
    assert again.graph.circle(machine.cohort).order == machine.graph.circle(machine.cohort).order
    assert again.journal() == machine.journal()
    world.aggregator = again
    lives = sorted(again.cohort)
    assert world.whole_sum("A") == world.expected("A", lives)
