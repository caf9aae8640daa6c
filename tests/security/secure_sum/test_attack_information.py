"""Rules 1 to 4: what everybody holds after an honest attempt opens the agreed sums only; one key never serves twice.

Each attack test asserts that the adversary reads nothing that was not agreed (by trying every set of uploads against
everything it holds), that the refusing machine is unchanged, and that the error names the culprit or holds the evidence
where there is any. `tests/mutations.py` takes each check out and expects its test to fail.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from security.secure_sum import derive
from security.secure_sum.errors import (
    MalformedMessageError,
    MemberMisuseError,
)
from security.secure_sum.messages import (
    Opening,
    UploadHeader,
)
from security.secure_sum.spec import Sum
from security.secure_sum.upload import ArrayWords
from tests.security.secure_sum.adversary import Adversary
from tests.security.secure_sum.harness import NAMES, World, make_attempt, part
from tests.security.secure_sum.lies import (
    COLLUDER,
    HONEST,
    SIX,
    keys_of,
    reads_only_agreed,
    ready,
    signed,
    with_keys,
)
from tests.security.secure_sum.refusals import refuses

pytestmark = pytest.mark.usefixtures("graph")


class TestRules1To3ExactAndAddressable:
    """The arithmetic is in test_exactness.py; here is what a wrong caller or coordinator may not get past."""

    @pytest.mark.parametrize("words", [np.zeros(1, "<u4"), np.zeros(4, "<u4"), np.zeros(5, "<u8"), np.zeros(5, "<f4")])
    def test_a_vector_of_another_length_or_type_is_never_masked(self, words: np.ndarray) -> None:
        world = ready()
        world.enter("A", SIX)
        upload = world["north"].mask({"encoder/mrna": ArrayWords(words)})
        with pytest.raises(MemberMisuseError):
            list(upload.chunks())

    def test_an_upload_of_another_length_is_not_admitted(self) -> None:
        world = ready()
        world.enter("A", SIX)
        header = UploadHeader.decode(world.mask("A", COLLUDER).header.payload)
        longer = signed(COLLUDER, derive.TAG_UPLOAD, replace(header, length=header.length + 4).encode())
        error = refuses(MalformedMessageError, world.aggregator.take_header, longer)
        assert error.culprits == (COLLUDER,)


class TestHonestInformation:
    """Nobody attacks; the adversary only keeps everything that reached it."""

    @pytest.mark.parametrize("colluders", [(), (COLLUDER,)])
    @pytest.mark.parametrize("gone", [(), ("south",)])
    def test_all_that_reaches_coordinator_and_colluders_opens_the_agreed_sums_only(
        self, colluders: tuple[str, ...], gone: tuple[str, ...]
    ) -> None:
        world = ready()
        for s in ("A", "B"):
            world.enter(s, SIX)
            for name in SIX:
                if name not in gone:
                    world.upload(s, name)
            world.lists[s] = world.aggregator.close_uploads()
            world.sign_and_open(s, SIX, SIX)
            assert world.finish_sum(s) == world.expected(s, set(SIX) - set(gone))
        adversary = Adversary(world, colluders).hear(world.openings["A"]).hear(world.openings["B"])
        reads_only_agreed(world, adversary, [("A", "encoder/mrna"), ("B", "loss/mrna")])

    def test_before_the_opening_the_adversary_reads_nothing(self) -> None:
        world = ready()
        world.upload_all("A")
        assert Adversary(world, {COLLUDER}).reads() == set()

    def test_the_adversary_of_these_tests_can_read(self) -> None:
        """With every secret in its hands it reads every single vector: the other assertions are not vacuous."""
        world = ready()
        world.upload_all("A")
        assert Adversary(world, SIX[1:]).reads() == {("A", "encoder/mrna", frozenset({"north"}))}

    @pytest.mark.parametrize("graph", ["complete"], indirect=True)  # of a drawn graph: test_attack_graph.py
    def test_max_colluders_two_of_nine(self) -> None:
        attempt = make_attempt(NAMES, max_colluders=2, threshold=6, sums=[Sum("A", (part("x", NAMES[:5]),))])
        world = ready(attempt)
        world.upload_all("A")
        world.sign_and_open("A", NAMES[:6], NAMES[:6])
        world.finish_sum("A")
        reads_only_agreed(world, Adversary(world, NAMES[3:5]).hear(world.openings["A"]), [("A", "x")])

    def test_no_secret_is_printed(self) -> None:
        world = ready()
        world.upload_all("A")
        world.sign_and_open("A", SIX, SIX)
        member = world["north"]
        assert member._secrets is not None
        texts = [repr(x) for x in (member, member._secrets, member._current, world.mask("A", "north"))]
        texts += [repr(x) for x in (*member._secrets.parts.values(), *member._secrets.held.values())]
        texts += [repr(opening) for opening in world.aggregator.unmask()]
        secrets = [s.seed for s in member._secrets.parts.values()] + [h.seed for h in member._secrets.held.values()]
        assert not any(s.hex() in t or repr(s)[2:-1] in t for s in secrets for t in texts)


class TestRule4OwnKeysPerSumAndPart:
    def test_sum_b_s_recovery_does_not_unmask_a_of_one_that_vanished_between(self) -> None:
        """`south` uploads A, lives, and is gone in B: its seed of A and its mask key of B are both opened."""
        world = ready()
        world.whole_sum("A")
        rest = [n for n in SIX if n != "south"]
        world.upload_all("B", rest)
        world.sign_and_open("B", rest, rest)
        world.finish_sum("B")
        adversary = Adversary(world, {COLLUDER}).hear(world.openings["A"]).hear(world.openings["B"])
        assert "south" in adversary.mask_keys("B", "loss/mrna")
        assert "south" in adversary.seeds("A", "encoder/mrna")
        assert "south" not in adversary.mask_keys("A", "encoder/mrna")
        reads_only_agreed(world, adversary, [("A", "encoder/mrna"), ("B", "loss/mrna")])

    def test_every_part_of_every_sum_has_its_own_secrets(self) -> None:
        world = ready(make_attempt(SIX, sums=[Sum(s, (part("x", SIX), part("y", SIX))) for s in ("A", "B")]))
        secrets = world["north"]._secrets
        assert secrets is not None
        drawn = [s.seed for s in secrets.parts.values()] + [s.mask_secret for s in secrets.parts.values()]
        announced = [k.public_key for k in keys_of(world["north"].make_keys()).parts]
        assert len(secrets.parts) == 4
        assert len(set(drawn)) == len(drawn)
        assert len(set(announced)) == len(announced)

    def test_one_key_for_two_parts_is_refused(self) -> None:
        world = World(make_attempt(SIX))
        message = world[COLLUDER].make_keys()
        first, second = keys_of(message).parts
        lazy = with_keys(message, parts=(first, replace(second, public_key=first.public_key)))
        error = refuses(MalformedMessageError, world.aggregator.take_keys, lazy)
        assert error.culprits == (COLLUDER,)
        relayed = [world[n].make_keys() for n in HONEST] + [lazy]
        error = refuses(MalformedMessageError, world.meets("north"), relayed)
        assert error.culprits == (COLLUDER,)

    def test_a_part_that_fell_below_the_floor_stays_shut_though_others_open(self) -> None:
        owners = {"north", "south", "east"}
        sums = [Sum("A", (part("wide", SIX), part("narrow", owners, ring=64)))]
        world = ready(make_attempt(SIX, sums=sums))
        world.upload_all("A", [n for n in SIX if n != "south"])  # "narrow" keeps two
        world.sign_and_open("A", SIX[:1] + SIX[2:], SIX[:1] + SIX[2:])
        opened = world.finish_sum("A")
        assert set(opened) == {"wide"}
        assert all(s.part == "wide" for o in world.openings["A"] for s in Opening.decode(o.payload).shares)
        reads_only_agreed(world, Adversary(world, {"east"}).hear(world.openings["A"]), [("A", "wide")])
