"""Short parts share ciphertexts where, and only where, one of them travels and opens exactly when the others do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from security.ckks.encoding import FRAME_BYTES
from security.ckks.messages import Decryption
from security.ckks.packing import Pack, encrypted, packs
from security.secure_sum.spec import Part, Sum
from tests.security.ckks.harness import EncryptedWorld, encrypted_attempt
from tests.security.secure_sum.harness import NAMES, make_attempt, part

SIX = NAMES[:6]


@st.composite
def parts_of_one_sum(draw: st.DrawFn) -> tuple[Part, ...]:
    """Few different cohorts, quantities and rings, so that many are equal."""
    cohorts = draw(st.lists(st.frozensets(st.sampled_from(SIX), min_size=3), min_size=1, max_size=3))
    return tuple(
        Part(
            f"p{k}",
            draw(st.sampled_from((32, 64))),
            draw(st.integers(1, 2500)),
            draw(st.sampled_from(cohorts)),
            draw(st.sampled_from(("", "losses"))),
            draw(st.booleans()),
        )
        for k in range(draw(st.integers(1, 7)))
    )


@settings(max_examples=150, deadline=None)
@given(
    parts=parts_of_one_sum(),
    cohort=st.frozensets(st.sampled_from(SIX), min_size=4),
    away=st.frozensets(st.sampled_from(SIX), max_size=3),
    k_min=st.integers(3, 4),
)
def test_a_pack_travels_and_opens_whole_or_not_at_all(
    parts: tuple[Part, ...], cohort: frozenset[str], away: frozenset[str], k_min: int
) -> None:
    attempt = make_attempt(SIX, sums=(encrypted(Sum("B", parts)),), k_min=k_min)
    sent = attempt.sum("B").parts
    opened = attempt.opened_parts("B", cohort, cohort - away)
    for pack in packs(sent):
        assert {p.contributors for p in pack.parts} == {pack.parts[0].contributors}
        assert len({p in opened for p in pack.parts}) == 1
        for name in cohort:
            uploaded = attempt.uploaded_parts("B", cohort, name)
            assert len({p in uploaded for p in pack.parts}) == 1
            if pack.parts[0] in uploaded:
                assert pack in packs(uploaded)


ONE = part("losses/mrna", SIX, ring=64, length=46)


@pytest.mark.parametrize(
    "other",
    [
        replace(ONE, name="b", contributors=frozenset(SIX[:5])),
        replace(ONE, name="b", ring=32),
        replace(ONE, name="b", together=True),
        replace(ONE, name="b", quantity="metrics"),
    ],
    ids=["other-contributors", "another-ring", "another-rule", "another-quantity"],
)
def test_what_may_open_without_the_other_shares_no_ciphertext_with_it(other: Part) -> None:
    assert packs((ONE, other)) == (Pack((ONE,)), Pack((other,)))
    assert [p.sent_bytes for p in encrypted(Sum("B", (ONE, other))).parts] == [FRAME_BYTES] * 2


def test_the_bytes_of_a_pack_are_counted_once_and_parts_lie_in_plan_order() -> None:
    apart = part("losses/image", SIX[:4], ring=64, length=46)
    again = replace(ONE, name="clipped", length=2)
    which = encrypted(Sum("B", (ONE, apart, again)))
    assert [p.sent_bytes for p in which.parts] == [FRAME_BYTES, FRAME_BYTES, 0]
    assert [[p.name for p in pack.parts] for pack in packs(which.parts)] == [
        ["losses/mrna", "clipped"],
        ["losses/image"],
    ]
    assert which.encrypted


def test_packed_parts_open_to_their_own_sums_across_the_ends_of_ciphertexts() -> None:
    lengths = (1000, 1, 1060, 46)  # of 64 bits: 1024 to a ciphertext
    parts = [part(f"p{k}", SIX[:5], ring=64, length=length) for k, length in enumerate(lengths)]
    apart = part("small", SIX[:4], ring=64, length=46)
    world = EncryptedWorld(
        encrypted_attempt(SIX[:5], sums=(encrypted(Sum("B", (parts[0], apart, *parts[1:]))),), threshold=4)
    ).ready()
    assert world.whole_sum("B") == world.expected("B", SIX[:5])
    assert len(world.uploads["B", SIX[0]]) == (3 + 1) * FRAME_BYTES
    said = Decryption.decode(world.openings["B"][0].payload)
    assert [p.part for p in said.parts] == ["p0", "small", "p1", "p2", "p3"]
