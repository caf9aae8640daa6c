"""Recombination is ours: it must give back what the library deals, and what the library itself recombines."""

from __future__ import annotations

import shamirs
from hypothesis import given
from hypothesis import strategies as st

from security.secure_sum.shares import PRIME, SHARE_BYTES, combine, split


@st.composite
def sharings(draw: st.DrawFn) -> tuple[bytes, int, int, list[int]]:
    members = draw(st.integers(2, 12))
    threshold = draw(st.integers(2, members))
    chosen = draw(st.permutations(range(1, members + 1)))[:threshold]
    return draw(st.binary(min_size=16, max_size=16)), threshold, members, chosen


@given(sharings())
def test_any_threshold_of_shares_gives_the_secret_back(case: tuple[bytes, int, int, list[int]]) -> None:
    secret, threshold, members, chosen = case
    dealt = split(secret, threshold, members)
    assert {len(share) for share in dealt} == {SHARE_BYTES}
    assert combine({x: dealt[x - 1] for x in chosen}) == secret


@given(sharings())
def test_recombination_is_the_librarys(case: tuple[bytes, int, int, list[int]]) -> None:
    secret, threshold, members, chosen = case
    dealt = split(secret, threshold, members)
    theirs = shamirs.interpolate(
        [shamirs.share(x, int.from_bytes(dealt[x - 1], "big"), PRIME) for x in chosen], threshold=threshold
    )
    assert combine({x: dealt[x - 1] for x in chosen}) == int(theirs).to_bytes(16, "big")


@given(sharings())
def test_one_share_too_few_gives_something_else(case: tuple[bytes, int, int, list[int]]) -> None:
    secret, threshold, members, chosen = case
    dealt = split(secret, threshold, members)
    if threshold > 2:
        assert combine({x: dealt[x - 1] for x in chosen[1:]}) != secret
