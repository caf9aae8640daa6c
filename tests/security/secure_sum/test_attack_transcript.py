"""Rule 6: institutions that were shown different things make masks that do not cancel, and nobody signs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from security.errors import ConsiliumError
from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
    TranscriptError,
    UnprovenUploadError,
)
from security.secure_sum.messages import SurvivorList
from security.secure_sum.spec import Context
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import World, context, make_attempt
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    ready,
    signed,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRule6OneTranscript:
    def test_institutions_shown_different_models_do_not_sign_each_other_s_list(self) -> None:
        world = ready()
        world.aggregator.begin_sum(b"the model")
        for name in SIX:
            world[name].enter("A", b"the model" if name != "south" else b"another model")
            world.uploads["A", name] = b"".join(world.mask("A", name).chunks())
        mine, theirs = (world.transcript("A", c) for c in (b"the model", b"another model"))
        for alive in (SIX, HONEST, ("south", "north", COLLUDER)):
            gone = [n for n in SIX if n not in alive]
            for shown in (mine, theirs):
                payload = world.list_of("A", alive, gone, transcript=shown)
                wrong = "south" if shown == mine else "north"
                refuses(TranscriptError, world[wrong].sign, payload)
        header = world.mask("A", "south").header
        error = refuses(TranscriptError, world.aggregator.take_header, header)
        assert error.place == "south"
        assert error.culprits == ()  # who showed it another model is not proven

    def test_masks_of_different_transcripts_do_not_cancel(self) -> None:
        """Even with every seed known, the sum of institutions that were shown different things stays masked."""
        world = ready()
        world.aggregator.begin_sum(b"A")
        for name in SIX:
            world[name].enter("A", b"A" if name != "south" else b"another model")
            world.uploads["A", name] = b"".join(world.mask("A", name).chunks())
        adversary = Adversary(world, {COLLUDER})
        for name in HONEST:
            secrets = world[name]._secrets
            assert secrets is not None
            for (owner, (s, p)), held in secrets.held.items():
                adversary.add(("seed", s, p, owner), name, held.seed)
        assert set(adversary.seeds("A", "encoder/mrna")) == set(SIX)
        transcripts = {"south": world.transcript("A", b"another model")}
        assert adversary.reads(transcripts) == set()

    def test_a_sum_is_not_entered_with_a_second_model(self) -> None:
        world = ready()
        world.enter("A", SIX)
        upload = world.upload("A", "north")
        refuses(TranscriptError, world["north"].enter, "A", b"another")
        assert b"".join(world.mask("A", "north").chunks()) == upload

    def test_the_coordinator_s_own_machine_begins_a_sum_once(self) -> None:
        world = ready()
        world.aggregator.begin_sum(b"one")
        refuses(TranscriptError, world.aggregator.begin_sum, b"two")

    def test_two_cohorts_make_two_transcripts(self) -> None:
        """The coordinator shows `south` a smaller cohort: it signs none of the others' lists, nor they its."""
        world = World(make_attempt(SIX))
        world.deal(world.send_keys())
        smaller = [n for n in SIX if n != "east"]
        world.accept([n for n in SIX if n != "south"])
        shares = [s for s in world.aggregator.shares_for("south") if s.signer != "east"]
        world["south"].accept(smaller, shares)
        world.enter("A", SIX)
        for name in SIX:
            world.uploads["A", name] = b"".join(world.mask("A", name).chunks())
        everybody = world.list_of("A", SIX, ())
        refuses(TranscriptError, world["south"].sign, everybody)
        transcript = derive.transcript(world.attempt.context, world.aggregator._agreed, smaller, "A", b"A")
        theirs = world.list_of("A", smaller, (), transcript=transcript)
        refuses(UnprovenUploadError, world["south"].sign, theirs)
        refuses(TranscriptError, world["north"].sign, theirs)

    def test_nobody_is_listed_as_alive_by_a_cohort_that_it_was_not_shown(self) -> None:
        """The coordinator shows `south` a cohort without `north`, and lists both as alive and all others as gone.

        South's seed and the mask keys of all whom it masked with would be opened: its vector, bare.
        """
        world = World(make_attempt(SIX))
        world.deal(world.send_keys())
        smaller = [n for n in SIX if n != "north"]
        world.accept([n for n in SIX if n != "south"])
        world["south"].accept(smaller, [s for s in world.aggregator.shares_for("south") if s.signer != "north"])
        world.enter("A", SIX)
        for name in SIX:
            world.uploads["A", name] = b"".join(world.mask("A", name).chunks())
        gone = ["east", "west"]
        lie = world.list_of("A", [n for n in SIX if n not in gone], gone)
        openings = []
        signatures = [signed(COLLUDER, derive.TAG_LIST, lie)]
        asked = [n for n in HONEST if n not in ("south", "lower")]
        holders = [n for n in asked if "south" in world[n]._dealers()]
        assert len(holders) >= 2
        for name in holders:
            refuses(UnprovenUploadError, world[name].sign, lie)
        signatures += world.sign(lie, set(asked) - set(holders))  # they check what they hold shares of
        for name in HONEST:
            with suppress(ConsiliumError):
                openings.append(world[name].open(signatures))
        adversary = Adversary(world, {COLLUDER}).hear(openings)
        transcript = derive.transcript(world.attempt.context, world.aggregator._agreed, smaller, "A", b"A")
        assert adversary.reads({"south": transcript}, {"south": smaller}) == set()

    def test_an_upload_of_another_sum_or_signer_proves_nothing(self) -> None:
        world = ready()
        world.whole_sum("A")
        headers = {n: world.aggregator.finished["A"].headers[n].signature for n in SIX}
        payload = world.upload_all("B")
        listed = SurvivorList.decode(payload)
        shuffled = replace(listed, uploads=listed.uploads[1:] + listed.uploads[:1])
        earlier = replace(listed, uploads=tuple(headers[n] for n in listed.alive))
        for lie in (shuffled, earlier, replace(listed, uploads=(bytes(64),) * 6)):
            for name in HONEST:
                refuses(UnprovenUploadError, world[name].sign, lie.encode())
        world.sign_and_open("B", SIX, SIX)
        assert world.finish_sum("B") == world.expected("B", SIX)

    def test_an_upload_that_is_announced_in_other_bytes_is_not_admitted(self) -> None:
        """Same fields, another encoding: the list's signature would be of bytes that no member can make again."""
        world = ready()
        world.enter("A", SIX)
        payload = world.mask("A", COLLUDER).header.payload
        odd = signed(COLLUDER, derive.TAG_UPLOAD, payload + b"\xf8\x07\x01")
        error = refuses(MalformedMessageError, world.aggregator.take_header, odd)
        assert error.culprits == (COLLUDER,)

    @pytest.mark.parametrize(
        "other",
        [
            context(federation="x"),
            context(run=b"\7" * 32),
            context(7),
            context(attempt=7),
            context(opening=b"\7" * 32),
        ],
    )
    def test_different_openings_of_a_round_make_different_masks(self, other: Context) -> None:
        assert len({derive.transcript(c, bytes(32), SIX, "A", b"") for c in (context(), other)}) == 2

    def test_every_ingredient_changes_the_transcript(self) -> None:
        good = (context(), b"k", ("a", "b"), "A", b"c")
        changed = [
            good,
            (context(), b"K", ("a", "b"), "A", b"c"),
            (context(), b"k", ("a", "b", "c"), "A", b"c"),
            (context(), b"k", ("ab",), "A", b"c"),
            (context(), b"k", ("a", "b"), "B", b"c"),
            (context(), b"k", ("a", "b"), "A", b"C"),
        ]
        assert len({derive.transcript(*c) for c in changed}) == len(changed)
