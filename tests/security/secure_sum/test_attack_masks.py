"""Rules 8 and 10: no second vector under one mask; enough neighbours or no upload."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from security.errors import ConfigurationError
from security.secure_sum import derive
from security.secure_sum.aggregator import Aggregator
from security.secure_sum.errors import (
    EquivocationError,
    MemberMisuseError,
    OutOfPhaseError,
    SecondUploadError,
    StaleAttemptError,
    UnknownMemberError,
)
from security.secure_sum.graph import MAX_COMPLETE_GRAPH
from security.secure_sum.high_water import HighWaterMark
from security.secure_sum.member import Member
from security.secure_sum.messages import (
    SurvivorList,
    UploadHeader,
)
from security.secure_sum.spec import Attempt, Sum
from security.secure_sum.upload import ArrayWords
from tests.security.secure_sum.harness import World, context, identity, make_attempt, part
from tests.security.secure_sum.lies import (
    COLLUDER,
    SIX,
    ready,
    signed,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRule8OneVectorUnderOneMask:
    def test_a_retrained_vector_is_never_masked_in_the_same_attempt(self) -> None:
        world = ready()
        world.enter("A", SIX)
        first = b"".join(world.mask("A", "north").chunks())
        other = {"encoder/mrna": ArrayWords(np.arange(5, dtype=np.uint32))}
        assert b"".join(world["north"].mask(other).chunks()) == first
        for name in SIX[1:]:
            world.mask("A", name)
        world["north"].sign(world.list_of("A", SIX, ()))
        assert b"".join(world["north"].mask(other).chunks()) == first

    def test_a_restarted_node_has_nothing_to_mask_with(self) -> None:
        """Its new machine may make keys, but the high-water mark refuses the attempt and the aggregator the keys."""
        world = ready()
        world.upload_all("A")
        reborn = Member(world.attempt, "north", identity("north"), World(world.attempt, seed=99)["north"]._randomness)
        refuses(MemberMisuseError, reborn.mask, {})
        refuses(MemberMisuseError, reborn.enter, "A", b"A")
        with pytest.raises(StaleAttemptError):
            HighWaterMark().join(1, 1).join(1, 1)
        fresh = Aggregator(world.attempt)
        fresh.take_keys(world["north"].make_keys())
        refuses(EquivocationError, fresh.take_keys, reborn.make_keys())

    def test_a_second_different_upload_is_refused(self) -> None:
        world = ready()
        world.enter("A", SIX)
        header = world.mask("A", COLLUDER).header
        world.aggregator.take_header(header)
        assert world.aggregator.take_header(header).sender == COLLUDER
        other = replace(UploadHeader.decode(header.payload), length=4)
        error = refuses(
            SecondUploadError, world.aggregator.take_header, signed(COLLUDER, derive.TAG_UPLOAD, other.encode())
        )
        assert error.culprits == (COLLUDER,)

    def test_an_upload_counts_when_complete_only(self) -> None:
        world = ready()
        world.enter("A", SIX)
        for name in SIX[:5]:
            world.upload("A", name)
        world.aggregator.take_header(world.mask("A", SIX[5]).header)
        listed = SurvivorList.decode(world.aggregator.close_uploads())
        assert (set(listed.alive), set(listed.gone)) == (set(SIX[:5]), {SIX[5]})

    def test_an_upload_that_was_never_announced_is_not_completed(self) -> None:
        world = ready()
        world.enter("A", SIX)
        refuses(OutOfPhaseError, world.aggregator.complete_upload, "north")

    def test_uploads_from_outside_the_cohort_are_refused(self) -> None:
        world = World(make_attempt(SIX))
        world.deal(world.send_keys(), SIX[:4])
        world.accept()
        world.enter("A", SIX[:4])
        outsider = replace(UploadHeader.decode(world.mask("A", "north").header.payload), sender="upper")
        refuses(UnknownMemberError, world.aggregator.take_header, signed("upper", derive.TAG_UPLOAD, outsider.encode()))

    def test_a_mask_covers_exactly_the_planned_parts(self) -> None:
        world = ready()
        world.enter("A", SIX)
        words = ArrayWords(np.zeros(5, dtype=np.uint32))
        for sources in ({}, {"other": words}, {"encoder/mrna": words, "other": words}):
            refuses(MemberMisuseError, world["north"].mask, sources)

    def test_no_two_keystreams_are_the_same(self, graph: str) -> None:
        """Self and pair masks of every part and sum of two rounds: all keys differ, but for the two ends of a pair."""
        seen: dict[bytes, set[str]] = {}
        for at in (context(1), context(2)):
            world = ready(make_attempt(SIX, at=at), seed=5)
            for s in ("A", "B"):
                world.enter(s, SIX)
                for name in SIX:
                    current = world[name]._current
                    assert current is not None
                    for p in world[name].uploads:
                        for key in world[name]._mask_keys(current, p):
                            where = f"{at.round}/{s}/{p.name}"
                            seen.setdefault(key.key, set()).add(where)
                    world.upload(s, name)
                world.lists[s] = world.aggregator.close_uploads()
                world.sign_and_open(s, SIX, SIX)
                world.finish_sum(s)
        assert len(seen) == 2 * 2 * (6 + (15 if graph == "complete" else 12))
        assert all(len(where) == 1 for where in seen.values())


class TestRule10GraphAndBounds:
    def test_a_part_with_too_few_neighbours_is_not_even_uploaded(self) -> None:
        owners = {"north", "south", "east"}
        world = World(make_attempt(SIX, sums=[Sum("A", (part("wide", SIX), part("narrow", owners)))]))
        world.deal(world.send_keys(), [n for n in SIX if n != "south"])
        world.accept()
        world.enter("A", [n for n in SIX if n != "south"])
        assert [p.name for p in world["north"].uploads] == ["wide"]
        assert len(world.upload("A", "north")) == 20

    def test_an_institution_masks_with_every_contributor_of_its_cohort(self, graph: str) -> None:
        world = ready()
        world.enter("A", SIX)
        current = world["north"]._current
        assert current is not None
        assert len(world["north"]._mask_keys(current, world["north"].uploads[0])) == (6 if graph == "complete" else 5)

    def test_rosters_beyond_the_complete_graph_are_refused(self) -> None:
        names = [f"n{x}" for x in range(MAX_COMPLETE_GRAPH + 1)]
        with pytest.raises(ConfigurationError, match="mask graph"):
            Attempt(context(), {n: n.encode() for n in names}, 60, 1, 3, (Sum("A", (part("x", names),)),))
